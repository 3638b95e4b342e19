//! The row loops on vectors, for finite weights; the same bytes as the loops beside them.

use crate::{
    DType, bit_stream,
    numbers::Float,
    packing,
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
    scratch.mins.clear();
    scratch.maxs.clear();
    if job.is_finite && job.given.is_some() {
        return true;
    }
    let per_row = layout.scales_per_row();
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
    simd::are_finite(job.isa, &scratch.maxs) && simd::are_finite(job.isa, &scratch.mins)
}

/// Appends the scales of one row of tiles and sets their divisors.
pub(super) fn qparams(job: &Job<'_>, tile_row: usize, scratch: &mut Scratch) {
    let layout = job.layout;
    let arithmetic = &layout.arithmetic;
    let has_loop = arithmetic.symmetric
        || arithmetic.rule == ScaleRule::Plain
            && arithmetic.zp_dtype == DType::I8
            && matches!(arithmetic.code, Code::Int { bits: 2..=8 })
            && job.global_scale.is_none();
    if job.given.is_some() || !has_loop {
        return rows::qparams(job, tile_row, scratch);
    }
    let start = scratch.scales.len();
    let end = start + scratch.maxs.len();
    scratch.zero_points.resize(end, 0.0);
    scratch.scales.resize(end, 0.0);
    let scales = &mut scratch.scales[start..];
    if let (false, Code::Int { bits }) = (arithmetic.symmetric, arithmetic.code) {
        let zero_points = &mut scratch.zero_points[start..];
        simd::asymmetric_qparams(job.isa, layout.float, bits, &scratch.mins, &scratch.maxs, scales, zero_points);
        return rows::set_divisors(job, start, scratch);
    }
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

/// Whether the vector kernels cover these codes and divisors, which they do once this has prepared them.
pub(super) fn takes(job: &Job<'_>, scratch: &mut Scratch) -> bool {
    let arithmetic = &job.layout.arithmetic;
    let has_kernel = match arithmetic.code {
        Code::Int { bits } => bits <= 8,
        Code::E4M3 | Code::E2M1 => {
            arithmetic.symmetric && job.given.is_none_or(|it| it.zero_points.is_none_or(is_zero))
        }
    };
    if !has_kernel || !simd::are_divisors(job.isa, &scratch.divisors) {
        return false;
    }
    let layout = job.layout;
    let is_float = !matches!(arithmetic.code, Code::Int { .. });
    let is_short = layout.tile[0] == 1 && layout.tile[1] <= 32;
    // Whether a quotient can overflow is seen from the ranges, which are not found where a first pass has made do.
    let wants = is_float && layout.float == Float::BF16 && is_short && scratch.maxs.len() == scratch.divisors.len();
    scratch.has_reciprocals = wants && {
        scratch.reciprocals.resize(scratch.divisors.len(), 0.0);
        simd::reciprocals(job.isa, &scratch.divisors, &scratch.maxs, &mut scratch.reciprocals)
    };
    true
}

fn is_zero(zero_points: &[f32]) -> bool {
    zero_points.iter().all(|it| it.to_bits() == 0)
}

/// Codes of one row, in their layout on disk.
pub(super) fn quantize_row(job: &Job<'_>, bytes: &[u8], scratch: &mut Scratch, out: &mut [u8]) {
    let layout = job.layout;
    let code = layout.arithmetic.code;
    let zero_points = &scratch.zero_points[scratch.zero_points.len() - scratch.divisors.len()..];
    let has_zero_points = matches!(code, Code::Int { .. }) && !is_zero(zero_points);
    let row = simd::Row {
        float: layout.float,
        bytes,
        run: layout.tile[1],
        divisors: &scratch.divisors,
        reciprocals: scratch.has_reciprocals.then_some(&scratch.reciprocals),
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
            bit_stream::pack(&scratch.codes, bits, out);
        }
    }
}
