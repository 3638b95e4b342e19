//! Rows of weights to codes: one body over every vector type.

use crate::{numbers::Float, scales::Code};

use super::{
    Isa,
    lanes::{Lanes, Portable},
};

/// One row of finite weights and what divides them.
#[derive(Clone, Copy)]
pub(crate) struct Row<'a> {
    /// Type of the weights.
    pub(crate) float: Float,
    /// Little-endian weights.
    pub(crate) bytes: &'a [u8],
    /// Columns under one divisor; the last run may be shorter.
    pub(crate) run: usize,
    /// One divisor per run, finite and not 0; f32 where `rounds_quotient` is not set.
    pub(crate) divisors: &'a [f32],
    /// Reciprocals of the divisors of bf16 weights, where [`reciprocals`](super::reciprocals) has found them apt.
    pub(crate) reciprocals: Option<&'a [f32]>,
    /// Whether the quotient is rounded to the weights' type.
    pub(crate) rounds_quotient: bool,
    /// One zero point per run, for integers only; none where symmetric.
    pub(crate) zero_points: Option<&'a [f32]>,
    /// What the quotients become.
    pub(crate) code: Code,
}

/// Writes one byte per weight.
pub(crate) fn codes(isa: Isa, row: &Row<'_>, out: &mut [u8]) {
    dispatch::<false>(isa, row, out);
}

/// Writes two codes a byte, integers offset by 8; runs are multiples of 16 columns and cover the row.
pub(crate) fn packed(isa: Isa, row: &Row<'_>, out: &mut [u8]) {
    dispatch::<true>(isa, row, out);
}

