//! From a range of values to a scale and a zero point: every strategy, number type and special case.

use crate::{
    DType, ErrorKind, Result,
    args::{QuantizationArgs, QuantizationType},
    numbers::{Float, e4m3_to_f32, f32_to_e4m3, round_integer},
};

/// What a quantized value is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Two's complement integers of this many bits, 1 to 24.
    Int {
        /// Width of a code.
        bits: u32,
    },
    /// float8 e4m3fn.
    E4M3,
    /// float4 e2m1.
    E2M1,
}

impl Code {
    /// Smallest code as a value.
    #[inline(always)]
    pub fn low(self) -> f32 {
        match self {
            Self::Int { bits } => -((1i32 << (bits - 1)) as f32),
            Self::E4M3 => -448.0,
            Self::E2M1 => -6.0,
        }
    }

    /// Largest code as a value.
    #[inline(always)]
    pub fn high(self) -> f32 {
        match self {
            Self::Int { bits } => ((1i32 << (bits - 1)) - 1) as f32,
            Self::E4M3 => 448.0,
            Self::E2M1 => 6.0,
        }
    }

    /// The type of one unpacked code on disk.
    pub fn storage(self) -> DType {
        match self {
            Self::Int { bits: ..=8 } => DType::I8,
            Self::Int { bits: ..=16 } => DType::I16,
            Self::Int { .. } => DType::I32,
            Self::E4M3 => DType::F8E4M3,
            Self::E2M1 => DType::F4,
        }
    }
}

/// What happens to a scale after it has been computed in the weight's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleRule {
    /// Kept.
    Plain,
    /// Rounded to another type first.
    Cast(DType),
    /// A power of two whose exponent is stored as e8m0.
    Mx,
}

/// The arithmetic of one quantized tensor, resolved from its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arithmetic {
    /// What values become.
    pub code: Code,
    /// Whether the zero point is fixed at 0.
    pub symmetric: bool,
    /// What happens to scales.
    pub rule: ScaleRule,
    /// Type of a zero point.
    pub zp_dtype: DType,
}

/// A scale and its zero point, both as f32 values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Qparam {
    /// The scale, never 0.
    pub scale: f32,
    /// The zero point, 0 where symmetric.
    pub zero_point: f32,
}

impl Arithmetic {
    /// Resolves the arguments of one tensor.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for widths, scale types and asymmetric types without arithmetic.
    pub fn of(args: &QuantizationArgs) -> Result<Self> {
        let code = match (args.r#type, args.num_bits) {
            (QuantizationType::Int, bits @ 1..=24) => Code::Int { bits: bits as u32 },
            (QuantizationType::Float, 8) => Code::E4M3,
            (QuantizationType::Float, 4) => Code::E2M1,
            (QuantizationType::Int, bits) => return unsupported(format!("arithmetic with {bits}-bit integers")),
            (QuantizationType::Float, bits) => return unsupported(format!("arithmetic with {bits}-bit floats")),
        };
        let is_mx = is_mx(args);
        if !args.symmetric && code == Code::E2M1 {
            return unsupported("asymmetric 4-bit float quantization".to_owned());
        }
        if !args.symmetric && is_mx {
            return unsupported("asymmetric quantization with power-of-two scales".to_owned());
        }
        let rule = match args.scale_dtype {
            _ if is_mx => ScaleRule::Mx,
            None => ScaleRule::Plain,
            Some(dtype @ (DType::F8E4M3 | DType::U8 | DType::BF16 | DType::F16 | DType::F32)) => ScaleRule::Cast(dtype),
            Some(dtype) => return unsupported(format!("scale_dtype {dtype}")),
        };
        let zp_dtype = args.zp_dtype.unwrap_or(match code {
            Code::E2M1 => DType::F8E4M3,
            _ => code.storage(),
        });
        if !args.symmetric && !matches!(zp_dtype, DType::I8 | DType::I16 | DType::I32 | DType::F8E4M3) {
            return unsupported(format!("zp_dtype {zp_dtype}"));
        }
        Ok(Self { code, symmetric: args.symmetric, rule, zp_dtype })
    }

    /// Scale and zero point of a range, in the type the reference computes them in: `float`, or f32 where a
    /// global scale is given.
    ///
    /// `min` and `max` are values of `float`; zero is taken into the range. A NaN in them comes out as NaN
    /// scale, except for power-of-two scales, where it comes out infinite.
    #[inline(always)]
    pub fn qparam(&self, min: f32, max: f32, float: Float, global_scale: Option<f32>) -> Qparam {
        if self.symmetric {
            return Qparam {
                scale: self.symmetric_scale(absolute_max(min, max), float, global_scale),
                zero_point: 0.0,
            };
        }
        let (min, max) = (propagating_min(min, 0.0), propagating_max(max, 0.0));
        let (low, high) = (self.code.low(), self.code.high());
        let scale = float.round(float.round(max - min) / float.round(high - low));
        let zero_point = float.round(low - float.round(min / scale));
        let zero_point = clamp(zero_point, low, high);
        let scale = self.finish_scale(scale, float, global_scale);
        Qparam { scale, zero_point: self.round_zero_point(zero_point) }
    }

    /// As [`qparam`](Self::qparam) for symmetric arguments, given the largest magnitude.
    #[inline(always)]
    pub fn symmetric_scale(&self, amax: f32, float: Float, global_scale: Option<f32>) -> f32 {
        if self.rule == ScaleRule::Mx {
            let exponent = mx_code(amax, float, self.code);
            let scale = float.round(power_of_two(exponent));
            return if scale == 0.0 { 1.0 } else { scale };
        }
        let (low, high) = (self.code.low(), self.code.high());
        let half = float.round(float.round(high - low) / 2.0);
        self.finish_scale(float.round(amax / half), float, global_scale)
    }

