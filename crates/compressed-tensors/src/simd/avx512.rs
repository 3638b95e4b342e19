//! Sixteen lanes by AVX-512.

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// Sixteen lanes by AVX-512.
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

impl Lanes for Avx512 {
    const N: usize = 16;
    type Codes = __m512i;

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())))))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u8) -> [Self; 2] {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let pairs = _mm512_loadu_si512(from.cast());
            let odd = _mm512_and_epi32(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))), Self(_mm512_castsi512_ps(odd))]
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { Self(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { Self(_mm512_loadu_ps(from.cast())) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { Self(_mm512_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn halves(low: f32, high: f32) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { Self(_mm512_mask_mov_ps(_mm512_set1_ps(low), 0xff00, _mm512_set1_ps(high))) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { Self(_mm512_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { Self(_mm512_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { Self(_mm512_div_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn quotient(self, divisor: Self, reciprocal: Self) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            // What the product leaves of the numerator is exact; it makes up for both roundings.
            let product = _mm512_mul_ps(self.0, reciprocal.0);
            let left = _mm512_fnmadd_ps(product, divisor.0, self.0);
            Self(_mm512_fmadd_ps(left, reciprocal.0, product))
        }
    }

    #[inline(always)]
    unsafe fn round_bf16(self) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let odd = _mm512_and_epi32(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            Self(_mm512_castsi512_ps(_mm512_and_epi32(sum, _mm512_set1_epi32(0xffff_0000_u32 as i32))))
        }
    }

    #[inline(always)]
    unsafe fn round_bf16_down(self) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let bits = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(0x7fff));
            Self(_mm512_castsi512_ps(_mm512_and_epi32(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32))))
        }
    }

    #[inline(always)]
    unsafe fn round_f16(self) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let half = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0);
            Self(_mm512_cvtph_ps(half))
        }
    }

    #[inline(always)]
    unsafe fn int_codes(self, low: Self, high: Self) -> __m512i {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(self.0, low.0), high.0)) }
    }

    #[inline(always)]
    unsafe fn e4m3_codes(self) -> __m512i {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let magnitude = _mm512_and_epi32(bits, _mm512_set1_epi32(0x7fff_ffff));
            let magnitude = _mm512_min_epi32(magnitude, _mm512_set1_epi32(0x43e0_0000));
            let exponent = _mm512_and_epi32(
                _mm512_max_epi32(magnitude, _mm512_set1_epi32(121 << 23)),
                _mm512_set1_epi32(0x7f80_0000),
            );
            // Adding a power of two far above the value rounds off all but the type's mantissa bits and leaves
            // them at the bottom; 152 more cancels the exponent's bias there.
            let anchor = _mm512_add_epi32(exponent, _mm512_set1_epi32((20 << 23) + 152));
            let sum = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(anchor)));
            let code = _mm512_add_epi32(sum, _mm512_srli_epi32::<20>(anchor));
            let sign = _mm512_srli_epi32::<24>(bits);
            // The sign's bit from `sign`, all others from `code`.
            _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi32(128), sign, code)
        }
    }

    #[inline(always)]
    unsafe fn e2m1_codes(self) -> __m512i {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let magnitude = _mm512_and_epi32(bits, _mm512_set1_epi32(0x7fff_ffff));
            let magnitude = _mm512_min_epi32(magnitude, _mm512_set1_epi32(0x40c0_0000));
            let exponent = _mm512_and_epi32(
                _mm512_max_epi32(magnitude, _mm512_set1_epi32(127 << 23)),
                _mm512_set1_epi32(0x7f80_0000),
            );
            // Adding a power of two far above the value rounds off all but the type's mantissa bits and leaves
            // them at the bottom; 6 more cancels the exponent's bias there.
            let anchor = _mm512_add_epi32(exponent, _mm512_set1_epi32((22 << 23) + 6));
            let sum = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(anchor)));
            let code = _mm512_add_epi32(sum, _mm512_srli_epi32::<22>(anchor));
            let sign = _mm512_srli_epi32::<28>(bits);
            // The sign's bit from `sign`, all others from `code`.
            _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi32(8), sign, code)
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(codes: __m512i, to: *mut u8) {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { _mm512_mask_cvtepi32_storeu_epi8(to.cast(), 0xffff, codes) }
    }

    #[inline(always)]
    unsafe fn store_nibbles(codes: __m512i, offset: i32, to: *mut u8) {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let codes =
                _mm512_and_epi32(_mm512_add_epi32(codes, _mm512_set1_epi32(8 * offset)), _mm512_set1_epi32(0xf));
            // Even lanes count once and odd ones sixteen times, in 16-bit sums below 256.
            let sums = _mm_maddubs_epi16(_mm512_cvtepi32_epi8(codes), _mm_set1_epi16(0x1001));
            _mm_storel_epi64(to.cast(), _mm_packus_epi16(sums, sums));
        }
    }

    #[inline(always)]
    unsafe fn store_byte_pairs(codes: [__m512i; 2], to: *mut u8) {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            // The low byte from the even codes, the next from the odd ones.
            let odd = _mm512_slli_epi32::<8>(codes[1]);
            let pairs = _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi32(0xff), codes[0], odd);
            _mm512_mask_cvtepi32_storeu_epi16(to.cast(), 0xffff, pairs);
        }
    }

    #[inline(always)]
    unsafe fn store_nibble_pairs(codes: [__m512i; 2], offset: i32, to: *mut u8) {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            // The low nibble from the even codes, the next from the odd ones.
            let odd = _mm512_slli_epi32::<4>(codes[1]);
            let pairs = _mm512_ternarylogic_epi32::<0xca>(_mm512_set1_epi32(0xf), codes[0], odd);
            // Adding 8 to a nibble flips its top bit.
            let pairs = _mm512_xor_epi32(pairs, _mm512_set1_epi32(offset * 0x88));
            _mm512_mask_cvtepi32_storeu_epi8(to.cast(), 0xffff, pairs);
        }
    }
}
