//! Number formats: exact casts between f32 and the 16-, 8- and 4-bit types, and typed little-endian bytes.
//!
//! All casts round to nearest, ties to even, and keep subnormals; none calls the platform's math library.

use crate::{DType, ErrorKind, Result};

/// A dense type in which weights, scales and activations are computed.
///
/// An operation on one of them widens to f32, computes there, and rounds the f32 result back with
/// [`Float::round`]; two roundings take place on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// bfloat16.
    BF16,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
}

impl Float {
    /// The dense type behind `dtype`.
    ///
    /// # Errors
    /// [`ErrorKind::DType`] naming `tensor` for every dtype but bf16, f16 and f32.
    pub fn of(dtype: DType, tensor: &str) -> Result<Self> {
        match dtype {
            DType::BF16 => Ok(Self::BF16),
            DType::F16 => Ok(Self::F16),
            DType::F32 => Ok(Self::F32),
            found => {
                Err(ErrorKind::DType { tensor: tensor.to_owned(), found, expected: "BF16, F16 or F32".to_owned() }
                    .into())
            }
        }
    }

    /// The stored type.
    pub fn dtype(self) -> DType {
        match self {
            Self::BF16 => DType::BF16,
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
        }
    }

    /// Rounds an f32 to this type, overflow going to infinity.
    #[inline(always)]
    pub fn round(self, value: f32) -> f32 {
        match self {
            Self::BF16 => round_bf16(value),
            Self::F16 => round_f16(value),
            Self::F32 => value,
        }
    }

    /// Distance from 1 to the next larger value; what a scale of zero becomes.
    pub fn epsilon(self) -> f32 {
        match self {
            Self::BF16 => f32::from_bits(0x3c00_0000),
            Self::F16 => f32::from_bits(0x3a80_0000),
            Self::F32 => f32::EPSILON,
        }
    }

    /// Smallest positive normal value.
    pub fn tiny(self) -> f32 {
        match self {
            Self::BF16 | Self::F32 => f32::MIN_POSITIVE,
            Self::F16 => f32::from_bits(0x3880_0000),
        }
    }

    /// The type of the result of an operation on two tensors: equal types stay, any mix is f32.
    pub fn promote(self, other: Self) -> Self {
        if self == other { self } else { Self::F32 }
    }
}

/// Rounds to the bf16 grid.
#[inline(always)]
pub fn round_bf16(value: f32) -> f32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000;
    f32::from_bits(if value.is_nan() { 0x7fc0_0000 } else { rounded })
}

/// Rounds to the f16 grid; magnitudes from 65520 become infinite.
#[inline(always)]
pub fn round_f16(value: f32) -> f32 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let normal = magnitude.wrapping_add(0xfff + ((magnitude >> 13) & 1)) & !0x1fff;
    // Below 2^-14 the grid is 2^-24 wide, which is the last place of f32 values from 0.5 to 1.
    let subnormal = ((f32::from_bits(magnitude) + 0.5) - 0.5).to_bits();
    let finite = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let rounded = if magnitude >= 0x477f_f000 { 0x7f80_0000 } else { finite };
    let rounded = if magnitude > 0x7f80_0000 { 0x7fc0_0000 } else { rounded };
    f32::from_bits(rounded | (bits & 0x8000_0000))
}

/// The bf16 pattern nearest to `value`.
#[inline(always)]
pub fn f32_to_bf16(value: f32) -> u16 {
    (round_bf16(value).to_bits() >> 16) as u16
}

/// The value of a bf16 pattern.
#[inline(always)]
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The f16 pattern nearest to `value`.
#[inline(always)]
pub fn f32_to_f16(value: f32) -> u16 {
    let bits = round_f16(value).to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let normal = (magnitude >> 13).wrapping_sub(112 << 10);
    // A multiple of 2^-24 added to 0.5 leaves that multiple in the low bits.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits() & 0x7ff;
    let code = if magnitude < 0x3880_0000 { subnormal } else { normal };
    let code = if magnitude >= 0x7f80_0000 { 0x7c00 | ((magnitude >> 13) & 0x3ff) } else { code };
    (code | ((bits >> 16) & 0x8000)) as u16
}

/// The value of an f16 pattern.
#[inline(always)]
pub fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff);
    // Shifted into place the exponent is 112 too small; the product corrects it, exactly, subnormals included.
    let finite = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    let special = f32::from_bits((magnitude << 13) | 0x7f80_0000);
    let value = if magnitude >= 0x7c00 { special } else { finite };
    f32::from_bits(value.to_bits() | (u32::from(bits & 0x8000) << 16))
}

