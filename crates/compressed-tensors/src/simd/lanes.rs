//! What a kernel asks of a vector type, and the portable vector.

use crate::numbers::{bf16_to_f32, f16_to_f32, f32_to_e2m1, f32_to_e4m3, round_bf16, round_f16};

/// A vector of `N` f32 lanes, and of as many codes.
///
/// # Safety
/// Every function may be called only on a CPU that has the implementation's instruction set; those that take a
/// pointer read or write the stated number of bytes there.
pub(super) trait Lanes: Copy {
    /// Number of lanes, a multiple of 8.
    const N: usize;

    /// One 32-bit integer per lane.
    type Codes: Copy;

    /// Reads `2 * N` bytes of bf16.
    unsafe fn load_bf16(from: *const u8) -> Self;
    /// Reads `4 * N` bytes of bf16: the even elements, then the odd ones.
    unsafe fn load_bf16_pairs(from: *const u8) -> [Self; 2];
    /// Reads `2 * N` bytes of f16.
    unsafe fn load_f16(from: *const u8) -> Self;
    /// Reads `4 * N` bytes of f32.
    unsafe fn load_f32(from: *const u8) -> Self;
    /// The same value in all lanes.
    unsafe fn splat(value: f32) -> Self;
    /// One value in the lower half of the lanes, another in the upper half.
    unsafe fn halves(low: f32, high: f32) -> Self;
    /// Lane-wise sum.
    unsafe fn add(self, other: Self) -> Self;
    /// Lane-wise product.
    unsafe fn mul(self, other: Self) -> Self;
    /// Lane-wise quotient.
    unsafe fn div(self, other: Self) -> Self;
    /// Lane-wise quotient of bf16 values by f32 divisors, given the reciprocals; neither it nor a step is infinite.
    unsafe fn quotient(self, divisor: Self, reciprocal: Self) -> Self;
    /// Rounds to bf16, ties to even; lanes are not NaN.
    unsafe fn round_bf16(self) -> Self;
    /// Rounds to bf16, ties towards zero; lanes are not NaN.
    unsafe fn round_bf16_down(self) -> Self;
    /// Rounds to f16, ties to even.
    unsafe fn round_f16(self) -> Self;
    /// Integers in `[low, high]`, ties to even; lanes are not NaN.
    unsafe fn int_codes(self, low: Self, high: Self) -> Self::Codes;
    /// e4m3 codes, in the low byte, of values that saturate at 448.
    unsafe fn e4m3_codes(self) -> Self::Codes;
    /// e2m1 codes, in the low nibble, of values that saturate at 6; no lane is -0.
    unsafe fn e2m1_codes(self) -> Self::Codes;
    /// Writes the low byte of each code, `N` bytes.
    unsafe fn store_bytes(codes: Self::Codes, to: *mut u8);
    /// Writes the low nibble of each code plus 8 times `offset`, `N / 2` bytes, even lanes low.
    unsafe fn store_nibbles(codes: Self::Codes, offset: i32, to: *mut u8);
    /// As `store_bytes` for even and odd elements, `2 * N` bytes.
    unsafe fn store_byte_pairs(codes: [Self::Codes; 2], to: *mut u8);
    /// As `store_nibbles` for even and odd elements, `N` bytes.
    unsafe fn store_nibble_pairs(codes: [Self::Codes; 2], offset: i32, to: *mut u8);
}

/// Eight lanes in plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) -> Self {
        let mut out = self.0;
        for lane in &mut out {
            *lane = f(*lane);
        }
        Self(out)
    }

    #[inline(always)]
    fn codes(self, f: impl Fn(f32) -> i32) -> [i32; 8] {
        // A loop, since `array::map` is not unrolled.
        let mut out = [0; 8];
        for (out, lane) in out.iter_mut().zip(self.0) {
            *out = f(lane);
        }
        out
    }

    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        let mut out = self.0;
        for (a, b) in out.iter_mut().zip(other.0) {
            *a = f(*a, b);
        }
        Self(out)
    }
}

#[inline(always)]
unsafe fn read<const BYTES: usize>(from: *const u8) -> [u8; BYTES] {
    // SAFETY: the caller vouches for `BYTES` readable bytes; bytes need no alignment.
    unsafe { from.cast::<[u8; BYTES]>().read() }
}

