//! The loops over rows: ranges, scales, codes, words.

use crate::{
    Result,
    numbers::{Float, read_f32},
    packing,
    quantize::{Division, code_bytes, quantize_value},
    scales::{Code, propagating_max, propagating_min},
    simd::{self, Isa},
};

use super::{CodeLayout, Given, MinMax, SlabReport, WeightLayout, fast, wrong_scales};

/// Working memory, one tile row high.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Scales of the slab, as stored.
    pub(crate) scales: Vec<f32>,
    /// Zero points of the slab.
    pub(crate) zero_points: Vec<f32>,
    pub(super) divisors: Vec<f32>,
    /// Reciprocals of the divisors, where `has_reciprocals` is set.
    pub(super) reciprocals: Vec<f32>,
    pub(super) has_reciprocals: bool,
    pub(super) mins: Vec<f32>,
    pub(super) maxs: Vec<f32>,
    pub(super) values: Vec<f32>,
    pub(super) codes: Vec<u8>,
    pub(super) signed: Vec<i8>,
    pub(super) words: Vec<i32>,
}

/// What stays the same over a slab.
pub(crate) struct Job<'a> {
    pub(crate) layout: &'a WeightLayout,
    pub(crate) isa: Isa,
    /// Whether a first pass has found no NaN and no infinity.
    pub(crate) is_finite: bool,
    pub(crate) given: Option<Given<'a>>,
    pub(crate) global_scale: Option<f32>,
}

/// Compresses whole tiles of rows; leaves the slab's scales and zero points in `scratch`.
pub(crate) fn compress(job: &Job<'_>, slab: &[u8], out: &mut [u8], scratch: &mut Scratch) -> Result<SlabReport> {
    let layout = job.layout;
    let mut report = SlabReport::default();
    scratch.scales.clear();
    scratch.zero_points.clear();
    let row_bytes = layout.cols * layout.float.dtype().bits() / 8;
    if slab.is_empty() {
        return Ok(report);
    }
    let per_row = layout.scales_per_row();
    let n_rows = slab.len() / row_bytes;
    if let Some(given) = job.given {
        let expected = match layout.strategy {
            crate::args::QuantizationStrategy::Tensor => 1,
            _ => n_rows.div_ceil(layout.tile[0]) * per_row,
        };
        if given.scales.len() != expected || given.zero_points.is_some_and(|it| it.len() != expected) {
            return Err(wrong_scales(given.scales.len(), expected));
        }
    }
    let out_row_bytes = out.len() / n_rows;
    let tile_bytes = layout.tile[0].saturating_mul(row_bytes);
    for (tile_row, (tile, out)) in
        slab.chunks(tile_bytes).zip(out.chunks_mut(layout.tile[0].saturating_mul(out_row_bytes))).enumerate()
    {
        let is_finite = fast::ranges(job, tile, row_bytes, scratch);
        if is_finite {
            fast::qparams(job, tile_row, scratch);
        } else {
            ranges(job, tile, row_bytes, scratch, &mut report, tile_row * layout.tile[0]);
            qparams(job, tile_row, scratch);
        }
        let is_fast = is_finite && fast::takes(job, scratch);
        for (row, out) in tile.chunks(row_bytes).zip(out.chunks_mut(out_row_bytes)) {
            match is_fast {
                true => fast::quantize_row(job, row, scratch, out),
                false => quantize_row(job, row, scratch, out)?,
            }
        }
    }
    Ok(report)
}

/// Ranges of the tile's scales, and the non-finite values in it.
fn ranges(job: &Job<'_>, tile: &[u8], row_bytes: usize, scratch: &mut Scratch, report: &mut SlabReport, row: usize) {
    let layout = job.layout;
    let per_row = layout.scales_per_row();
    for (bounds, start) in [(&mut scratch.mins, f32::INFINITY), (&mut scratch.maxs, f32::NEG_INFINITY)] {
        bounds.clear();
        bounds.resize(per_row, start);
    }
    for (i, bytes) in tile.chunks(row_bytes).enumerate() {
        let values = read_row(layout, bytes, &mut scratch.values);
        for ((values, min), max) in values.chunks(layout.tile[1]).zip(&mut scratch.mins).zip(&mut scratch.maxs) {
            for &value in values {
                *min = propagating_min(*min, value);
                *max = propagating_max(*max, value);
            }
        }
        let found = non_finite(values, ((row + i) * layout.cols) as u64);
        report.n_non_finite += found.n_non_finite;
        report.first_non_finite = report.first_non_finite.or(found.first_non_finite);
    }
}

fn read_row<'a>(layout: &WeightLayout, bytes: &[u8], values: &'a mut Vec<f32>) -> &'a [f32] {
    values.resize(layout.cols, 0.0);
    // The buffer has the row's length and the type is one of the three dense ones.
    let _ = read_f32(layout.float.dtype(), bytes, values);
    values
}

fn non_finite(values: &[f32], offset: u64) -> MinMax {
    let n_non_finite = values.iter().map(|value| u64::from(!value.is_finite())).sum();
    let first_non_finite = match n_non_finite {
        0 => None,
        _ => values.iter().position(|value| !value.is_finite()).map(|idx| idx as u64 + offset),
    };
    MinMax { n_non_finite, first_non_finite, ..MinMax::EMPTY }
}

