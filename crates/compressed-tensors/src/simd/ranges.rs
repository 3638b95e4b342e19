//! Ranges of runs of 16-bit floats by AVX2.

use std::arch::x86_64::*;

use crate::numbers::{Float, bf16_to_f32, f16_to_f32};

use super::loops::{ordered_bounds16, widen};

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

/// The complement of the largest magnitude of a run of whole halves of sixteen patterns, in the lowest word.
#[target_feature(enable = "avx2")]
#[inline]
fn least_complement<const RUN: usize>(values: &[[u8; 2]; RUN]) -> __m128i {
    let magnitude = _mm_set1_epi16(0x7fff);
    let mut least = magnitude;
    let mut i = 0;
    while i < RUN / 8 {
        // SAFETY: the array is 16 times `RUN / 8` bytes long; the load needs no alignment.
        let bits = unsafe { _mm_loadu_si128(values.as_ptr().cast::<__m128i>().add(i)) };
        least = _mm_min_epu16(least, _mm_andnot_si128(bits, magnitude));
        i += 1;
    }
    _mm_minpos_epu16(least)
}

/// As [`amax_runs`] for whole runs of few patterns, four runs at a time; returns how many it took.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn amax_short_runs<const RUN: usize>(float: Float, row: &[[u8; 2]], amaxs: &mut [f32]) -> usize {
    let (runs, _) = row.as_chunks::<RUN>();
    let n = runs.len().min(amaxs.len()) / 4;
    let mut i = 0;
    while i < n {
        let (runs, amaxs) = (&runs[4 * i..4 * i + 4], &mut amaxs[4 * i..4 * i + 4]);
        let low = _mm_unpacklo_epi16(least_complement(&runs[0]), least_complement(&runs[1]));
        let high = _mm_unpacklo_epi16(least_complement(&runs[2]), least_complement(&runs[3]));
        let words = _mm_xor_si128(_mm_unpacklo_epi32(low, high), _mm_set1_epi16(0x7fff));
        let bits = match float {
            Float::BF16 => _mm_unpacklo_epi16(_mm_setzero_si128(), words),
            _ => _mm_castps_si128(_mm_cvtph_ps(words)),
        };
        let to: *mut __m128i = amaxs.as_mut_ptr().cast();
        // SAFETY: the slice holds four values, 16 bytes.
        unsafe { _mm_storeu_si128(to, _mm_max_epu32(_mm_loadu_si128(to), bits)) };
        i += 1;
    }
    4 * n
}

/// Raises each run's largest magnitude to that of the row's run.
#[target_feature(enable = "avx2,f16c")]
pub(super) fn amax_runs(float: Float, row: &[[u8; 2]], run: usize, amaxs: &mut [f32]) {
    let magnitude = _mm256_set1_epi16(0x7fff);
    // Plain index loops: iterator adapters are not inlined into functions with other features.
    let n_runs = amaxs.len().min(row.len().div_ceil(run));
    let done = match run {
        16 => amax_short_runs::<16>(float, row, amaxs),
        32 => amax_short_runs::<32>(float, row, amaxs),
        _ => 0,
    };
    for idx in done..n_runs {
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
    // Flipping the lower bits turns signed order into the reverse of unsigned order.
    let flip = _mm256_set1_epi16(i16::MAX);
    let n_runs = mins.len().min(maxs.len()).min(row.len().div_ceil(run));
    for idx in 0..n_runs {
        let values = &row[idx * run..row.len().min((idx + 1) * run)];
        let (chunks, rest) = values.as_chunks::<16>();
        // Of unsigned patterns the largest is the smallest negative value, of signed ones the largest positive value.
        let (mut lows, mut highs) = (_mm256_setzero_si256(), _mm256_set1_epi16(i16::MIN));
        let mut i = 0;
        while i < chunks.len() {
            let bits = load(&chunks[i]);
            lows = _mm256_max_epu16(lows, bits);
            highs = _mm256_max_epi16(highs, bits);
            i += 1;
        }
        let mut low = !least(_mm256_xor_si256(lows, _mm256_set1_epi16(-1)));
        let mut high = (least(_mm256_xor_si256(highs, flip)) ^ 0x7fff) as i16;
        for value in rest {
            low = low.max(u16::from_le_bytes(*value));
            high = high.max(i16::from_le_bytes(*value));
        }
        let has_both_signs = high >= 0 && low >= 0x8000;
        let (low, high) = if has_both_signs { (low, high as u16) } else { ordered_bounds16(values) };
        widen((value(float, low), value(float, high)), &mut mins[idx], &mut maxs[idx]);
    }
}
