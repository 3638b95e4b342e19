//! Ranges and scales: plain loops that the compiler vectorises, compiled once per instruction set.

use crate::{
    numbers::{Float, bf16_to_f32, f16_to_f32, f32_to_e4m3, round_bf16, round_f16},
    scales::{Code, clamp, mx_code, power_of_two},
};

use super::Isa;

/// Compiles one body for every instruction set behind a function that takes the [`Isa`] first.
macro_rules! per_isa {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        pub(crate) fn $name(isa: Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi2")]
            fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
            fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
            match isa.min(Isa::detect()) {
                // SAFETY: `Isa::detect` has found these features on this CPU.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2 => unsafe { avx2($($arg),*) },
                _ => body($($arg),*),
            }
        }
    };
}

/// Largest magnitude pattern of 16-bit floats; patterns order as magnitudes do, and NaN is above all.
#[inline(always)]
fn amax16(values: &[[u8; 2]]) -> u16 {
    let mut amax = 0i16;
    for value in values {
        amax = amax.max(i16::from_le_bytes(*value) & 0x7fff);
    }
    amax as u16
}

#[inline(always)]
fn amax32(values: &[[u8; 4]]) -> u32 {
    let mut amax = 0i32;
    for value in values {
        amax = amax.max(i32::from_le_bytes(*value) & 0x7fff_ffff);
    }
    amax as u32
}

/// One amax per run of 16-bit floats, raised where the row has a larger one.
#[inline(always)]
fn amax_runs16(values: &[[u8; 2]], run: usize, value_of: impl Fn(u16) -> f32, amaxs: &mut [f32]) {
    // Runs of a fixed length become straight vector code.
    match run {
        16 if values.len().is_multiple_of(16) => {
            for (values, amax) in values.as_chunks::<16>().0.iter().zip(amaxs) {
                *amax = largest(*amax, value_of(amax16(values)));
            }
        }
        32 if values.len().is_multiple_of(32) => {
            for (values, amax) in values.as_chunks::<32>().0.iter().zip(amaxs) {
                *amax = largest(*amax, value_of(amax16(values)));
            }
        }
        _ => {
            for (values, amax) in values.chunks(run).zip(amaxs) {
                *amax = largest(*amax, value_of(amax16(values)));
            }
        }
    }
}

/// The larger of two magnitudes by pattern, so that NaN wins.
#[inline(always)]
fn largest(a: f32, b: f32) -> f32 {
    f32::from_bits(a.to_bits().max(b.to_bits()))
}

per_isa! {
    /// Raises each run's largest magnitude to that of the row's run; NaN and infinities stay as they are.
    fn amax_runs(float: Float, row: &[u8], run: usize, amaxs: &mut [f32]) {
        match float {
            Float::BF16 => amax_runs16(row.as_chunks::<2>().0, run, bf16_to_f32, amaxs),
            Float::F16 => amax_runs16(row.as_chunks::<2>().0, run, f16_to_f32, amaxs),
            Float::F32 => {
                for (values, amax) in row.as_chunks::<4>().0.chunks(run).zip(amaxs) {
                    *amax = largest(*amax, f32::from_bits(amax32(values)));
                }
            }
        }
    }
}

/// A pattern of a float as an integer that orders as the value does.
#[inline(always)]
fn ordered16(bits: i16) -> i16 {
    bits ^ ((bits >> 15) & 0x7fff)
}

#[inline(always)]
fn ordered32(bits: i32) -> i32 {
    bits ^ ((bits >> 31) & 0x7fff_ffff)
}

#[inline(always)]
fn bounds16(values: &[[u8; 2]]) -> (u16, u16) {
    let (mut min, mut max) = (i16::MAX, i16::MIN);
    for value in values {
        let value = ordered16(i16::from_le_bytes(*value));
        min = min.min(value);
        max = max.max(value);
    }
    (ordered16(min) as u16, ordered16(max) as u16)
}