/// Appends the scales of one row of tiles and sets their divisors.
pub(super) fn qparams(job: &Job<'_>, tile_row: usize, scratch: &mut Scratch) {
    let layout = job.layout;
    let per_row = layout.scales_per_row();
    let start = scratch.scales.len();
    match job.given {
        Some(given) => {
            let from = tile_row * per_row;
            let all = if given.scales.len() == 1 { 0..1 } else { from..from + per_row };
            scratch.scales.extend(given.scales[all.clone()].iter().map(|scale| layout.float.round(*scale)));
            match given.zero_points {
                Some(zero_points) => scratch.zero_points.extend_from_slice(&zero_points[all]),
                None => scratch.zero_points.resize(start + per_row, 0.0),
            }
        }
        None => {
            for (&min, &max) in scratch.mins.iter().zip(&scratch.maxs) {
                let qparam = layout.arithmetic.qparam(min, max, layout.float, job.global_scale);
                scratch.scales.push(layout.float.round(qparam.scale));
                scratch.zero_points.push(qparam.zero_point);
            }
        }
    }
    set_divisors(job, start, scratch);
}

/// Divisors of the scales from `start`.
pub(super) fn set_divisors(job: &Job<'_>, start: usize, scratch: &mut Scratch) {
    let scales = &scratch.scales[start..];
    scratch.divisors.resize(scales.len(), 0.0);
    match job.global_scale {
        Some(global_scale) => simd::divide(job.isa, scales, global_scale, &mut scratch.divisors),
        None => scratch.divisors.copy_from_slice(scales),
    }
}

/// Codes of one row, in their layout on disk.
fn quantize_row(job: &Job<'_>, row: &[u8], scratch: &mut Scratch, out: &mut [u8]) -> Result<()> {
    let layout = job.layout;
    let code = layout.arithmetic.code;
    read_row(layout, row, &mut scratch.values);
    let first = scratch.zero_points.len() - scratch.divisors.len();
    let result = if job.global_scale.is_some() { Float::F32 } else { layout.float };
    let zero_points = &scratch.zero_points[first..];
    for ((values, &divisor), &zero_point) in
        scratch.values.chunks_mut(layout.tile[1]).zip(&scratch.divisors).zip(zero_points)
    {
        for value in values {
            *value = quantize_value(code, *value, divisor, Some(zero_point), [layout.float, result], Division::Eager);
        }
    }
    match layout.codes {
        CodeLayout::Plain => code_bytes(code, &scratch.values, out),
        CodeLayout::Nibbles => {
            scratch.codes.resize(layout.cols, 0);
            code_bytes(Code::E2M1, &scratch.values, &mut scratch.codes)?;
            packing::pack_nibbles(&scratch.codes, out);
            Ok(())
        }
        CodeLayout::Words(bits) => {
            scratch.signed.clear();
            scratch.signed.extend(scratch.values.iter().map(|value| *value as i8));
            scratch.words.resize(out.len() / 4, 0);
            packing::pack_row(&scratch.signed, bits, &mut scratch.words)?;
            for (bytes, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(&scratch.words) {
                *bytes = word.to_le_bytes();
            }
            Ok(())
        }
    }
}

/// Packs the zero points of whole slabs along rows.
pub(crate) fn pack_zero_points(zero_points: &[f32], per_row: usize, bits: u32, out: &mut [u8]) -> Result<()> {
    let half = 1i32 << (bits - 1);
    let field = |zero_point: f32| i32::from(zero_point as i8) + half;
    let outside = zero_points.iter().fold(0, |seen, zero_point| seen | field(*zero_point));
    if outside >> bits != 0 {
        let codes: Vec<i8> = zero_points.iter().map(|zero_point| *zero_point as i8).collect();
        return packing::pack_row(&codes, bits, &mut []);
    }
    out.fill(0);
    let words = out.as_chunks_mut::<4>().0;
    for (row, zero_points) in zero_points.chunks(per_row).enumerate() {
        let bit = row * bits as usize;
        let (word, shift) = (bit / 32 * per_row, bit % 32);
        for (word, zero_point) in words[word..].iter_mut().zip(zero_points) {
            *word = (u32::from_le_bytes(*word) | (field(*zero_point) as u32) << shift).to_le_bytes();
        }
        if shift + bits as usize > 32 {
            for (word, zero_point) in words[word + per_row..].iter_mut().zip(zero_points) {
                *word = (u32::from_le_bytes(*word) | (field(*zero_point) as u32) >> (32 - shift)).to_le_bytes();
            }
        }
    }
    Ok(())
}

/// Range and non-finite values of the rows from `first_row`.
pub(crate) fn scan(layout: &WeightLayout, isa: Isa, first_row: usize, slab: &[u8]) -> MinMax {
    let bytes_per_value = layout.float.dtype().bits() / 8;
    let offset = (first_row * layout.cols) as u64;
    if let Some((min, max)) = simd::finite_bounds(isa, layout.float, slab) {
        return MinMax { min, max, ..MinMax::EMPTY };
    }
    let mut values = [0.0; 1024];
    let mut range = MinMax::EMPTY;
    for (i, bytes) in slab.chunks(values.len() * bytes_per_value).enumerate() {
        let values = &mut values[..bytes.len() / bytes_per_value];
        // The chunk holds exactly these values of a dense type.
        let _ = read_f32(layout.float.dtype(), bytes, values);
        let mut chunk = non_finite(values, offset + (i * 1024) as u64);
        for &value in &*values {
            chunk.min = propagating_min(chunk.min, value);
            chunk.max = propagating_max(chunk.max, value);
        }
        range = range.merge(chunk);
    }
    range
}
