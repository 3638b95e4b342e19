//! Inner tiles over 8-bit integers: plain, by `vpmaddwd` over words, by `vpdpbusd` over bytes.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

use super::{Bytes, Words};
use crate::gemm::tile::{Lines, Tile, Write};
#[cfg(target_arch = "x86_64")]
use crate::gemm::tile::{by_rows, vector_tile};
use crate::{Isa, Profile};

/// The kernel over words, which every profile has.
pub(super) fn words(profile: Profile) -> Tile<Words, i32> {
    match profile.isa() {
        Isa::Portable => PLAIN,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => NARROW,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Avx512Vnni => WIDE,
        #[cfg(not(target_arch = "x86_64"))]
        _ => PLAIN,
    }
}

/// The kernel over bytes, where the processor has it beside the profile's instructions: sums are the same, so it is no profile.
pub(super) fn bytes(profile: Profile) -> Option<Tile<Bytes, i32>> {
    match profile.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Avx512Vnni if is_x86_feature_detected!("avx512vnni") => Some(DOTS),
        _ => None,
    }
}

/// Plain tile.
const PLAIN: Tile<Words, i32> = Tile { max_rows: 4, width: 8, run: run_plain };

/// Four rows at most by eight columns.
///
/// # Safety
///
/// As [`Tile::run`].
unsafe fn run_plain(
    steps: usize,
    a: Lines<*const Words>,
    b: *const Words,
    c: Lines<*mut i32>,
    rows: usize,
    write: Write,
) {
    for row in 0..rows {
        let to = c.start.wrapping_add(row * c.stride).cast::<[i32; 8]>();
        // SAFETY: `a` holds as many elements a step as there are rows, `b` steps * 8, and each of the rows of `c` eight.
        unsafe {
            let mut sums = if write == Write::Store { [0i32; 8] } else { *to };
            for step in 0..steps {
                let (a, b) =
                    (*a.start.wrapping_add(step * a.stride + row), *b.wrapping_add(step * 8).cast::<[Words; 8]>());
                for col in 0..8 {
                    sums[col] = sums[col].wrapping_add(halves(a, b[col]));
                }
            }
            *to = sums;
        }
    }
}

/// The product of both halves; it fits, since they hold integers of 8 bits.
fn halves(a: Words, b: Words) -> i32 {
    let low = |it: Words| i32::from(it.0 as i16);
    let high = |it: Words| it.0 as i32 >> 16;
    low(a) * low(b) + high(a) * high(b)
}

#[cfg(target_arch = "x86_64")]
vector_tile! {
    /// Words in vectors of 256 bits.
    NARROW, run_narrow, tile_narrow, features: "avx2",
    operand: Words, sum: i32, vector: __m256i, lanes: 8, rows: 6: 1 2 3 4 5,
    zero: _mm256_setzero_si256, load_b: load_narrow, splat: splat_narrow, fma: add_narrow,
    load: load_sums, add: _mm256_add_epi32, store: store_sums
}

#[cfg(target_arch = "x86_64")]
vector_tile! {
    /// Words in vectors of 512 bits.
    WIDE, run_wide, tile_wide, features: "avx512f,avx512bw",
    operand: Words, sum: i32, vector: __m512i, lanes: 16, rows: 13: 1 2 3 4 5 6 7 8 9 10 11 12,
    zero: _mm512_setzero_si512, load_b: load_wide, splat: splat_wide, fma: add_wide,
    load: _mm512_loadu_epi32, add: _mm512_add_epi32, store: _mm512_storeu_epi32
}

#[cfg(target_arch = "x86_64")]
vector_tile! {
    /// Bytes by `vpdpbusd`, those of `a` without a sign.
    DOTS, run_dots, tile_dots, features: "avx512f,avx512vnni",
    operand: Bytes, sum: i32, vector: __m512i, lanes: 16, rows: 14: 1 2 3 4 5 6 7 8 9 10 11 12 13,
    zero: _mm512_setzero_si512, load_b: load_dots, splat: splat_dots, fma: add_dots,
    load: _mm512_loadu_epi32, add: _mm512_add_epi32, store: _mm512_storeu_epi32
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_narrow(from: *const Words) -> __m256i {
    // SAFETY: the caller's pointer covers eight elements.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn splat_narrow(words: Words) -> __m256i {
    _mm256_set1_epi32(words.0 as i32)
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn add_narrow(a: __m256i, b: __m256i, sum: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load_sums(from: *const i32) -> __m256i {
    // SAFETY: the caller's pointer covers eight elements.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_sums(to: *mut i32, sums: __m256i) {
    // SAFETY: the caller's pointer covers eight elements.
    unsafe { _mm256_storeu_si256(to.cast(), sums) };
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_wide(from: *const Words) -> __m512i {
    // SAFETY: the caller's pointer covers 16 elements.
    unsafe { _mm512_loadu_si512(from.cast()) }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn splat_wide(words: Words) -> __m512i {
    _mm512_set1_epi32(words.0 as i32)
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_wide(a: __m512i, b: __m512i, sum: __m512i) -> __m512i {
    _mm512_add_epi32(sum, _mm512_madd_epi16(a, b))
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_dots(from: *const Bytes) -> __m512i {
    // SAFETY: the caller's pointer covers 16 elements.
    unsafe { _mm512_loadu_si512(from.cast()) }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn splat_dots(bytes: Bytes) -> __m512i {
    _mm512_set1_epi32(bytes.0 as i32)
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn add_dots(a: __m512i, b: __m512i, sum: __m512i) -> __m512i {
    _mm512_dpbusd_epi32(sum, a, b)
}