fn dispatch<const PACKED: bool>(isa: Isa, row: &Row<'_>, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c,bmi2")]
    fn avx2<const PACKED: bool>(row: &Row<'_>, out: &mut [u8]) {
        // SAFETY: the features are those of the vector type.
        unsafe { by_type::<super::avx2::Avx2, PACKED>(row, out) }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")]
    fn avx512<const PACKED: bool>(row: &Row<'_>, out: &mut [u8]) {
        // SAFETY: the features are those of the vector type.
        unsafe { by_type::<super::avx512::Avx512, PACKED>(row, out) }
    }
    let per_byte = if PACKED { 2 } else { 1 };
    let elements = row.bytes.len() * 8 / row.float.dtype().bits();
    assert!(out.len() * per_byte >= elements, "the output holds a code per weight");
    assert!(row.run > 0 && row.divisors.len() * row.run >= elements, "every weight has a divisor");
    assert!(!PACKED || row.run.is_multiple_of(16) && elements.is_multiple_of(16), "runs are whole vectors");
    assert!(!PACKED || row.code != Code::E4M3, "two codes fit a byte only where they have four bits");
    assert!(row.reciprocals.is_none_or(|it| it.len() >= row.divisors.len()), "every run has a reciprocal");
    assert!(row.zero_points.is_none_or(|it| it.len() >= row.divisors.len()), "every run has a zero point");
    match isa.min(Isa::detect()) {
        // SAFETY: `Isa::detect` has found these features on this CPU.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512::<PACKED>(row, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2::<PACKED>(row, out) },
        // SAFETY: the portable vector needs no feature.
        _ => unsafe { by_type::<Portable, PACKED>(row, out) },
    }
}

const BF16: u8 = 0;
const F16: u8 = 1;
const F32: u8 = 2;
const INT: u8 = 0;
const E4M3: u8 = 1;
const E2M1: u8 = 2;

/// Picks the instance; only the combinations that weights occur in exist.
///
/// # Safety
/// The CPU has the instruction set of `V`, and the lengths are as [`dispatch`] asserts.
#[inline(always)]
unsafe fn by_type<V: Lanes, const PACKED: bool>(row: &Row<'_>, out: &mut [u8]) {
    // SAFETY: as the caller vouches.
    unsafe {
        match row.float {
            Float::BF16 => by_code::<V, PACKED, BF16>(row, out),
            Float::F16 => by_code::<V, PACKED, F16>(row, out),
            Float::F32 => by_code::<V, PACKED, F32>(row, out),
        }
    }
}

/// # Safety
/// As [`by_type`].
#[inline(always)]
unsafe fn by_code<V: Lanes, const PACKED: bool, const FLOAT: u8>(row: &Row<'_>, out: &mut [u8]) {
    // SAFETY: as the caller vouches.
    unsafe {
        match row.code {
            Code::Int { .. } => quantize::<V, PACKED, FLOAT, INT>(row, out),
            Code::E4M3 => quantize::<V, false, FLOAT, E4M3>(row, out),
            Code::E2M1 => quantize::<V, PACKED, FLOAT, E2M1>(row, out),
        }
    }
}

/// Divisors between these have reciprocals with which a bf16 product rounds as the bf16 quotient does.
const LEAST_RECIPROCAL: f32 = f32::from_bits((127 - 100) << 23);
const MOST_RECIPROCAL: f32 = f32::from_bits((127 + 100) << 23);

/// # Safety
/// As [`by_type`].
#[inline(always)]
unsafe fn quantize<V: Lanes, const PACKED: bool, const FLOAT: u8, const CODE: u8>(row: &Row<'_>, out: &mut [u8]) {
    let width = if FLOAT == F32 { 4 } else { 2 };
    let elements = row.bytes.len() / width;
    let (mut from, mut to) = (row.bytes.as_ptr(), out.as_mut_ptr());
    // SAFETY: as the caller vouches; every pointer stays within the row and the output, since each step
    // takes as many weights as are left in the run.
    unsafe {
        let (low, high) = (V::splat(row.code.low()), V::splat(row.code.high()));
        let per_step = if PACKED { V::N / 2 } else { V::N };
        let mut start = 0;
        if FLOAT == BF16
            && CODE != INT
            && let Some(reciprocals) = row.reciprocals
            && (row.run == V::N || row.run == 2 * V::N)
        {
            // Short runs, by vectors of even and odd elements. Two runs of one vector lie in one half of both.
            let rounding = if row.rounds_quotient { Rounding::NoTies } else { Rounding::None };
            let step = Step::<V, FLOAT, CODE> { low, high, zero_point: None, rounding };
            let per_pair = 2 * V::N / row.run;
            // Plain index loops: iterator adapters are not inlined into functions with other features.
            while start + per_pair <= row.divisors.len() && (start + per_pair) * row.run <= elements {
                let last = start + per_pair - 1;
                let reciprocal = V::halves(reciprocals[start], reciprocals[last]);
                let [even, odd] = V::load_bf16_pairs(from);
                let quotients = if row.rounds_quotient {
                    [even.mul(reciprocal), odd.mul(reciprocal)]
                } else {
                    let divisor = V::halves(row.divisors[start], row.divisors[last]);
                    [even.quotient(divisor, reciprocal), odd.quotient(divisor, reciprocal)]
                };
                step.store_pairs::<PACKED>(quotients, to);
                from = from.add(2 * V::N * width);
                to = to.add(2 * per_step);
                start += per_pair;
            }
        }
        for idx in start..row.divisors.len() {
            let divisor = row.divisors[idx];
            let n = row.run.min(elements.saturating_sub(idx * row.run));
            let zero_point = row.zero_points.map(|zero_points| V::splat(zero_points[idx]));
            // A bf16 quotient has an 8-bit numerator and denominator: it is never a tie, and no closer to one
            // than 2^-18 of its size, while a product with the f32 reciprocal is within 2^-22 of it. Only the
            // subnormal quotient 2^-134 is one, whose codes are those of the zero that it rounds to.
            let magnitude = divisor.abs();
            let uses_reciprocal =
                FLOAT == BF16 && row.rounds_quotient && (LEAST_RECIPROCAL..=MOST_RECIPROCAL).contains(&magnitude);
            let exact = if row.rounds_quotient { Rounding::TiesToEven } else { Rounding::None };
            let step = Step::<V, FLOAT, CODE> { low, high, zero_point, rounding: exact };
            let mut left = n;
            if uses_reciprocal {
                let step = Step::<V, FLOAT, CODE> { rounding: Rounding::NoTies, ..step };
                let reciprocal = V::splat(1.0 / divisor);
                while left >= 2 * V::N {
                    let [even, odd] = V::load_bf16_pairs(from);
                    step.store_pairs::<PACKED>([even.mul(reciprocal), odd.mul(reciprocal)], to);
                    from = from.add(2 * V::N * width);
                    to = to.add(2 * per_step);
                    left -= 2 * V::N;
                }
            }
            let whole = left / V::N;
            let divisors = V::splat(divisor);
            for _ in 0..whole {
                step.store::<PACKED>(step.load(from).div(divisors), to);
                from = from.add(V::N * width);
                to = to.add(per_step);
            }
            let rest = left - whole * V::N;
            if rest > 0 {
                // The last lanes go through a padded copy.
                let mut padded = [0u8; 64];
                let mut codes = [0u8; 16];
                std::ptr::copy_nonoverlapping(from, padded.as_mut_ptr(), rest * width);
                let quotient = step.load(padded.as_ptr()).div(divisors);
                step.store::<false>(quotient, codes.as_mut_ptr());
                std::ptr::copy_nonoverlapping(codes.as_ptr(), to, rest);
                from = from.add(rest * width);
                to = to.add(rest);
            }
        }
    }
}

/// How quotients are rounded to the weights' type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rounding {
    /// Not at all.
    None,
    /// As the type rounds.
    TiesToEven,
    /// As the type rounds where no tie occurs.
    NoTies,
}

/// What happens to a vector of quotients.
#[derive(Clone, Copy)]
struct Step<V, const FLOAT: u8, const CODE: u8> {
    low: V,
    high: V,
    zero_point: Option<V>,
    rounding: Rounding,
}

