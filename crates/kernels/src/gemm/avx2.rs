//! Inner tiles in AVX2 and FMA: 6 rows by two vectors, 12 of the 16 registers hold sums.

use std::arch::x86_64::*;

use super::tile::{Lines, Tile, Write, by_rows, vector_tile};

vector_tile! {
    /// f32, fused.
    F32, run_f32, tile_f32, features: "avx2,fma",
    operand: f32, sum: f32, vector: __m256, lanes: 8, rows: 6: 1 2 3 4 5,
    zero: _mm256_setzero_ps, load_b: _mm256_loadu_ps, splat: _mm256_set1_ps, fma: _mm256_fmadd_ps,
    load: _mm256_loadu_ps, add: _mm256_add_ps, store: _mm256_storeu_ps
}

vector_tile! {
    /// f64, fused.
    F64, run_f64, tile_f64, features: "avx2,fma",
    operand: f64, sum: f64, vector: __m256d, lanes: 4, rows: 6: 1 2 3 4 5,
    zero: _mm256_setzero_pd, load_b: _mm256_loadu_pd, splat: _mm256_set1_pd, fma: _mm256_fmadd_pd,
    load: _mm256_loadu_pd, add: _mm256_add_pd, store: _mm256_storeu_pd
}
