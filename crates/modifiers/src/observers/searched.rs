//! What a weight search found, in the two steps that a shared global scale needs: ranges, then scales.

use std::ops::Range as Span;

use compressed_tensors::{
    args::QuantizationStrategy,
    numbers::Float,
    scales::{Arithmetic, Qparam, propagating_max},
    weight_compressor::{Given, MinMax},
};

use super::search::Range;

/// The ranges that a search chose.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchedRanges {
    pub(super) arithmetic: Arithmetic,
    pub(super) float: Float,
    pub(super) strategy: QuantizationStrategy,
    pub(super) scale_shape: Vec<usize>,
    pub(super) tile_rows: usize,
    pub(super) ranges: Vec<Range>,
    pub(super) n_evaluated: usize,
}

/// Scales and zero points of a weight, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct SearchResult {
    /// One per element of the scale tensor, in the type they are computed in.
    pub scales: Vec<f32>,
    /// As many.
    pub zero_points: Vec<f32>,
    per_row: usize,
    tile_rows: usize,
    is_whole: bool,
}

impl SearchedRanges {
    /// Smallest and largest value per scale, row-major.
    pub fn ranges(&self) -> &[(f32, f32)] {
        &self.ranges
    }

    /// Shape of the scale tensor.
    pub fn scale_shape(&self) -> &[usize] {
        &self.scale_shape
    }

    /// Candidates tried before the search stopped; 0 for the min-max observers.
    pub fn n_evaluated(&self) -> usize {
        self.n_evaluated
    }

    /// The range of all scales together, from which `WeightCompressor::global_scale` makes the global scale.
    ///
    /// Fused weights [`merge`](MinMax::merge) theirs first.
    pub fn range(&self) -> MinMax {
        // The largest magnitude counts, of which a bound on the far side of zero is no part.
        self.ranges.iter().fold(MinMax::EMPTY, |all, (min, max)| {
            let amax = propagating_max(*max, -*min);
            all.merge(MinMax { min: -amax, max: amax, ..MinMax::EMPTY })
        })
    }

    /// Scales and zero points; `global_scale` is given for the tensor_group strategy.
    pub fn qparams(self, global_scale: Option<f32>) -> SearchResult {
        let global_scale = global_scale.filter(|_| self.strategy == QuantizationStrategy::TensorGroup);
        let qparam = |(min, max): &Range| self.arithmetic.qparam(*min, *max, self.float, global_scale);
        let (scales, zero_points) =
            self.ranges.iter().map(qparam).map(|Qparam { scale, zero_point }| (scale, zero_point)).unzip();
        SearchResult {
            scales,
            zero_points,
            per_row: self.scale_shape.get(1).copied().unwrap_or(1),
            tile_rows: self.tile_rows,
            is_whole: self.strategy == QuantizationStrategy::Tensor,
        }
    }
}

impl SearchResult {
    /// Scales and zero points of `n_rows` rows from `first_row`, as `WeightCompressor::compress_rows_with` takes them.
    ///
    /// `first_row` is a multiple of the row quantum; rows outside the weight have none.
    pub fn given(&self, first_row: usize, n_rows: usize) -> Given<'_> {
        let span = if self.is_whole { 0..self.scales.len() } else { self.span(first_row, n_rows) };
        Given { scales: &self.scales[span.clone()], zero_points: Some(&self.zero_points[span]) }
    }

    fn span(&self, first_row: usize, n_rows: usize) -> Span<usize> {
        let end = first_row.saturating_add(n_rows).div_ceil(self.tile_rows).saturating_mul(self.per_row);
        let end = end.min(self.scales.len());
        let start = (first_row / self.tile_rows).saturating_mul(self.per_row);
        start.min(end)..end
    }
}