#[inline(always)]
fn bounds(float: Float, bytes: &[u8]) -> (f32, f32) {
    match float {
        Float::BF16 => {
            let (min, max) = bounds16(bytes.as_chunks::<2>().0);
            (bf16_to_f32(min), bf16_to_f32(max))
        }
        Float::F16 => {
            let (min, max) = bounds16(bytes.as_chunks::<2>().0);
            (f16_to_f32(min), f16_to_f32(max))
        }
        Float::F32 => {
            let (mut min, mut max) = (i32::MAX, i32::MIN);
            for value in bytes.as_chunks::<4>().0 {
                let value = ordered32(i32::from_le_bytes(*value));
                min = min.min(value);
                max = max.max(value);
            }
            (f32::from_bits(ordered32(min) as u32), f32::from_bits(ordered32(max) as u32))
        }
    }
}

per_isa! {
    /// Widens each run's bounds by the row's run; a NaN leaves at least one of them not finite.
    fn range_runs(float: Float, row: &[u8], run: usize, mins: &mut [f32], maxs: &mut [f32]) {
        let run_bytes = run * float.dtype().bits() / 8;
        for ((values, min), max) in row.chunks(run_bytes).zip(mins).zip(maxs) {
            let (low, high) = bounds(float, values);
            *min = if low.is_nan() || low < *min { low } else { *min };
            *max = if high.is_nan() || high > *max { high } else { *max };
        }
    }
}

per_isa! {
    /// Smallest and largest value where all are finite and there is one; `None` otherwise.
    fn finite_bounds(float: Float, bytes: &[u8]) -> Option<(f32, f32)> {
        let (min, max) = bounds(float, bytes);
        (!bytes.is_empty() && min.is_finite() && max.is_finite()).then_some((min, max))
    }
}

/// Rounds a value in `[0, 448]` to the e4m3 grid.
#[inline(always)]
fn round_e4m3(value: f32) -> f32 {
    let anchor = f32::from_bits((value.to_bits().max(121 << 23) & 0x7f80_0000) + (20 << 23));
    (value + anchor) - anchor
}

per_isa! {
    /// e4m3 scales of symmetric e2m1 groups from their largest magnitudes, and the divisors of their elements.
    fn nvfp4_scales(float: Float, amaxs: &[f32], global_scale: f32, scales: &mut [f32], divisors: &mut [f32]) {
        #[inline(always)]
        fn each(round: impl Fn(f32) -> f32, amaxs: &[f32], global: f32, scales: &mut [f32], divisors: &mut [f32]) {
            for ((amax, scale), divisor) in amaxs.iter().zip(scales).zip(divisors) {
                let value = global * round(amax / 6.0);
                let value = if value > 448.0 { 448.0 } else { value };
                let value = round_e4m3(value);
                let value = if value == 0.0 { 0.125 } else { value };
                *scale = value;
                *divisor = value / global;
            }
        }
        match float {
            Float::BF16 => each(round_bf16, amaxs, global_scale, scales, divisors),
            Float::F16 => each(round_f16, amaxs, global_scale, scales, divisors),
            Float::F32 => each(|value| value, amaxs, global_scale, scales, divisors),
        }
    }
}

per_isa! {
    /// Power-of-two scales of symmetric groups, as stored in the weight's type.
    fn mx_scales(float: Float, code: Code, amaxs: &[f32], scales: &mut [f32]) {
        for (amax, scale) in amaxs.iter().zip(scales) {
            let value = float.round(power_of_two(mx_code(*amax, float, code)));
            *scale = if value == 0.0 { 1.0 } else { value };
        }
    }
}

per_isa! {
    /// e4m3 codes of scales that are e4m3 values already, or saturate.
    fn e4m3_bytes(scales: &[f32], out: &mut [u8]) {
        for (scale, out) in scales.iter().zip(out) {
            *out = f32_to_e4m3(clamp(*scale, -448.0, 448.0));
        }
    }
}