impl<V: Lanes, const FLOAT: u8, const CODE: u8> Step<V, FLOAT, CODE> {
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn load(&self, from: *const u8) -> V {
        // SAFETY: as the caller vouches.
        unsafe {
            match FLOAT {
                BF16 => V::load_bf16(from),
                F16 => V::load_f16(from),
                _ => V::load_f32(from),
            }
        }
    }

    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn round(&self, value: V, rounding: Rounding) -> V {
        // SAFETY: as the caller vouches.
        unsafe {
            match (FLOAT, rounding) {
                (_, Rounding::None) | (F32, _) => value,
                (BF16, Rounding::NoTies) => value.round_bf16_down(),
                (BF16, Rounding::TiesToEven) => value.round_bf16(),
                _ => value.round_f16(),
            }
        }
    }

    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn codes(&self, quotient: V) -> V::Codes {
        // SAFETY: as the caller vouches.
        unsafe {
            let value = self.round(quotient, self.rounding);
            match CODE {
                INT => match self.zero_point {
                    // Sums have ties.
                    Some(zero_point) => {
                        self.round(value.add(zero_point), Rounding::TiesToEven).int_codes(self.low, self.high)
                    }
                    None => value.int_codes(self.low, self.high),
                },
                // Adding a zero point of 0 clears the sign of zeros.
                E4M3 => value.add(V::splat(0.0)).e4m3_codes(),
                _ => value.add(V::splat(0.0)).e2m1_codes(),
            }
        }
    }

    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn store<const PACKED: bool>(&self, quotient: V, to: *mut u8) {
        // SAFETY: as the caller vouches.
        unsafe {
            let codes = self.codes(quotient);
            if PACKED {
                V::store_nibbles(codes, i32::from(CODE == INT), to);
            } else {
                V::store_bytes(codes, to);
            }
        }
    }

    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn store_pairs<const PACKED: bool>(&self, [even, odd]: [V; 2], to: *mut u8) {
        // SAFETY: as the caller vouches.
        unsafe {
            let codes = [self.codes(even), self.codes(odd)];
            if PACKED {
                V::store_nibble_pairs(codes, i32::from(CODE == INT), to);
            } else {
                V::store_byte_pairs(codes, to);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::numbers::round_bf16;

    /// Divisors of every 41st significand and around multiples of large powers of two, by all bf16 significands;
    /// exponents only move the quotient.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_corrected_product_with_the_reciprocal_is_the_quotient() {
        use std::mem::transmute;

        use super::{
            super::{Isa, avx2::Avx2},
            Lanes,
        };
        #[target_feature(enable = "avx2,fma,f16c,bmi2")]
        fn compare(divisor: f32) {
            let mut bytes = [0u8; 16];
            for first in (128..256u32).step_by(8) {
                for (lane, bytes) in bytes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    *bytes = half::bf16::from_f32((first + lane as u32) as f32).to_le_bytes();
                }
                // SAFETY: the features are those of the vector type, and the array holds a vector.
                let (found, expected): ([u32; 8], [u32; 8]) = unsafe {
                    let values = Avx2::load_bf16(bytes.as_ptr());
                    let (divisors, reciprocals) = (Avx2::splat(divisor), Avx2::splat(1.0 / divisor));
                    let found = values.quotient(divisors, reciprocals);
                    (transmute::<Avx2, [u32; 8]>(found), transmute::<Avx2, [u32; 8]>(values.div(divisors)))
                };
                assert_eq!(found, expected, "{first} / {divisor:e}");
            }
        }
        if Isa::detect() < Isa::Avx2 {
            return;
        }
        let near =
            (0..128u32).flat_map(|high| (0..16).map(move |low| ((high << 16) + low).wrapping_sub(8) & 0x7f_ffff));
        for significand in (0..1 << 23).step_by(41).chain(near) {
            // SAFETY: `Isa::detect` has found these features on this CPU.
            unsafe { compare(f32::from_bits((127 << 23) | significand)) };
        }
    }

    /// All pairs of significands; exponents only move the quotient, down to where results are subnormal.
    #[test]
    fn a_bf16_product_with_the_reciprocal_rounds_as_the_quotient() {
        for exponent in [-99, -3, 0, 60, 99] {
            let power = f32::from_bits(((127 + exponent) as u32) << 23);
            for x in 128..256 {
                for s in 128..256 {
                    for (x, s) in [(x as f32, s as f32 * power), (x as f32 * 2f32.powi(-130), s as f32 * power)] {
                        let (quotient, product) = (x / s, x * (1.0 / s));
                        let down = f32::from_bits(product.to_bits().wrapping_add(0x7fff) & 0xffff_0000);
                        // Subnormal results may differ by one step, between which no code lies; zero is the same.
                        let same = round_bf16(quotient) == down;
                        let is_subnormal = quotient < f32::MIN_POSITIVE;
                        let is_zero_alike = (round_bf16(quotient) == 0.0) == (down == 0.0);
                        assert!(same || (is_subnormal && is_zero_alike), "{x:e} / {s:e}");
                    }
                }
            }
        }
    }
}
