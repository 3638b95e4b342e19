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
            // Adding a power of two far above the value rounds off all but the type's mantissa bits.
            let anchor = _mm512_and_epi32(
                _mm512_max_epi32(magnitude, _mm512_set1_epi32(121 << 23)),
                _mm512_set1_epi32(0x7f80_0000),
            );
            let anchor = _mm512_add_epi32(anchor, _mm512_set1_epi32(20 << 23));
            let sum = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(anchor)));
            let code = _mm512_add_epi32(_mm512_sub_epi32(sum, anchor), _mm512_srli_epi32::<20>(anchor));
            let code = _mm512_sub_epi32(code, _mm512_set1_epi32((121 + 20) << 3));
            let sign = _mm512_and_epi32(_mm512_srli_epi32::<24>(bits), _mm512_set1_epi32(128));
            _mm512_or_epi32(code, sign)
        }
    }

    #[inline(always)]
    unsafe fn e2m1_codes(self) -> __m512i {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let magnitude = _mm512_and_epi32(bits, _mm512_set1_epi32(0x7fff_ffff));
            let magnitude = _mm512_min_epi32(magnitude, _mm512_set1_epi32(0x40c0_0000));
            // Adding a power of two far above the value rounds off all but the type's mantissa bits.
            let anchor = _mm512_and_epi32(
                _mm512_max_epi32(magnitude, _mm512_set1_epi32(127 << 23)),
                _mm512_set1_epi32(0x7f80_0000),
            );
            let anchor = _mm512_add_epi32(anchor, _mm512_set1_epi32(22 << 23));
            let sum = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(anchor)));
            let code = _mm512_add_epi32(_mm512_sub_epi32(sum, anchor), _mm512_srli_epi32::<22>(anchor));
            let code = _mm512_sub_epi32(code, _mm512_set1_epi32((127 + 22) << 1));
            let sign = _mm512_and_epi32(_mm512_srli_epi32::<28>(bits), _mm512_set1_epi32(8));
            _mm512_or_epi32(code, sign)
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(codes: __m512i, to: *mut u8) {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(codes)) }
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
}
