//! Quantize-dequantize of one value, in the arithmetic of compressed-tensors.

use crate::Element;

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
            Self::Int { lowest, highest } => clamp(y, lowest, highest).round_ties_even(),
            Self::Fp8E4m3 => round_e4m3(clamp(y, -448.0, 448.0)),
            Self::Fp4E2m1 => round_e2m1(clamp(y, -6.0, 6.0)),
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
            Self::Bf16 => half::bf16::from_f32(x).to_f32(),
            Self::F16 => <half::f16 as Element>::from_f32(x).to_f32(),
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
    let y = w / scale;
    let centred = match zero_point {
        None => rounding.round(y),
        Some(zero_point) => scale_type.round(rounding.round(y + zero_point)) - scale_type.round(zero_point),
    };
    scale_type.round(scale_type.round(centred) * scale)
}

#[inline(always)]
fn clamp(y: f32, lowest: f32, highest: f32) -> f32 {
    let y = if y < lowest { lowest } else { y };
    if y > highest { highest } else { y }
}

/// Nearest e4m3 value of a number within +-448, ties to even.
#[inline(always)]
fn round_e4m3(y: f32) -> f32 {
    // Spacing is 2^-3 of the power of two, and 2^-9 below the smallest normal number 2^-6.
    let exponent = y.to_bits() & 0x7f80_0000;
    let floor = (127 - 6) << 23;
    let exponent = if exponent < floor { floor } else { exponent };
    // Adding 1.5 * 2^23 spacings drops the bits below one spacing, rounding to even.
    let shift = f32::from_bits(exponent + (20 << 23)) * 1.5;
    let rounded = (y + shift) - shift;
    f32::from_bits(rounded.to_bits() | (y.to_bits() & 0x8000_0000))
}

/// Nearest e2m1 value of a number within +-6, ties to the even code.
#[inline(always)]
fn round_e2m1(y: f32) -> f32 {
    let exponent = y.to_bits() & 0x7f80_0000;
    let floor = 127 << 23;
    let exponent = if exponent < floor { floor } else { exponent };
    let shift = f32::from_bits(exponent + (22 << 23)) * 1.5;
    let rounded = (y + shift) - shift;
    f32::from_bits(rounded.to_bits() | (y.to_bits() & 0x8000_0000))
}