/// The e4m3fn code nearest to `value`; magnitudes above 464 and NaN become the NaN code.
///
/// The sign is kept, also of zero.
#[inline(always)]
pub fn f32_to_e4m3(value: f32) -> u8 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let bounded = magnitude.min(0x43f0_0000);
    // Adding 2^20 times the value's power of two, at least 2^-6, rounds off all but three mantissa bits.
    let anchor = (bounded.max(121 << 23) & 0x7f80_0000) + (20 << 23);
    let sum = (f32::from_bits(bounded) + f32::from_bits(anchor)).to_bits();
    let code = sum.wrapping_sub(anchor).wrapping_add(anchor >> 20).wrapping_sub((121 + 20) << 3);
    (code.min(0x7f) | ((bits >> 24) & 0x80)) as u8
}

/// The value of an e4m3fn code.
#[inline(always)]
pub fn e4m3_to_f32(code: u8) -> f32 {
    let magnitude = u32::from(code & 0x7f);
    let normal = f32::from_bits((magnitude << 20) + (120 << 23));
    // Below 2^-6 the code counts steps of 2^-9, which are the last three bits above 2^-6 as well. No operand is a
    // subnormal f32, which some CPUs compute slowly.
    let subnormal = f32::from_bits((magnitude << 20) | (121 << 23)) - f32::from_bits(121 << 23);
    let value = if magnitude < 8 { subnormal } else { normal };
    let value = if magnitude == 0x7f { f32::NAN } else { value };
    f32::from_bits(value.to_bits() | (u32::from(code & 0x80) << 24))
}

/// The e5m2 code nearest to `value`, overflow going to infinity.
#[inline(always)]
pub fn f32_to_e5m2(value: f32) -> u8 {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    let bounded = magnitude.min(0x4780_0000);
    let anchor = (bounded.max(113 << 23) & 0x7f80_0000) + (21 << 23);
    let sum = (f32::from_bits(bounded) + f32::from_bits(anchor)).to_bits();
    let code = ((sum - anchor) + (anchor >> 21) - ((113 + 21) << 2)).min(0x7c);
    let code = if magnitude > 0x7f80_0000 { 0x7f } else { code };
    (code | ((bits >> 24) & 0x80)) as u8
}

/// The value of an e5m2 code.
#[inline(always)]
pub fn e5m2_to_f32(code: u8) -> f32 {
    f16_to_f32(u16::from(code) << 8)
}

/// The e8m0 code of a power of two near `value`: ties to even, NaN and infinity to 255, the sign is dropped.
#[inline(always)]
pub fn f32_to_e8m0(value: f32) -> u8 {
    let magnitude = value.to_bits() & 0x7fff_ffff;
    let exponent = magnitude >> 23;
    let fraction = magnitude & 0x007f_ffff;
    if exponent == 255 {
        return 255;
    }
    let above = fraction > 0x0040_0000;
    let tie = fraction == 0x0040_0000 && exponent & 1 == 1;
    (exponent + u32::from(above || tie)) as u8
}

