//! The row loops on vectors, for finite weights; the same bytes as the loops beside them.

use crate::{
    DType, Result, packing,
    scales::{Code, ScaleRule},
    simd,
};

use super::{
    CodeLayout,
    rows::{self, Job, Scratch},
};

/// Ranges of the tile's scales; `false` where a weight is not finite.
///
/// Symmetric schemes get the largest magnitude as maximum, which is all they need.
pub(super) fn ranges(job: &Job<'_>, tile: &[u8], row_bytes: usize, scratch: &mut Scratch) -> bool {
    let layout = job.layout;
    if job.is_finite && job.given.is_some() {
        return true;
    }
    let per_row = layout.scales_per_row();
    scratch.mins.clear();
    scratch.maxs.clear();
    if layout.arithmetic.symmetric || job.given.is_some() {
        scratch.maxs.resize(per_row, 0.0);
        for row in tile.chunks(row_bytes) {
            simd::amax_runs(job.isa, layout.float, row, layout.tile[1], &mut scratch.maxs);
        }
    } else {
        scratch.mins.resize(per_row, f32::INFINITY);
        scratch.maxs.resize(per_row, f32::NEG_INFINITY);
        for row in tile.chunks(row_bytes) {
            simd::range_runs(job.isa, layout.float, row, layout.tile[1], &mut scratch.mins, &mut scratch.maxs);
        }
    }
    scratch.maxs.iter().chain(&scratch.mins).all(|bound| bound.is_finite())
}

/// Appends the scales of one row of tiles and sets their divisors.
pub(super) fn qparams(job: &Job<'_>, tile_row: usize, scratch: &mut Scratch) {
    let layout = job.layout;
    if job.given.is_some() || !layout.arithmetic.symmetric {
        return rows::qparams(job, tile_row, scratch);
    }
    let start = scratch.scales.len();
    let end = start + scratch.maxs.len();
    scratch.zero_points.resize(end, 0.0);
    scratch.scales.resize(end, 0.0);
    let scales = &mut scratch.scales[start..];
    match (layout.arithmetic.rule, job.global_scale) {
        (ScaleRule::Cast(DType::F8E4M3), Some(global_scale)) if layout.arithmetic.code == Code::E2M1 => {
            scratch.divisors.resize(scales.len(), 0.0);
            let divisors = &mut scratch.divisors;
            return simd::nvfp4_scales(job.isa, layout.float, &scratch.maxs, global_scale, scales, divisors);
        }
        (ScaleRule::Mx, None) => {
            simd::mx_scales(job.isa, layout.float, layout.arithmetic.code, &scratch.maxs, scales);
        }
        _ => {
            for (amax, scale) in scratch.maxs.iter().zip(scales) {
                let value = layout.arithmetic.symmetric_scale(*amax, layout.float, job.global_scale);
                *scale = layout.float.round(value);
            }
        }
    }
    rows::set_divisors(job, start, scratch);
}

/// Whether the vector kernels cover these codes and divisors.
pub(super) fn takes(job: &Job<'_>, scratch: &Scratch) -> bool {
    let arithmetic = &job.layout.arithmetic;
    let has_kernel = match arithmetic.code {
        Code::Int { bits } => bits <= 8,
        Code::E4M3 | Code::E2M1 => {
            arithmetic.symmetric && job.given.is_none_or(|it| it.zero_points.is_none_or(is_zero))
        }
    };
    has_kernel && simd::are_divisors(job.isa, &scratch.divisors)
}

fn is_zero(zero_points: &[f32]) -> bool {
    zero_points.iter().all(|it| it.to_bits() == 0)
}

/// Codes of one row, in their layout on disk.
pub(super) fn quantize_row(job: &Job<'_>, bytes: &[u8], scratch: &mut Scratch, out: &mut [u8]) -> Result<()> {
    let layout = job.layout;
    let code = layout.arithmetic.code;
    let zero_points = &scratch.zero_points[scratch.zero_points.len() - scratch.divisors.len()..];
    let has_zero_points = matches!(code, Code::Int { .. }) && !is_zero(zero_points);
    let row = simd::Row {
        float: layout.float,
        bytes,
        run: layout.tile[1],
        divisors: &scratch.divisors,
        rounds_quotient: job.global_scale.is_none(),
        zero_points: has_zero_points.then_some(zero_points),
        code,
    };
    let is_aligned = row.run.is_multiple_of(16) && layout.cols.is_multiple_of(16);
    match layout.codes {
        CodeLayout::Plain => simd::codes(job.isa, &row, out),
        CodeLayout::Nibbles | CodeLayout::Words(4) if is_aligned => simd::packed(job.isa, &row, out),
        CodeLayout::Nibbles => {
            scratch.codes.resize(layout.cols, 0);
            simd::codes(job.isa, &row, &mut scratch.codes);
            packing::pack_nibbles(&scratch.codes, out);
        }
        CodeLayout::Words(8) if layout.cols.is_multiple_of(4) => {
            simd::codes(job.isa, &row, out);
            // A byte is its own field of the word, offset by 128.
            out.iter_mut().for_each(|byte| *byte ^= 0x80);
        }
        CodeLayout::Words(bits) => {
            scratch.codes.resize(layout.cols, 0);
            simd::codes(job.isa, &row, &mut scratch.codes);
            scratch.signed.clear();
            scratch.signed.extend(scratch.codes.iter().map(|code| *code as i8));
            scratch.words.resize(out.len() / 4, 0);
            packing::pack_row(&scratch.signed, bits, &mut scratch.words)?;
            for (bytes, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(&scratch.words) {
                *bytes = word.to_le_bytes();
            }
        }
    }
    Ok(())
}
