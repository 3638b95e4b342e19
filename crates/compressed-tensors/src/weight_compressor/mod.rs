//! Streaming compression of one weight: row slabs in, row slabs of every tensor it becomes out.
//!
//! The same bytes come out however the rows are cut into slabs.

use std::ops::Range;

use crate::{
    DType, ErrorKind, Result,
    args::QuantizationStrategy,
    format::CompressionFormat,
    numbers::{Float, write_f32},
    scales::{self, Qparam, ScaleRule, propagating_max, propagating_min},
    scheme::QuantizationScheme,
    simd::{self, Isa},
};

mod fast;
mod layout;
mod rows;

pub use layout::TensorSpec;
pub(crate) use layout::{CodeLayout, Part, WeightLayout};

/// Range of a tensor or a part of it, and the non-finite values found there.
///
/// Ranges [`merge`](Self::merge) in any order to the same result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MinMax {
    /// Smallest value, NaN if one is, infinite if there is none.
    pub min: f32,
    /// Largest value, NaN if one is, minus infinite if there is none.
    pub max: f32,
    /// Row-major index of the first NaN or infinity in the whole tensor.
    pub first_non_finite: Option<u64>,
    /// Number of NaNs and infinities.
    pub n_non_finite: u64,
}

impl MinMax {
    /// The range of nothing.
    pub const EMPTY: Self =
        Self { min: f32::INFINITY, max: f32::NEG_INFINITY, first_non_finite: None, n_non_finite: 0 };

    /// The range of both.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        let first = match (self.first_non_finite, other.first_non_finite) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self {
            min: propagating_min(self.min, other.min),
            max: propagating_max(self.max, other.max),
            first_non_finite: first,
            n_non_finite: self.n_non_finite + other.n_non_finite,
        }
    }
}

/// What must be known of the whole weight before rows can be compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstPass {
    /// Nothing: one pass is enough.
    None,
    /// Its range, from [`WeightCompressor::scan`].
    WholeRange,
}

/// What was found in a slab.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlabReport {
    /// Rows compressed.
    pub rows: usize,
    /// Row-major index, in the whole weight, of the first NaN or infinity.
    pub first_non_finite: Option<u64>,
    /// Number of NaNs and infinities.
    pub n_non_finite: u64,
}

/// Output buffers and working memory of [`WeightCompressor::compress_rows`], reused between calls.
#[derive(Debug, Default)]
pub struct SlabOutputs {
    buffers: Vec<Vec<u8>>,
    pub(crate) scratch: rows::Scratch,
}

impl SlabOutputs {
    /// Empty buffers, which grow on first use.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes of output `idx` for the rows compressed last; empty where rows do not cut the output.
    ///
    /// They belong at [`WeightCompressor::output_range`].
    pub fn bytes(&self, idx: usize) -> &[u8] {
        self.buffers.get(idx).map_or(&[], Vec::as_slice)
    }
}

/// Scales and zero points that an observer found, for the rows at hand.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// One scale per element of the scale tensor's rows, row-major; one in all for the tensor strategy.
    pub scales: &'a [f32],
    /// As many zero points, zeros where absent.
    pub zero_points: Option<&'a [f32]>,
}

/// Compresses one weight `(O, N)` under a scheme, a few rows at a time.
#[derive(Clone, Debug)]
pub struct WeightCompressor {
    layout: WeightLayout,
    isa: Isa,
}

impl WeightCompressor {
    /// Lays out the tensors of a weight of `rows` rows and `cols` columns.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a scheme without weights, for a combination that the
    /// format cannot hold or that would not read back as it was quantized; [`ErrorKind::Shape`] for groups that
    /// do not divide the columns or an odd number of 4-bit columns; [`ErrorKind::DType`] for a `dtype` other than
    /// bf16, f16 and f32.
    pub fn new(
        scheme: &QuantizationScheme,
        format: CompressionFormat,
        dtype: DType,
        rows: usize,
        cols: usize,
    ) -> Result<Self> {
        let Some(args) = &scheme.weights else {
            return Err(
                ErrorKind::Unsupported { what: "compressing weights by a scheme without weights".to_owned() }.into()
            );
        };
        let float = Float::of(dtype, "weight")?;
        Ok(Self { layout: WeightLayout::new(args, format, float, [rows, cols])?, isa: Isa::detect() })
    }

    /// The same on another instruction set; all give the same bytes.
    #[must_use]
    pub fn with_isa(mut self, isa: Isa) -> Self {
        self.isa = isa.min(Isa::detect());
        self
    }

