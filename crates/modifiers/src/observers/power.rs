//! Powers of error magnitudes, with the same bits on every machine.

use compressed_tensors::numbers::{Float, bf16_to_f32, f16_to_f32, f32_to_f16};

/// `x^exponent` for finite x above 0, relative error below 1e-13.
///
/// Only additions, multiplications, one division and bit operations, without branches.
#[inline(always)]
pub fn power(x: f64, exponent: f64) -> f64 {
    // x = 2^k * m with m from sqrt(1/2) to sqrt(2).
    const SQRT_HALF: u64 = 0x3fe6_a09e_667f_3bcd;
    let bits = x.to_bits();
    let biased = bits.wrapping_add((1023 << 52) - SQRT_HALF) >> 52;
    let m = f64::from_bits(bits.wrapping_sub(biased.wrapping_sub(1023) << 52));
    let k = f64::from((biased as i32).wrapping_sub(1023));
    // ln m = 2 atanh s.
    let s = (m - 1.0) / (m + 1.0);
    let t = s * s;
    let p = 1.0 / 17.0;
    let p = p * t + 1.0 / 15.0;
    let p = p * t + 1.0 / 13.0;
    let p = p * t + 1.0 / 11.0;
    let p = p * t + 1.0 / 9.0;
    let p = p * t + 1.0 / 7.0;
    let p = p * t + 1.0 / 5.0;
    let p = p * t + 1.0 / 3.0;
    let p = p * t + 1.0;
    let log2 = k + s * p * (2.0 * std::f64::consts::LOG2_E);
    exp2(exponent * log2)
}

/// `2^y`, from 2^-1000 to 2^1000 and limited to these.
#[inline(always)]
fn exp2(y: f64) -> f64 {
    // 1.5 * 2^52: adding it leaves the nearest integer in the low bits.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    let y = if y > 1000.0 { 1000.0 } else { y };
    let y = if y < -1000.0 { -1000.0 } else { y };
    let shifted = y + SHIFT;
    let z = (y - (shifted - SHIFT)) * std::f64::consts::LN_2;
    let p = 1.0 / 479_001_600.0;
    let p = p * z + 1.0 / 39_916_800.0;
    let p = p * z + 1.0 / 3_628_800.0;
    let p = p * z + 1.0 / 362_880.0;
    let p = p * z + 1.0 / 40_320.0;
    let p = p * z + 1.0 / 5040.0;
    let p = p * z + 1.0 / 720.0;
    let p = p * z + 1.0 / 120.0;
    let p = p * z + 1.0 / 24.0;
    let p = p * z + 1.0 / 6.0;
    let p = p * z + 0.5;
    let p = p * z + 1.0;
    let p = p * z + 1.0;
    let n = shifted.to_bits().wrapping_sub(SHIFT.to_bits());
    p * f64::from_bits(n.wrapping_add(1023) << 52)
}

/// `x^exponent` for f32 values of 0 and above, infinity and NaN included, rounded to f32.
#[inline(always)]
pub fn power_f32(x: f32, exponent: f64) -> f32 {
    let value = power(f64::from(x), exponent) as f32;
    let value = if x <= f32::MAX { value } else { x };
    if x == 0.0 { 0.0 } else { value }
}

/// How the magnitude of an error becomes its share of a sum.
#[derive(Clone, Debug)]
pub(super) enum Measure {
    /// By table: a type of 16 bits has 2^15 magnitudes.
    Table(Box<[f64; 1 << 15]>),
    /// The second power.
    Square,
    /// The third power, as two products.
    Cube,
    /// Any other power.
    Power(f64),
}

impl Measure {
    /// The measure of errors that are values of `float`, and so are their powers; the exponent is rounded to it too.
    pub(super) fn new(norm: f64, float: Float) -> Self {
        let exponent = float.round(norm as f32);
        match float {
            Float::F32 if exponent == 2.0 => Self::Square,
            Float::F32 if exponent == 3.0 => Self::Cube,
            Float::F32 => Self::Power(f64::from(exponent)),
            Float::BF16 | Float::F16 => Self::Table(table(f64::from(exponent), float)),
        }
    }

