//! Quantize-dequantize of one value, in the arithmetic of compressed-tensors.

use crate::{Element, bf16, f16};

/// Kind of code and its range.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rounding {
    /// Integers from `lowest` to `highest`.
    Int {
        /// Smallest code.
        lowest: f32,
        /// Largest code.
        highest: f32,
    },
    /// float8 e4m3 without infinities, up to 448.
    Fp8E4m3,
    /// float4 e2m1, up to 6.
    Fp4E2m1,
}

impl Rounding {
    /// Two's complement integers of 1 to 16 bits.
    pub fn int(bits: u32) -> Self {
        let half = f32::from_bits((127 + bits.clamp(1, 16) - 1) << 23);
        Self::Int { lowest: -half, highest: half - 1.0 }
    }

    /// The code of `y` as a number: clamped to the range, then rounded to nearest, ties to even.
    #[inline(always)]
    pub fn round(self, y: f32) -> f32 {
        match self {
            Self::Int { lowest, highest } => round_int(y, lowest, highest),
            Self::Fp8E4m3 => round_e4m3(y),
            Self::Fp4E2m1 => round_e2m1(y),
        }
    }
}

/// Type of the scale, to which differences and products are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleType {
    /// f32: nothing is rounded.
    F32,
    /// bf16.
    Bf16,
    /// f16.
    F16,
}

impl ScaleType {
    /// The nearest value of the type.
    #[inline(always)]
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::Bf16 => <bf16 as Element>::from_f32(x).to_f32(),
            Self::F16 => <f16 as Element>::from_f32(x).to_f32(),
        }
    }
}

/// Code of `w` under a scale, times that scale: IEEE division, zero point added before the clamp, difference and product rounded
/// to the type of the scale.
#[inline(always)]
pub fn quantize_dequantize(
    rounding: Rounding,
    scale_type: ScaleType,
    w: f32,
    scale: f32,
    zero_point: Option<f32>,
) -> f32 {
    let round = |y| rounding.round(y);
    let narrow = |x| scale_type.round(x);
    match zero_point {
        None => symmetric(round, narrow, w, scale),
        Some(zero_point) => asymmetric(round, narrow, w, scale, zero_point),
    }
}

/// With a zero point of 0.
#[inline(always)]
pub(crate) fn symmetric(round: impl Fn(f32) -> f32, narrow: impl Fn(f32) -> f32, w: f32, scale: f32) -> f32 {
    narrow(narrow(round(w / scale)) * scale)
}

/// With a zero point that is added before the clamp.
#[inline(always)]
pub(crate) fn asymmetric(
    round: impl Fn(f32) -> f32,
    narrow: impl Fn(f32) -> f32,
    w: f32,
    scale: f32,
    zero_point: f32,
) -> f32 {
    let centred = narrow(narrow(round(w / scale + zero_point)) - narrow(zero_point));
    narrow(centred * scale)
}

#[inline(always)]
fn clamp(y: f32, lowest: f32, highest: f32) -> f32 {
    let y = if y < lowest { lowest } else { y };
    if y > highest { highest } else { y }
}

/// `y + shift - shift`, with the sign of `y` kept at zero: drops the bits below the spacing that `shift` has, ties to even.
#[inline(always)]
fn drop_bits(y: f32, shift: f32) -> f32 {
    let rounded = (y + shift) - shift;
    f32::from_bits(rounded.to_bits() | (y.to_bits() & 0x8000_0000))
}

/// Nearest integer within a range of at most 2^16.
#[inline(always)]
pub(crate) fn round_int(y: f32, lowest: f32, highest: f32) -> f32 {
    // 1.5 * 2^23, whose spacing is 1.
    drop_bits(clamp(y, lowest, highest), 12_582_912.0)
}

/// Nearest e4m3 value.
#[inline(always)]
pub(super) fn round_e4m3(y: f32) -> f32 {
    // The spacing is 2^-3 of the power of two, and 2^-9 below the smallest normal number 2^-6.
    narrow_float(clamp(y, -448.0, 448.0), 127 - 6, 20)
}

/// Nearest e2m1 value.
#[inline(always)]
pub(super) fn round_e2m1(y: f32) -> f32 {
    // The spacing is half the power of two, and 1/2 below 1.
    narrow_float(clamp(y, -6.0, 6.0), 127, 22)
}

/// Drops `bits` of the 23 fraction bits, as if the exponent were at least `lowest_exponent`.
#[inline(always)]
fn narrow_float(y: f32, lowest_exponent: u32, bits: u32) -> f32 {
    let exponent = y.to_bits() & 0x7f80_0000;
    let floor = lowest_exponent << 23;
    let exponent = if exponent < floor { floor } else { exponent };
    drop_bits(y, f32::from_bits(exponent + (bits << 23)) * 1.5)
}

/// Picks the loop of a scale's type and of its zero point, so that neither is asked for each number: `$call` with a function of a
/// value, its scale and its zero point as `$quantize`.
macro_rules! with_quantize {
    ($round:expr, $scale_type:expr, $is_asymmetric:expr, |$quantize:ident| $call:expr) => {{
        use $crate::gptq_sweep::{ScaleType, asymmetric, symmetric};
        macro_rules! with {
            ($narrow:expr) => {
                if $is_asymmetric {
                    let $quantize = |w: f32, scale: f32, zero: f32| asymmetric($round, $narrow, w, scale, zero);
                    $call
                } else {
                    let $quantize = |w: f32, scale: f32, _: f32| symmetric($round, $narrow, w, scale);
                    $call
                }
            };
        }
        match $scale_type {
            ScaleType::F32 => with!(|x| x),
            ScaleType::Bf16 => with!(|x| ScaleType::Bf16.round(x)),
            ScaleType::F16 => with!(|x| ScaleType::F16.round(x)),
        }
    }};
}

pub(crate) use with_quantize;
