//! Inner tiles in AVX-512: 14 rows by two vectors, 28 of the 32 registers hold sums.

use std::arch::x86_64::*;

use super::tile::{Lines, Pair, Tile, Write, by_rows, vector_tile};

vector_tile! {
    /// f32, fused.
    F32, run_f32, tile_f32, features: "avx512f",
    operand: f32, sum: f32, vector: __m512, lanes: 16, rows: 14: 1 2 3 4 5 6 7 8 9 10 11 12 13,
    zero: _mm512_setzero_ps, load_b: _mm512_loadu_ps, splat: _mm512_set1_ps, fma: _mm512_fmadd_ps,
    load: _mm512_loadu_ps, add: _mm512_add_ps, store: _mm512_storeu_ps
}

vector_tile! {
    /// f64, fused.
    F64, run_f64, tile_f64, features: "avx512f",
    operand: f64, sum: f64, vector: __m512d, lanes: 8, rows: 14: 1 2 3 4 5 6 7 8 9 10 11 12 13,
    zero: _mm512_setzero_pd, load_b: _mm512_loadu_pd, splat: _mm512_set1_pd, fma: _mm512_fmadd_pd,
    load: _mm512_loadu_pd, add: _mm512_add_pd, store: _mm512_storeu_pd
}

vector_tile! {
    /// Pairs of bf16 by `vdpbf16ps`.
    PAIR, run_pair, tile_pair, features: "avx512f,avx512bf16",
    operand: Pair, sum: f32, vector: __m512, lanes: 16, rows: 14: 1 2 3 4 5 6 7 8 9 10 11 12 13,
    zero: _mm512_setzero_ps, load_b: load_pairs, splat: splat_pair, fma: add_pairs,
    load: _mm512_loadu_ps, add: _mm512_add_ps, store: _mm512_storeu_ps
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_pairs(from: *const Pair) -> __m512i {
    // SAFETY: the caller's pointer covers 16 pairs.
    unsafe { _mm512_loadu_si512(from.cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn splat_pair(pair: Pair) -> __m512i {
    _mm512_set1_epi32(pair.0 as i32)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn add_pairs(a: __m512i, b: __m512i, sum: __m512) -> __m512 {
    // SAFETY: both types are 64 bytes without padding and without invalid values.
    let (a, b) = unsafe { (std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b)) };
    _mm512_dpbf16_ps(sum, a, b)
}
