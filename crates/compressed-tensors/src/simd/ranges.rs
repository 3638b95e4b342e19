//! Ranges of runs of 16-bit floats by AVX2.

use std::arch::x86_64::*;

use crate::numbers::{Float, bf16_to_f32, f16_to_f32};

use super::loops::{ordered16, widen};

#[inline(always)]
fn value(float: Float, pattern: u16) -> f32 {
    if float == Float::BF16 { bf16_to_f32(pattern) } else { f16_to_f32(pattern) }
}

/// The smallest of sixteen unsigned words.
#[target_feature(enable = "avx2")]
#[inline]
fn least(words: __m256i) -> u16 {
    let halves = _mm_min_epu16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
    _mm_cvtsi128_si32(_mm_minpos_epu16(halves)) as u16
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(values: &[[u8; 2]; 16]) -> __m256i {
    // SAFETY: the array is 32 bytes long; the load needs no alignment.
    unsafe { _mm256_loadu_si256(values.as_ptr().cast()) }
}

/// Raises each run's largest magnitude to that of the row's run.
#[target_feature(enable = "avx2")]
pub(super) fn amax_runs(float: Float, row: &[[u8; 2]], run: usize, amaxs: &mut [f32]) {
    let magnitude = _mm256_set1_epi16(0x7fff);
    // Plain index loops: iterator adapters are not inlined into functions with other features.
    let n_runs = amaxs.len().min(row.len().div_ceil(run));
    for idx in 0..n_runs {
        let values = &row[idx * run..row.len().min((idx + 1) * run)];
        let (chunks, rest) = values.as_chunks::<16>();
        let mut seen = _mm256_setzero_si256();
        let mut i = 0;
        while i < chunks.len() {
            seen = _mm256_max_epu16(seen, _mm256_and_si256(load(&chunks[i]), magnitude));
            i += 1;
        }
        // The largest is the complement of the complements' smallest.
        let mut largest = !least(_mm256_xor_si256(seen, _mm256_set1_epi16(-1)));
        for value in rest {
            largest = largest.max(u16::from_le_bytes(*value) & 0x7fff);
        }
        let amax = &mut amaxs[idx];
        *amax = f32::from_bits(amax.to_bits().max(value(float, largest).to_bits()));
    }
}

/// Widens each run's bounds by the row's run.
#[target_feature(enable = "avx2")]
pub(super) fn range_runs(float: Float, row: &[[u8; 2]], run: usize, mins: &mut [f32], maxs: &mut [f32]) {
    let low_bits = _mm256_set1_epi16(0x7fff);
    // Flipping the top bit turns signed order into unsigned order.
    let (flip, flip_all) = (_mm256_set1_epi16(i16::MIN), _mm256_set1_epi16(i16::MAX));
    let n_runs = mins.len().min(maxs.len()).min(row.len().div_ceil(run));
    for idx in 0..n_runs {
        let values = &row[idx * run..row.len().min((idx + 1) * run)];
        let (chunks, rest) = values.as_chunks::<16>();
        let (mut lows, mut highs) = (_mm256_set1_epi16(i16::MAX), _mm256_set1_epi16(i16::MIN));
        let mut i = 0;
        while i < chunks.len() {
            let bits = load(&chunks[i]);
            let ordered = _mm256_xor_si256(bits, _mm256_and_si256(_mm256_srai_epi16::<15>(bits), low_bits));
            lows = _mm256_min_epi16(lows, ordered);
            highs = _mm256_max_epi16(highs, ordered);
            i += 1;
        }
        let mut low = (least(_mm256_xor_si256(lows, flip)) ^ 0x8000) as i16;
        let mut high = (least(_mm256_xor_si256(highs, flip_all)) ^ 0x7fff) as i16;
        for value in rest {
            let ordered = ordered16(i16::from_le_bytes(*value));
            low = low.min(ordered);
            high = high.max(ordered);
        }
        let bounds = (value(float, ordered16(low) as u16), value(float, ordered16(high) as u16));
        widen(bounds, &mut mins[idx], &mut maxs[idx]);
    }
}