    /// All tensors that the weight becomes, in the reference's order.
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.layout.specs
    }

    /// A slab starts at a multiple of this and ends at one or at the last row.
    pub fn row_quantum(&self) -> usize {
        self.layout.row_quantum()
    }

    /// Whether a pass over the weight has to come first.
    pub fn first_pass(&self) -> FirstPass {
        match self.layout.strategy {
            QuantizationStrategy::Tensor | QuantizationStrategy::TensorGroup => FirstPass::WholeRange,
            _ => FirstPass::None,
        }
    }

    /// Range and non-finite values of the rows from `first_row`; also a check for such values alone.
    pub fn scan(&self, first_row: usize, slab: &[u8]) -> MinMax {
        rows::scan(&self.layout, self.isa, first_row, slab)
    }

    /// The global scale of a weight, or of fused weights whose ranges were merged; `None` where the scheme has none.
    pub fn global_scale(&self, range: &MinMax) -> Option<f32> {
        let amax = propagating_max(range.min.abs(), range.max.abs());
        // An empty range has infinite bounds and counts as zero.
        let amax = if range.min > range.max { 0.0 } else { amax };
        (self.layout.strategy == QuantizationStrategy::TensorGroup)
            .then(|| scales::global_scale(amax, self.layout.float))
    }

    /// Where the bytes of output `idx` for `n_rows` rows from `first_row` lie in that tensor; `None` for an output
    /// that comes from [`finish`](Self::finish).
    pub fn output_range(&self, idx: usize, first_row: usize, n_rows: usize) -> Option<Range<usize>> {
        self.layout.range(idx, first_row, n_rows)
    }

    /// Compresses the rows from `first_row`, given as little-endian bytes, with scales from their own range.
    ///
    /// `whole` is the range of the whole weight for the tensor strategy; `global_scale` the shared scale for
    /// tensor_group. Non-finite weights are reported and give undefined but reproducible codes in their group.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] for a slab that is cut at the wrong row or within one, [`ErrorKind::MissingTensor`] for
    /// a whole range or global scale that is needed and absent.
    pub fn compress_rows(
        &self,
        first_row: usize,
        slab: &[u8],
        whole: Option<&MinMax>,
        global_scale: Option<f32>,
        out: &mut SlabOutputs,
    ) -> Result<SlabReport> {
        if self.layout.strategy == QuantizationStrategy::Tensor {
            let qparam = self.whole_qparam(whole)?;
            let given = Given { scales: &[qparam.scale], zero_points: Some(&[qparam.zero_point]) };
            let is_finite = whole.is_some_and(|it| it.n_non_finite == 0);
            let job = self.job(Some(given), None, is_finite);
            return self.compress(first_row, slab, &job, out);
        }
        let global_scale = self.needed_global_scale(global_scale)?;
        self.compress(first_row, slab, &self.job(None, global_scale, false), out)
    }

    /// Compresses the rows from `first_row` with given scales and zero points.
    ///
    /// # Errors
    /// As [`compress_rows`](Self::compress_rows), and [`ErrorKind::Shape`] for the wrong number of scales.
    pub fn compress_rows_with(
        &self,
        first_row: usize,
        slab: &[u8],
        given: Given<'_>,
        global_scale: Option<f32>,
        out: &mut SlabOutputs,
    ) -> Result<SlabReport> {
        let global_scale = self.needed_global_scale(global_scale)?;
        self.compress(first_row, slab, &self.job(Some(given), global_scale, false), out)
    }

    /// The outputs that rows do not cut: `weight_shape`, `weight_global_scale`, a scale of the whole tensor.
    ///
    /// # Errors
    /// [`ErrorKind::MissingTensor`] as [`compress_rows`](Self::compress_rows).
    pub fn finish(&self, whole: Option<&MinMax>, global_scale: Option<f32>) -> Result<Vec<(usize, Vec<u8>)>> {
        if self.layout.strategy == QuantizationStrategy::Tensor {
            let qparam = self.whole_qparam(whole)?;
            let given = Given { scales: &[qparam.scale], zero_points: Some(&[qparam.zero_point]) };
            return self.finish_with(given, global_scale);
        }
        self.finish_with(Given { scales: &[], zero_points: None }, global_scale)
    }

    /// As [`finish`](Self::finish) for rows that were compressed with given scales.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] where the tensor strategy is given other than one scale.
    pub fn finish_with(&self, given: Given<'_>, global_scale: Option<f32>) -> Result<Vec<(usize, Vec<u8>)>> {
        let layout = &self.layout;
        let mut outputs = Vec::new();
        for (idx, part) in layout.parts.iter().enumerate() {
            if layout.range(idx, 0, 0).is_some() {
                continue;
            }
            let bytes = match part {
                Part::Shape => [layout.rows, layout.cols].iter().flat_map(|n| (*n as i64).to_le_bytes()).collect(),
                Part::GlobalScale => self.needed_global_scale(global_scale)?.unwrap_or(1.0).to_le_bytes().to_vec(),
                _ => {
                    let &[scale] = given.scales else { return Err(wrong_scales(given.scales.len(), 1)) };
                    let zero_point = given.zero_points.and_then(|it| it.first().copied()).unwrap_or(0.0);
                    let value = if *part == Part::Scale { scale } else { zero_point };
                    let mut bytes = vec![0; layout.specs[idx].dtype.bits() / 8];
                    self.write(*part, &[value], &mut bytes)?;
                    bytes
                }
            };
            outputs.push((idx, bytes));
        }
        Ok(outputs)
    }

    fn whole_qparam(&self, whole: Option<&MinMax>) -> Result<Qparam> {
        let whole = whole.ok_or_else(|| missing("range of the whole weight"))?;
        let (min, max) = if whole.min > whole.max { (0.0, 0.0) } else { (whole.min, whole.max) };
        Ok(self.layout.arithmetic.qparam(min, max, self.layout.float, None))
    }

    fn needed_global_scale(&self, given: Option<f32>) -> Result<Option<f32>> {
        match self.layout.strategy {
            QuantizationStrategy::TensorGroup => given.map(Some).ok_or_else(|| missing("weight_global_scale")),
            _ => Ok(None),
        }
    }

    /// Writes scales or unpacked zero points in their type on disk.
    fn write(&self, part: Part, values: &[f32], out: &mut [u8]) -> Result<()> {
        let layout = &self.layout;
        match part {
            Part::Scale if layout.arithmetic.rule == ScaleRule::Mx => {
                values.iter().zip(out).for_each(|(scale, out)| *out = scales::power_of_two_code(*scale));
                Ok(())
            }
            Part::Scale if layout.scale_dtype() == DType::F8E4M3 => {
                simd::e4m3_bytes(self.isa, values, out);
                Ok(())
            }
            Part::Scale => write_f32(layout.scale_dtype(), values, out),
            _ => write_f32(layout.arithmetic.zp_dtype, values, out),
        }
    }

    fn job<'a>(&'a self, given: Option<Given<'a>>, global_scale: Option<f32>, is_finite: bool) -> rows::Job<'a> {
        rows::Job { layout: &self.layout, isa: self.isa, given, global_scale, is_finite }
    }

    fn compress(
        &self,
        first_row: usize,
        slab: &[u8],
        job: &rows::Job<'_>,
        out: &mut SlabOutputs,
    ) -> Result<SlabReport> {
        let n_rows = self.check_slab(first_row, slab)?;
        let layout = &self.layout;
        out.buffers.resize_with(layout.specs.len(), Vec::new);
        for (idx, buffer) in out.buffers.iter_mut().enumerate() {
            // Every byte is written below, so what an earlier slab left does no harm.
            buffer.resize(layout.range(idx, first_row, n_rows).map_or(0, |it| it.len()), 0);
        }
        let codes = layout.parts.iter().position(|it| *it == Part::Codes).unwrap_or_default();
        let mut code_bytes = std::mem::take(&mut out.buffers[codes]);
        let result = rows::compress(job, slab, &mut code_bytes, &mut out.scratch);
        out.buffers[codes] = code_bytes;
        let mut report = result?;
        report.rows = n_rows;
        report.first_non_finite = report.first_non_finite.map(|it| it + (first_row * layout.cols) as u64);
        for (idx, part) in layout.parts.iter().enumerate() {
            let buffer = &mut out.buffers[idx];
            match part {
                Part::Codes | Part::Shape | Part::GlobalScale => {}
                _ if layout.strategy == QuantizationStrategy::Tensor => {}
                Part::Scale => self.write(Part::Scale, &out.scratch.scales, buffer)?,
                Part::ZeroPoint => match layout.codes {
                    CodeLayout::Words(bits) if layout.packs_zero_points => {
                        rows::pack_zero_points(&out.scratch.zero_points, layout.scales_per_row(), bits, buffer)?;
                    }
                    _ => self.write(Part::ZeroPoint, &out.scratch.zero_points, buffer)?,
                },
            }
        }
        Ok(report)
    }

    /// Number of rows in the slab.
    fn check_slab(&self, first_row: usize, slab: &[u8]) -> Result<usize> {
        let layout = &self.layout;
        let (row_bytes, quantum) = (layout.cols * layout.float.dtype().bits() / 8, layout.row_quantum());
        let n_rows = slab.len() / row_bytes;
        let end = first_row.saturating_add(n_rows);
        let is_whole = n_rows * row_bytes == slab.len() && end <= layout.rows;
        if is_whole && first_row.is_multiple_of(quantum) && (end == layout.rows || end.is_multiple_of(quantum)) {
            return Ok(n_rows);
        }
        let expected = format!(
            "whole rows of {row_bytes} bytes, cut at multiples of {quantum} rows, within {} rows (rows {first_row} to {end})",
            layout.rows
        );
        Err(ErrorKind::Shape { tensor: "weight".to_owned(), found: vec![slab.len()], expected }.into())
    }
}

fn missing(tensor: &str) -> crate::Error {
    ErrorKind::MissingTensor { tensor: tensor.to_owned() }.into()
}

fn wrong_scales(found: usize, expected: usize) -> crate::Error {
    ErrorKind::Shape { tensor: "weight_scale".to_owned(), found: vec![found], expected: format!("{expected} scales") }
        .into()
}