    #[inline(always)]
    fn finish_scale(&self, scale: f32, float: Float, global_scale: Option<f32>) -> f32 {
        let (scale, float) = match global_scale {
            Some(global_scale) => (global_scale * scale, Float::F32),
            None => (scale, float),
        };
        let (scale, epsilon) = match self.rule {
            ScaleRule::Cast(DType::F8E4M3) => (e4m3_to_f32(f32_to_e4m3(clamp(scale, -448.0, 448.0))), 0.125),
            ScaleRule::Cast(DType::U8) => (round_integer(clamp(scale, 0.0, 255.0)), 1.0),
            ScaleRule::Cast(DType::F16) => {
                (Float::F16.round(clamp(scale, -65504.0, 65504.0)), float.round(Float::F16.epsilon()))
            }
            ScaleRule::Cast(DType::BF16) => (Float::BF16.round(scale), float.round(Float::BF16.epsilon())),
            ScaleRule::Cast(_) => (scale, float.round(Float::F32.epsilon())),
            ScaleRule::Plain | ScaleRule::Mx => (scale, float.epsilon()),
        };
        if scale == 0.0 { epsilon } else { scale }
    }

    /// Rounds a zero point to its type; NaN becomes 0 in integer types.
    fn round_zero_point(&self, value: f32) -> f32 {
        let integer = |low: f32, high: f32| crate::numbers::round_to_int(value, low, high) as f32;
        match self.zp_dtype {
            DType::F8E4M3 => e4m3_to_f32(f32_to_e4m3(clamp(value, -448.0, 448.0))),
            DType::I16 => integer(-32768.0, 32767.0),
            DType::I32 => integer(-8_388_608.0, 8_388_607.0),
            _ => integer(-128.0, 127.0),
        }
    }
}

/// Whether the arguments select power-of-two scales stored as exponents.
pub fn is_mx(args: &QuantizationArgs) -> bool {
    args.r#type == QuantizationType::Float
        && matches!(args.num_bits, 4 | 8)
        && args.group_size == Some(32)
        && args.scale_dtype == Some(DType::U8)
}

/// Global scale of a tensor, or of tensors that share one, from its largest magnitude.
///
/// The reciprocal and its product with 2688 are each rounded to `float`; where that is not finite the scale is 1.
pub fn global_scale(amax: f32, float: Float) -> f32 {
    let amax = if amax.is_nan() { amax } else { amax.max(float.tiny()) };
    let scale = float.round(float.round(1.0 / amax) * 2688.0);
    if scale.is_finite() { scale } else { 1.0 }
}

/// The e8m0 code of a group with largest magnitude `amax`.
///
/// The exponent is taken one higher from 1.75 times a power of two. Zero and what is subnormal after that give
/// 0, and what overflows gives 255.
#[inline(always)]
pub fn mx_code(amax: f32, float: Float, code: Code) -> u8 {
    let offset = if code == Code::E2M1 { 2 } else { 8 };
    let bits = amax.to_bits() & 0x7fff_ffff;
    let exponent = (bits.wrapping_add(1 << 21) >> 23).min(255) as i32;
    let exponent = match float {
        // f16 subnormals round up to 2^-14 or down to zero, and 57344 rounds up to infinity.
        Float::F16 if bits < 0x3840_0000 => 0,
        Float::F16 if exponent > 142 => 255,
        Float::F16 => exponent.max(113),
        _ => exponent,
    };
    // A power of two p has floor(log2(p)) = exponent - 127; zero has minus infinity and infinity stays.
    match exponent {
        0 => 0,
        255 => 255,
        exponent => (exponent - offset).clamp(0, 255) as u8,
    }
}

/// 2^(code - 127), infinite for 255.
#[inline(always)]
pub fn power_of_two(code: u8) -> f32 {
    if code == 0 { f32::from_bits(0x0040_0000) } else { f32::from_bits(u32::from(code) << 23) }
}

/// The e8m0 code of a scale that is a power of two; any other scale is rounded down to one.
///
/// Scales without a code, zero, infinities and NaN, give 127 as the reference does on x86.
#[inline(always)]
pub fn power_of_two_code(scale: f32) -> u8 {
    let bits = scale.to_bits();
    let exponent = (bits >> 23) & 0xff;
    if scale == 0.0 || exponent == 255 || bits >> 31 == 1 { 127 } else { exponent as u8 }
}

/// max(|min|, |max|) with NaN kept; zero is thereby in the range.
#[inline(always)]
fn absolute_max(min: f32, max: f32) -> f32 {
    // A range that does not reach zero is extended to it, which leaves the larger magnitude as it is.
    propagating_max(min.abs(), max.abs())
}

/// The smaller value, NaN if either is.
#[inline(always)]
pub fn propagating_min(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

/// The larger value, NaN if either is.
#[inline(always)]
pub fn propagating_max(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

/// Limits to `[low, high]` and keeps NaN.
#[inline(always)]
pub fn clamp(value: f32, low: f32, high: f32) -> f32 {
    let value = if value < low { low } else { value };
    if value > high { high } else { value }
}

fn unsupported<T>(what: String) -> Result<T> {
    Err(ErrorKind::Unsupported { what }.into())
}