    /// The share of one magnitude.
    #[inline(always)]
    pub(super) fn share(&self, magnitude: f32, float: Float) -> f64 {
        f64::from(match self {
            Self::Table(table) => return table[index(magnitude, float)],
            Self::Square => magnitude * magnitude,
            Self::Cube => magnitude * magnitude * magnitude,
            Self::Power(exponent) => power_f32(magnitude, *exponent),
        })
    }
}

/// Place in the table of a magnitude that is a value of `float`.
#[inline(always)]
pub(super) fn index(magnitude: f32, float: Float) -> usize {
    match float {
        Float::F16 => usize::from(f32_to_f16(magnitude) & 0x7fff),
        _ => (magnitude.to_bits() >> 16) as usize & 0x7fff,
    }
}

fn table(exponent: f64, float: Float) -> Box<[f64; 1 << 15]> {
    let (mantissa_bits, value): (u32, fn(u16) -> f32) = match float {
        Float::F16 => (10, f16_to_f32),
        _ => (7, bf16_to_f32),
    };
    // A normal magnitude is a power of two times a number from 1 to 2, and so is its power.
    let significands: Vec<f64> = (0..1u32 << mantissa_bits)
        .map(|fraction| power(1.0 + f64::from(fraction) / f64::from(1u32 << mantissa_bits), exponent))
        .collect();
    let mut table = vec![0.0; 1 << 15];
    for (binade, row) in table.chunks_mut(significands.len()).enumerate() {
        let first = value((binade << mantissa_bits) as u16);
        let scale = if binade == 0 { 0.0 } else { power(f64::from(first).min(1e300), exponent) };
        for (fraction, (share, significand)) in row.iter_mut().zip(&significands).enumerate() {
            let magnitude = value(((binade << mantissa_bits) + fraction) as u16);
            let exact = match magnitude {
                _ if !magnitude.is_finite() => magnitude,
                // Whole powers are products, each rounded to the type.
                _ if exponent == 2.0 => magnitude * magnitude,
                _ if exponent == 3.0 => float.round(magnitude * magnitude) * magnitude,
                _ if binade == 0 => power_f32(magnitude, exponent),
                _ => (scale * significand) as f32,
            };
            *share = f64::from(float.round(exact));
        }
    }
    // The vector holds exactly this many values.
    table.into_boxed_slice().try_into().unwrap_or_else(|_| Box::new([0.0; 1 << 15]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_agree_with_the_platform_to_a_part_in_1e13() {
        for exponent in [2.4, 3.0, 0.5, 2.40625, 7.3] {
            for i in 0..2000 {
                let x = 1.3e-38 * 1.09_f64.powi(i);
                let (found, expected) = (power(x, exponent), x.powf(exponent));
                if (1e-290..1e290).contains(&expected) {
                    assert!((found / expected - 1.0).abs() < 1e-13, "{x:e}^{exponent}: {found:e}, {expected:e}");
                }
            }
        }
        assert_eq!([0.0, 1.0, f32::INFINITY].map(|x| power_f32(x, 2.4)), [0.0, 1.0, f32::INFINITY]);
    }

    #[test]
    fn a_table_holds_the_rounded_power_of_every_magnitude() {
        for float in [Float::BF16, Float::F16] {
            let measure = Measure::new(2.4, float);
            let exponent = float.round(2.4);
            for bits in 0..1u16 << 15 {
                let x = if float == Float::F16 { f16_to_f32(bits) } else { bf16_to_f32(bits) };
                let expected = float.round((f64::from(x).powf(f64::from(exponent))) as f32);
                let found = measure.share(x, float);
                assert!(found == f64::from(expected) || x.is_nan() && found.is_nan(), "{float:?} {x:e}: {found:e}");
            }
        }
        assert_eq!(Float::BF16.round(2.4), 2.40625);
    }
}
