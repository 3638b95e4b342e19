//! Eight lanes by AVX2 and F16C.

use std::arch::x86_64::*;

use super::lanes::Lanes;

/// Eight lanes by AVX2 and F16C.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256);

impl Lanes for Avx2 {
    const N: usize = 8;
    type Codes = __m256i;

    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())))))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(from: *const u8) -> [Self; 2] {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let pairs = _mm256_loadu_si256(from.cast());
            let odd = _mm256_and_si256(pairs, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            [Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))), Self(_mm256_castsi256_ps(odd))]
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { Self(_mm256_cvtph_ps(_mm_loadu_si128(from.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_f32(from: *const u8) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { Self(_mm256_loadu_ps(from.cast())) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { Self(_mm256_set1_ps(value)) }
    }

    #[inline(always)]
    unsafe fn halves(low: f32, high: f32) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { Self(_mm256_set_m128(_mm_set1_ps(high), _mm_set1_ps(low))) }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { Self(_mm256_add_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { Self(_mm256_mul_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { Self(_mm256_div_ps(self.0, other.0)) }
    }

    #[inline(always)]
    unsafe fn quotient(self, divisor: Self, reciprocal: Self) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            // What the product leaves of the numerator is exact; it makes up for both roundings.
            let product = _mm256_mul_ps(self.0, reciprocal.0);
            let left = _mm256_fnmadd_ps(product, divisor.0, self.0);
            Self(_mm256_fmadd_ps(left, reciprocal.0, product))
        }
    }

    #[inline(always)]
    unsafe fn round_bf16(self) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
            Self(_mm256_castsi256_ps(_mm256_and_si256(sum, _mm256_set1_epi32(0xffff_0000_u32 as i32))))
        }
    }

    #[inline(always)]
    unsafe fn round_bf16_down(self) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let bits = _mm256_add_epi32(_mm256_castps_si256(self.0), _mm256_set1_epi32(0x7fff));
            Self(_mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(0xffff_0000_u32 as i32))))
        }
    }

    #[inline(always)]
    unsafe fn round_f16(self) -> Self {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let half = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
            Self(_mm256_cvtph_ps(half))
        }
    }

    #[inline(always)]
    unsafe fn int_codes(self, low: Self, high: Self) -> __m256i {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe { _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(self.0, low.0), high.0)) }
    }

    #[inline(always)]
    unsafe fn e4m3_codes(self) -> __m256i {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fff_ffff));
            let magnitude = _mm256_min_epi32(magnitude, _mm256_set1_epi32(0x43e0_0000));
            let exponent = _mm256_and_si256(
                _mm256_max_epi32(magnitude, _mm256_set1_epi32(121 << 23)),
                _mm256_set1_epi32(0x7f80_0000),
            );
            // Adding a power of two far above the value rounds off all but the type's mantissa bits and leaves
            // them at the bottom; 152 more cancels the exponent's bias there.
            let anchor = _mm256_add_epi32(exponent, _mm256_set1_epi32((20 << 23) + 152));
            let sum = _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_castsi256_ps(anchor)));
            let code = _mm256_add_epi32(sum, _mm256_srli_epi32::<20>(anchor));
            let sign = _mm256_srli_epi32::<24>(bits);
            let sign = _mm256_and_si256(sign, _mm256_set1_epi32(128));
            _mm256_or_si256(_mm256_andnot_si256(_mm256_set1_epi32(128), code), sign)
        }
    }

    #[inline(always)]
    unsafe fn e2m1_codes(self) -> __m256i {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let bits = _mm256_castps_si256(self.0);
            let magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fff_ffff));
            let magnitude = _mm256_min_epi32(magnitude, _mm256_set1_epi32(0x40c0_0000));
            let exponent = _mm256_and_si256(
                _mm256_max_epi32(magnitude, _mm256_set1_epi32(127 << 23)),
                _mm256_set1_epi32(0x7f80_0000),
            );
            // Adding a power of two far above the value rounds off all but the type's mantissa bits and leaves
            // them at the bottom; 6 more cancels the exponent's bias there.
            let anchor = _mm256_add_epi32(exponent, _mm256_set1_epi32((22 << 23) + 6));
            let sum = _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_castsi256_ps(anchor)));
            let code = _mm256_add_epi32(sum, _mm256_srli_epi32::<22>(anchor));
            let sign = _mm256_srli_epi32::<28>(bits);
            let sign = _mm256_and_si256(sign, _mm256_set1_epi32(8));
            _mm256_or_si256(_mm256_andnot_si256(_mm256_set1_epi32(8), code), sign)
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(codes: __m256i, to: *mut u8) {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            // The low bytes of each half come together, then the halves.
            let low = _mm256_set1_epi64x(0x0c08_0400);
            let halves = _mm256_shuffle_epi8(codes, low);
            let bytes = _mm_unpacklo_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            _mm_storel_epi64(to.cast(), bytes);
        }
    }

    #[inline(always)]
    unsafe fn store_nibbles(codes: __m256i, offset: i32, to: *mut u8) {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let codes =
                _mm256_and_si256(_mm256_add_epi32(codes, _mm256_set1_epi32(8 * offset)), _mm256_set1_epi32(0xf));
            // The low bytes of each half come together, then the halves.
            let low = _mm256_set1_epi64x(0x0c08_0400);
            let halves = _mm256_shuffle_epi8(codes, low);
            let bytes = _mm_unpacklo_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            // Even lanes count once and odd ones sixteen times, in 16-bit sums below 256.
            let sums = _mm_maddubs_epi16(bytes, _mm_set1_epi16(0x1001));
            let word = _mm_cvtsi128_si32(_mm_packus_epi16(sums, sums));
            to.cast::<[u8; 4]>().write(word.to_le_bytes());
        }
    }

    #[inline(always)]
    unsafe fn store_byte_pairs(codes: [__m256i; 2], to: *mut u8) {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let even = _mm256_and_si256(codes[0], _mm256_set1_epi32(0xff));
            let odd = _mm256_and_si256(_mm256_slli_epi32::<8>(codes[1]), _mm256_set1_epi32(0xff00));
            let pairs = _mm256_or_si256(even, odd);
            // Packing works within halves; the permutation joins their results.
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(pairs, pairs));
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed));
        }
    }

    #[inline(always)]
    unsafe fn store_nibble_pairs(codes: [__m256i; 2], offset: i32, to: *mut u8) {
        // SAFETY: the caller vouches for the instruction set and for the bytes behind a pointer.
        unsafe {
            let even = _mm256_and_si256(codes[0], _mm256_set1_epi32(0xf));
            let pairs = _mm256_or_si256(even, _mm256_slli_epi32::<4>(codes[1]));
            // Adding 8 to a nibble flips its top bit.
            let pairs = _mm256_xor_si256(pairs, _mm256_set1_epi32(offset * 0x88));
            // The low bytes of each half come together, then the halves.
            let halves = _mm256_shuffle_epi8(pairs, _mm256_set1_epi64x(0x0c08_0400));
            let bytes = _mm_unpacklo_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            _mm_storel_epi64(to.cast(), bytes);
        }
    }
}
