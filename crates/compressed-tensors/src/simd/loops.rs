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

pub(super) use per_isa;

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

/// The larger of two magnitudes by pattern, so that NaN wins.
#[inline(always)]
fn largest(a: f32, b: f32) -> f32 {
    f32::from_bits(a.to_bits().max(b.to_bits()))
}

/// Raises each run's largest magnitude to that of the row's run; NaN and infinities stay as they are.
pub(crate) fn amax_runs(isa: Isa, float: Float, row: &[u8], run: usize, amaxs: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa.min(Isa::detect()) >= Isa::Avx2 && float != Float::F32 {
        // SAFETY: `Isa::detect` has found AVX2 on this CPU.
        unsafe { super::ranges::amax_runs(float, row.as_chunks::<2>().0, run, amaxs) }
        return;
    }
    amax_runs_in_loops(isa, float, row, run, amaxs);
}

per_isa! {
    /// As [`amax_runs`], for what has no kernel of its own.
    fn amax_runs_in_loops(float: Float, row: &[u8], run: usize, amaxs: &mut [f32]) {
        match float {
            Float::BF16 => {
                for (values, amax) in row.as_chunks::<2>().0.chunks(run).zip(amaxs) {
                    *amax = largest(*amax, bf16_to_f32(amax16(values)));
                }
            }
            Float::F16 => {
                for (values, amax) in row.as_chunks::<2>().0.chunks(run).zip(amaxs) {
                    *amax = largest(*amax, f16_to_f32(amax16(values)));
                }
            }
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

/// Patterns of the smallest and the largest value.
#[inline(always)]
fn bounds16(values: &[[u8; 2]]) -> (u16, u16) {
    // Of unsigned patterns the largest is the smallest negative value, of signed ones the largest positive value.
    let (mut min, mut max) = (0u16, i16::MIN);
    for value in values {
        min = min.max(u16::from_le_bytes(*value));
        max = max.max(i16::from_le_bytes(*value));
    }
    if max >= 0 && min >= 0x8000 { (min, max as u16) } else { ordered_bounds16(values) }
}

/// As [`bounds16`], for values of one sign as well.
#[inline(always)]
pub(super) fn ordered_bounds16(values: &[[u8; 2]]) -> (u16, u16) {
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

/// Widens each run's bounds by the row's run; a NaN leaves at least one of them not finite.
pub(crate) fn range_runs(isa: Isa, float: Float, row: &[u8], run: usize, mins: &mut [f32], maxs: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa.min(Isa::detect()) >= Isa::Avx2 && float != Float::F32 {
        // SAFETY: `Isa::detect` has found AVX2 on this CPU.
        unsafe { super::ranges::range_runs(float, row.as_chunks::<2>().0, run, mins, maxs) }
        return;
    }
    range_runs_in_loops(isa, float, row, run, mins, maxs);
}

/// Widens bounds to others; NaN stays.
#[inline(always)]
pub(super) fn widen((low, high): (f32, f32), min: &mut f32, max: &mut f32) {
    *min = if low.is_nan() || low < *min { low } else { *min };
    *max = if high.is_nan() || high > *max { high } else { *max };
}

per_isa! {
    /// As [`range_runs`], for what has no kernel of its own.
    fn range_runs_in_loops(float: Float, row: &[u8], run: usize, mins: &mut [f32], maxs: &mut [f32]) {
        let run_bytes = run * float.dtype().bits() / 8;
        for ((values, min), max) in row.chunks(run_bytes).zip(mins).zip(maxs) {
            widen(bounds(float, values), min, max);
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

/// e4m3 scales of groups, and the divisors of their elements.
#[inline(always)]
fn nvfp4<const FLOAT: u8>(amaxs: &[f32], global_scale: f32, scales: &mut [f32], divisors: &mut [f32]) {
    for ((amax, scale), divisor) in amaxs.iter().zip(scales).zip(divisors) {
        let value = round::<FLOAT>(amax / 6.0) * global_scale;
        let value = if value > 448.0 { 448.0 } else { value };
        let value = round_e4m3(value);
        let value = if value == 0.0 { 0.125 } else { value };
        *scale = value;
        *divisor = value / global_scale;
    }
}

/// Rounds to bf16, f16 or not at all, by the constant.
#[inline(always)]
fn round<const FLOAT: u8>(value: f32) -> f32 {
    match FLOAT {
        0 => round_bf16(value),
        1 => round_f16(value),
        _ => value,
    }
}

per_isa! {
    /// e4m3 scales of symmetric e2m1 groups from their largest magnitudes, and the divisors of their elements.
    fn nvfp4_scales(float: Float, amaxs: &[f32], global_scale: f32, scales: &mut [f32], divisors: &mut [f32]) {
        match float {
            Float::BF16 => nvfp4::<0>(amaxs, global_scale, scales, divisors),
            Float::F16 => nvfp4::<1>(amaxs, global_scale, scales, divisors),
            Float::F32 => nvfp4::<2>(amaxs, global_scale, scales, divisors),
        }
    }
}

per_isa! {
    /// Power-of-two scales of symmetric groups, as stored in the weight's type.
    fn mx_scales(float: Float, code: Code, amaxs: &[f32], scales: &mut [f32]) {
        if float == Float::F16 {
            for (amax, scale) in amaxs.iter().zip(scales) {
                let value = round_f16(power_of_two(mx_code(*amax, Float::F16, code)));
                *scale = if value == 0.0 { 1.0 } else { value };
            }
            return;
        }
        let offset = if code == Code::E2M1 { 2 } else { 8 };
        for (amax, scale) in amaxs.iter().zip(scales) {
            // As `mx_code` and `power_of_two`, for finite magnitudes and without a branch.
            let exponent = (amax.to_bits() as i32).wrapping_add(1 << 21) >> 23;
            let exponent = if exponent == 255 { 255 } else { (exponent - offset).max(0) };
            *scale = f32::from_bits(if exponent == 0 { 0x0040_0000 } else { (exponent as u32) << 23 });
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

per_isa! {
    /// Whether every value can divide: finite and not 0.
    fn are_divisors(values: &[f32]) -> bool {
        let mut bad = 0u32;
        for value in values {
            let magnitude = value.to_bits() & 0x7fff_ffff;
            bad |= u32::from(magnitude == 0) | u32::from(magnitude >= 0x7f80_0000);
        }
        bad == 0
    }
}

/// Scales and zero points of asymmetric integers in one type; 0 is taken into every range.
#[inline(always)]
fn zero_pointed<const FLOAT: u8>(
    (bits, epsilon): (u32, f32),
    mins: &[f32],
    maxs: &[f32],
    scales: &mut [f32],
    zero_points: &mut [f32],
) {
    let half = (1i32 << (bits - 1)) as f32;
    let (low, high) = (-half, half - 1.0);
    let steps = round::<FLOAT>(high - low);
    for (((min, max), scale), zero_point) in mins.iter().zip(maxs).zip(scales).zip(zero_points) {
        let min = if *min < 0.0 { *min } else { 0.0 };
        let max = if *max > 0.0 { *max } else { 0.0 };
        let value = round::<FLOAT>(round::<FLOAT>(max - min) / steps);
        let zero = clamp(round::<FLOAT>(low - round::<FLOAT>(min / value)), low, high);
        // Adding 1.5 * 2^23 rounds to an integer, ties to even. 0 / 0 counts as 0.
        let zero = (zero + 12_582_912.0) - 12_582_912.0;
        *zero_point = if zero.is_nan() { 0.0 } else { zero };
        *scale = if value == 0.0 { epsilon } else { value };
    }
}

per_isa! {
    /// Plain scales and int8 zero points of asymmetric integers of up to 8 bits, from finite ranges.
    fn asymmetric_qparams(
        float: Float,
        bits: u32,
        mins: &[f32],
        maxs: &[f32],
        scales: &mut [f32],
        zero_points: &mut [f32]
    ) {
        let code = (bits, float.epsilon());
        match float {
            Float::BF16 => zero_pointed::<0>(code, mins, maxs, scales, zero_points),
            Float::F16 => zero_pointed::<1>(code, mins, maxs, scales, zero_points),
            Float::F32 => zero_pointed::<2>(code, mins, maxs, scales, zero_points),
        }
    }
}

per_isa! {
    /// Whether no value is infinite or NaN.
    fn are_finite(values: &[f32]) -> bool {
        let mut largest = 0u32;
        for value in values {
            largest = largest.max(value.to_bits() & 0x7fff_ffff);
        }
        largest < 0x7f80_0000
    }
}

per_isa! {
    /// Reciprocals of divisors; `false` unless no step from weights up to `amaxs` to their quotients overflows.
    fn reciprocals(divisors: &[f32], amaxs: &[f32], out: &mut [f32]) -> bool {
        let (least, most) = (f32::from_bits((127 - 60) << 23), f32::from_bits((127 + 60) << 23));
        let mut bad = 0u32;
        for ((divisor, amax), out) in divisors.iter().zip(amaxs).zip(out) {
            *out = 1.0 / divisor;
            bad |= u32::from(*amax > most) | u32::from(*divisor < least) | u32::from(*divisor > most);
        }
        bad == 0
    }
}

per_isa! {
    /// Quotients by one number.
    fn divide(values: &[f32], by: f32, out: &mut [f32]) {
        for (value, out) in values.iter().zip(out) {
            *out = value / by;
        }
    }
}