/// The value 2^(code - 127) of an e8m0 code, 255 being NaN.
#[inline(always)]
pub fn e8m0_to_f32(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// Magnitudes of e2m1 by code.
pub const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The e2m1 code of `value`: magnitude index in bits 0 to 2, sign in bit 3.
///
/// Zero of either sign gives 0, a negative value that rounds to zero gives 8, and NaN gives 0.
#[inline(always)]
pub fn f32_to_e2m1(value: f32) -> u8 {
    let m = value.abs();
    let idx = u8::from(m > 0.25)
        + u8::from(m >= 0.75)
        + u8::from(m > 1.25)
        + u8::from(m >= 1.75)
        + u8::from(m > 2.5)
        + u8::from(m >= 3.5)
        + u8::from(m > 5.0);
    idx | (u8::from(value < 0.0) << 3)
}

/// The value of the low four bits of `code`.
#[inline(always)]
pub fn e2m1_to_f32(code: u8) -> f32 {
    let magnitude = E2M1[usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// Rounds to an integer, ties to even, and keeps the sign; NaN stays.
#[inline(always)]
pub fn round_integer(value: f32) -> f32 {
    // From 2^23 every value is an integer, so adding that much rounds. The standard library's function is a
    // call into the platform's math library where the CPU's baseline lacks the instruction.
    let magnitude = value.abs();
    let rounded = (magnitude + 8_388_608.0) - 8_388_608.0;
    let rounded = if magnitude < 8_388_608.0 { rounded } else { magnitude };
    f32::from_bits(rounded.to_bits() | (value.to_bits() & 0x8000_0000))
}

/// Rounds to an integer in `[low, high]`, ties to even; NaN gives 0.
#[inline(always)]
pub fn round_to_int(value: f32, low: f32, high: f32) -> i32 {
    if value.is_nan() { 0 } else { round_integer(value.max(low).min(high)) as i32 }
}

/// Reads little-endian values of `dtype` as f32.
///
/// Covers bool, u8, i8, i16, u16, i32, i64, bf16, f16, f32, f64, e4m3, e5m2 and e8m0; the wide
/// integers and f64 are rounded. Reads as many values as `out` holds.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for another dtype or for too few bytes.
pub fn read_f32(dtype: DType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
        for (chunk, out) in bytes.as_chunks::<N>().0.iter().zip(out) {
            *out = value(*chunk);
        }
    }
    if dtype.byte_len(out.len()).is_none_or(|needed| needed > bytes.len()) {
        let what = format!("reading {} values of {dtype} from {} bytes", out.len(), bytes.len());
        return Err(ErrorKind::Unsupported { what }.into());
    }
    match dtype {
        DType::BF16 => each(bytes, out, |b| bf16_to_f32(u16::from_le_bytes(b))),
        DType::F16 => each(bytes, out, |b| f16_to_f32(u16::from_le_bytes(b))),
        DType::F32 => each(bytes, out, f32::from_le_bytes),
        DType::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        DType::F8E4M3 => each(bytes, out, |[b]| e4m3_to_f32(b)),
        DType::F8E5M2 => each(bytes, out, |[b]| e5m2_to_f32(b)),
        DType::F8E8M0 => each(bytes, out, |[b]| e8m0_to_f32(b)),
        DType::Bool | DType::U8 => each(bytes, out, |[b]| f32::from(b)),
        DType::I8 => each(bytes, out, |[b]| f32::from(b as i8)),
        DType::I16 => each(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        DType::U16 => each(bytes, out, |b| f32::from(u16::from_le_bytes(b))),
        DType::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        DType::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        other => return Err(ErrorKind::Unsupported { what: format!("reading {other} as numbers") }.into()),
    }
    Ok(())
}

/// Writes f32 values as little-endian `dtype`, rounding to nearest, ties to even.
///
/// Integers saturate and take NaN as 0; e4m3 beyond 464 becomes NaN, so callers clamp first.
/// `out` has exactly the bytes that the values need.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a dtype that [`read_f32`] does not read, or for a buffer of another size.
pub fn write_f32(dtype: DType, values: &[f32], out: &mut [u8]) -> Result<()> {
    fn each<const N: usize>(values: &[f32], out: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
        for (chunk, value) in out.as_chunks_mut::<N>().0.iter_mut().zip(values) {
            *chunk = bytes(*value);
        }
    }
    if dtype.byte_len(values.len()) != Some(out.len()) {
        let what = format!("writing {} values of {dtype} into {} bytes", values.len(), out.len());
        return Err(ErrorKind::Unsupported { what }.into());
    }
    match dtype {
        DType::BF16 => each(values, out, |v| f32_to_bf16(v).to_le_bytes()),
        DType::F16 => each(values, out, |v| f32_to_f16(v).to_le_bytes()),
        DType::F32 => each(values, out, f32::to_le_bytes),
        DType::F64 => each(values, out, |v| f64::from(v).to_le_bytes()),
        DType::F8E4M3 => each(values, out, |v| [f32_to_e4m3(v)]),
        DType::F8E5M2 => each(values, out, |v| [f32_to_e5m2(v)]),
        DType::F8E8M0 => each(values, out, |v| [f32_to_e8m0(v)]),
        DType::U8 => each(values, out, |v| [round_integer(v) as u8]),
        DType::I8 => each(values, out, |v| [round_integer(v) as i8 as u8]),
        DType::I16 => each(values, out, |v| (round_integer(v) as i16).to_le_bytes()),
        DType::U16 => each(values, out, |v| (round_integer(v) as u16).to_le_bytes()),
        DType::I32 => each(values, out, |v| (round_integer(v) as i32).to_le_bytes()),
        DType::I64 => each(values, out, |v| (round_integer(v) as i64).to_le_bytes()),
        other => return Err(ErrorKind::Unsupported { what: format!("writing numbers as {other}") }.into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep() -> impl Iterator<Item = f32> {
        // Every 16-bit prefix with low halves at and around each format's ties.
        let lows = [0u32, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff];
        (0..=0xffffu32).flat_map(move |high| lows.map(|low| f32::from_bits((high << 16) | low)))
    }

    #[test]
    fn sixteen_bit_casts_agree_with_the_half_crate() {
        for v in sweep().filter(|v| !v.is_nan()) {
            assert_eq!(f32_to_bf16(v), half::bf16::from_f32(v).to_bits(), "{v:e}");
            assert_eq!(f32_to_f16(v), half::f16::from_f32(v).to_bits(), "{v:e}");
            assert_eq!(round_f16(v).to_bits(), half::f16::from_f32(v).to_f32().to_bits(), "{v:e}");
        }
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_to_f32(bits), half::f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()), "{bits:#x}");
        }
    }

    fn nearest(table: &[f32], m: f32) -> usize {
        // Ties go to the even code.
        (0..table.len())
            .min_by(|&a, &b| {
                let d = |i: usize| (f64::from(table[i]) - f64::from(m)).abs();
                d(a).total_cmp(&d(b)).then((a % 2).cmp(&(b % 2)))
            })
            .unwrap()
    }

    #[test]
    fn e4m3_and_e5m2_are_nearest_with_ties_to_even() {
        let e4m3: Vec<f32> = (0..127).map(e4m3_to_f32).collect();
        let e5m2: Vec<f32> = (0..124).map(e5m2_to_f32).collect();
        for v in sweep().step_by(7).filter(|v| !v.is_nan()) {
            let sign = if v.is_sign_negative() { 0x80 } else { 0 };
            if v.abs() <= 464.0 {
                assert_eq!(usize::from(f32_to_e4m3(v)), nearest(&e4m3, v.abs()) | sign, "{v:e}");
            } else {
                assert_eq!(f32_to_e4m3(v) & 0x7f, 0x7f);
            }
            if v.abs() < 61440.0 {
                assert_eq!(usize::from(f32_to_e5m2(v)), nearest(&e5m2, v.abs()) | sign, "{v:e}");
            } else {
                assert_eq!(f32_to_e5m2(v) & 0x7f, 0x7c);
            }
        }
        assert!(e4m3_to_f32(f32_to_e4m3(f32::NAN)).is_nan() && e5m2_to_f32(f32_to_e5m2(f32::NAN)).is_nan());
        assert_eq!((e4m3_to_f32(0x7e), e4m3_to_f32(1)), (448.0, 1.0 / 512.0));
    }

    #[test]
    fn e8m0_codes_come_back_and_round_to_even() {
        for code in 0..255u8 {
            // Code 0 stands for a subnormal, which rounds like the fraction it is.
            assert_eq!(f32_to_e8m0(e8m0_to_f32(code)), code);
        }
        assert_eq!([1.5, 3.0, 1.25, 1.75].map(f32_to_e8m0), [128, 128, 127, 128]);
        assert_eq!(f32_to_e8m0(f32::INFINITY), 255);
    }

    #[test]
    fn integers_round_as_the_standard_library_says() {
        for v in sweep().filter(|v| !v.is_nan()) {
            assert_eq!(round_integer(v).to_bits(), v.round_ties_even().to_bits(), "{v:e}");
        }
        for half in -1000..1000 {
            let v = half as f32 / 2.0;
            assert_eq!(round_integer(v), v.round_ties_even());
        }
    }

    #[test]
    fn integers_saturate_and_take_nan_as_zero() {
        let mut out = [0u8; 4];
        write_f32(DType::I8, &[f32::NAN, 300.0, -2.5, 1.5], &mut out).unwrap();
        assert_eq!(out, [0, 127, 254, 2]);
        assert_eq!(round_to_int(f32::NAN, -8.0, 7.0), 0);
        assert_eq!([-9.0, 2.5, 7.4].map(|v| round_to_int(v, -8.0, 7.0)), [-8, 2, 7]);
    }

    #[test]
    fn short_buffers_and_opaque_dtypes_are_refused() {
        assert!(matches!(
            read_f32(DType::F32, &[0; 7], &mut [0.0; 2]).unwrap_err().kind(),
            ErrorKind::Unsupported { .. }
        ));
        assert!(read_f32(DType::F4, &[0; 2], &mut [0.0; 4]).is_err());
        assert!(write_f32(DType::F32, &[0.0], &mut [0; 3]).is_err());
    }
}