impl Lanes for Portable {
    const N: usize = 8;
    type Codes = [i32; 8];

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for 16 readable bytes.
        let bytes = unsafe { read::<16>(from) };
        let mut out = [0.0; 8];
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *out = bf16_to_f32(u16::from_le_bytes(*bytes));
        }
        Self(out)
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u8) -> [Self; 2] {
        // SAFETY: the caller vouches for 32 readable bytes.
        let bytes = unsafe { read::<32>(from) };
        let (mut even, mut odd) = ([0.0; 8], [0.0; 8]);
        for ((even, odd), bytes) in even.iter_mut().zip(&mut odd).zip(bytes.as_chunks::<4>().0) {
            let pair = u32::from_le_bytes(*bytes);
            *even = f32::from_bits(pair << 16);
            *odd = f32::from_bits(pair & 0xffff_0000);
        }
        [Self(even), Self(odd)]
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for 16 readable bytes.
        let bytes = unsafe { read::<16>(from) };
        let mut out = [0.0; 8];
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *out = f16_to_f32(u16::from_le_bytes(*bytes));
        }
        Self(out)
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self {
        // SAFETY: the caller vouches for 32 readable bytes.
        let bytes = unsafe { read::<32>(from) };
        let mut out = [0.0; 8];
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *out = f32::from_le_bytes(*bytes);
        }
        Self(out)
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; 8])
    }

    #[inline(always)]
    unsafe fn halves(low: f32, high: f32) -> Self {
        Self([low, low, low, low, high, high, high, high])
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn quotient(self, divisor: Self, _: Self) -> Self {
        self.zip(divisor, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn round_bf16(self) -> Self {
        self.map(round_bf16)
    }

    #[inline(always)]
    unsafe fn round_bf16_down(self) -> Self {
        self.map(|v| f32::from_bits(v.to_bits().wrapping_add(0x7fff) & 0xffff_0000))
    }

    #[inline(always)]
    unsafe fn round_f16(self) -> Self {
        self.map(round_f16)
    }

    #[inline(always)]
    unsafe fn int_codes(self, low: Self, high: Self) -> [i32; 8] {
        let clamped = self.zip(low, |v, low| if v < low { low } else { v });
        let clamped = clamped.zip(high, |v, high| if v > high { high } else { v });
        // Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the low bits.
        clamped.codes(|v| ((v + 12_582_912.0).to_bits() as i32).wrapping_sub(0x4b40_0000))
    }

    #[inline(always)]
    unsafe fn e4m3_codes(self) -> [i32; 8] {
        self.codes(|v| {
            let v = if v > 448.0 { 448.0 } else { v };
            i32::from(f32_to_e4m3(if v < -448.0 { -448.0 } else { v }))
        })
    }

    #[inline(always)]
    unsafe fn e2m1_codes(self) -> [i32; 8] {
        self.codes(|v| i32::from(f32_to_e2m1(v)))
    }

    #[inline(always)]
    unsafe fn store_bytes(codes: [i32; 8], to: *mut u8) {
        let mut out = [0u8; 8];
        for (out, code) in out.iter_mut().zip(codes) {
            *out = code as u8;
        }
        // SAFETY: the caller vouches for 8 writable bytes.
        unsafe { to.cast::<[u8; 8]>().write(out) }
    }

    #[inline(always)]
    unsafe fn store_nibbles(codes: [i32; 8], offset: i32, to: *mut u8) {
        let mut out = [0u8; 4];
        for (out, pair) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
            *out = nibbles(pair[0], pair[1], offset);
        }
        // SAFETY: the caller vouches for 4 writable bytes.
        unsafe { to.cast::<[u8; 4]>().write(out) }
    }

    #[inline(always)]
    unsafe fn store_byte_pairs(codes: [[i32; 8]; 2], to: *mut u8) {
        let mut out = [0u8; 16];
        for ((out, even), odd) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes[0]).zip(codes[1]) {
            *out = [even as u8, odd as u8];
        }
        // SAFETY: the caller vouches for 16 writable bytes.
        unsafe { to.cast::<[u8; 16]>().write(out) }
    }

    #[inline(always)]
    unsafe fn store_nibble_pairs(codes: [[i32; 8]; 2], offset: i32, to: *mut u8) {
        let mut out = [0u8; 8];
        for ((out, even), odd) in out.iter_mut().zip(codes[0]).zip(codes[1]) {
            *out = nibbles(even, odd, offset);
        }
        // SAFETY: the caller vouches for 8 writable bytes.
        unsafe { to.cast::<[u8; 8]>().write(out) }
    }
}

/// Low nibbles of two codes; an offset of 8 flips their top bits.
#[inline(always)]
fn nibbles(even: i32, odd: i32, offset: i32) -> u8 {
    ((even & 0xf) | (odd & 0xf) << 4) as u8 ^ (offset * 0x88) as u8
}
