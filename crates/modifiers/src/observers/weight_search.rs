//! Ranges and scales of one weight, found by any weight observer from row slabs.
//!
//! [`WeightSearch::scan_rows`] is pure: slabs may be scanned in any order and in parallel, and the result does not
//! depend on how rows were cut into slabs. Between slabs only what belongs to a scale is kept.

use compressed_tensors::{
    DType, ErrorKind, Result,
    args::{QuantizationArgs, QuantizationStrategy},
    numbers::{Float, read_f32},
    quantize::ScaleMap,
    scales::{Arithmetic, Qparam, propagating_max, propagating_min},
    weight_compressor::{FirstPass, MinMax},
};
use serde_json::{Map, Value};

use super::{
    exact_sum::ExactSum,
    importance::{Importance, column_factors},
    improvements::Improvements,
    registry::weight_observer,
    search::{GridSearch, Range, range},
    searched::SearchedRanges,
    settings::ObserverSettings,
};

/// Finds the ranges of one weight `(O, N)`.
#[derive(Clone, Debug)]
pub struct WeightSearch {
    pub(super) args: QuantizationArgs,
    pub(super) arithmetic: Arithmetic,
    pub(super) float: Float,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Rows and columns under one scale, whole rows for tensor and channel.
    pub(super) tile: [usize; 2],
    pub(super) scale_shape: Vec<usize>,
    pub(super) grid: Option<GridSearch>,
    factors: Option<Vec<f32>>,
    pub(super) whole: Option<Range>,
    needs_importance: bool,
    warning: Option<String>,
}

/// What was found in a slab.
#[derive(Clone, Debug)]
pub struct SlabSearch {
    pub(super) first_row: usize,
    pub(super) n_rows: usize,
    pub(super) ranges: Vec<Range>,
    pub(super) found: Improvements,
    pub(super) sums: Vec<ExactSum>,
}

impl WeightSearch {
    /// A search by the observer that `name` and `kwargs` say, in place of those of `args`.
    ///
    /// # Errors
    /// As [`weight_observer`]; unsupported arithmetic, types and strategies, groups that do not divide the columns,
    /// and weights without elements.
    pub fn new(
        name: &str,
        kwargs: &Map<String, Value>,
        args: &QuantizationArgs,
        dtype: DType,
        [rows, cols]: [usize; 2],
    ) -> Result<Self> {
        let args =
            QuantizationArgs { observer: Some(name.to_owned()), observer_kwargs: kwargs.clone(), ..args.clone() };
        Self::of(&args, dtype, [rows, cols])
    }

    /// A search by the observer of `args`, min-max where it names none.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn of(args: &QuantizationArgs, dtype: DType, shape: [usize; 2]) -> Result<Self> {
        let choice = weight_observer(args)?;
        let search = Self::with_settings(&choice.settings, args, Float::of(dtype, "weight")?, shape)?;
        Ok(Self { warning: choice.warning, needs_importance: choice.entry.needs_inputs(), ..search })
    }

    pub(super) fn with_settings(
        settings: &ObserverSettings,
        args: &QuantizationArgs,
        float: Float,
        [rows, cols]: [usize; 2],
    ) -> Result<Self> {
        use QuantizationStrategy as S;
        let map = ScaleMap::weight(args, &[rows, cols])?;
        if rows == 0 || cols == 0 {
            let expected = "at least one row and one column".to_owned();
            return Err(ErrorKind::Shape { tensor: "weight".to_owned(), found: vec![rows, cols], expected }.into());
        }
        let tile = match (args.strategy, args.block_structure) {
            (S::Group | S::TensorGroup, _) => [1, cols / map.scale_shape()[1]],
            (S::Block, Some(block)) => block,
            _ => [1, cols],
        };
        Ok(Self {
            args: args.clone(),
            arithmetic: Arithmetic::of(args)?,
            float,
            rows,
            cols,
            tile,
            scale_shape: map.scale_shape().to_vec(),
            grid: settings.search.map(|search| GridSearch::new(&search, args, float)).transpose()?,
            factors: None,
            whole: None,
            needs_importance: false,
            warning: None,
        })
    }

    /// Weights the errors of an importance observer by column; `None` and what is unusable leave all columns alike.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where there is no usable importance and the kwargs say `strict`.
    pub fn with_importance(mut self, importance: Option<&Importance>) -> Result<Self> {
        if self.needs_importance {
            (self.factors, self.warning) =
                column_factors(&self.args, self.cols, importance, self.grid.as_ref().is_some_and(|it| it.is_strict))?;
            self.needs_importance = false;
        }
        Ok(self)
    }

    pub(super) fn with_factors(self, factors: Option<Vec<f32>>) -> Self {
        Self { factors, ..self }
    }

    /// Scans and resolves a whole weight.
    pub(super) fn search_values(self, values: &[f32]) -> Result<SearchedRanges> {
        let (min, max) = range(values);
        let search = self.with_range(&MinMax { min, max, ..MinMax::EMPTY });
        search.resolve([search.scan_values(0, values)?])
    }

    /// What the user should know: an observer that was replaced, importance that could not be used.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Whether the range of the whole weight must be known before rows are scanned.
    pub fn first_pass(&self) -> FirstPass {
        match self.args.strategy {
            QuantizationStrategy::Tensor if self.grid.is_some() => FirstPass::WholeRange,
            _ => FirstPass::None,
        }
    }

    /// Sets the range of the whole weight, as `WeightCompressor::scan` finds it.
    #[must_use]
    pub fn with_range(mut self, whole: &MinMax) -> Self {
        self.whole = Some(if whole.min > whole.max { (0.0, 0.0) } else { (whole.min, whole.max) });
        self
    }

    /// A slab starts at a multiple of this and ends at one or at the last row.
    pub fn row_quantum(&self) -> usize {
        self.tile[0]
    }

    /// Scans the rows from `first_row`, given as little-endian bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] for a slab that is cut at the wrong row or within one; [`ErrorKind::MissingTensor`] where
    /// a range of the whole weight is needed; [`ErrorKind::Unsupported`] where importance is and `strict` was given.
    pub fn scan_rows(&self, first_row: usize, slab: &[u8]) -> Result<SlabSearch> {
        let dtype = self.float.dtype();
        let row_bytes = self.cols * dtype.bits() / 8;
        let n_rows = slab.len() / row_bytes;
        if n_rows * row_bytes != slab.len() {
            return Err(self.bad_slab(first_row, n_rows));
        }
        let mut found = self.start(first_row, n_rows)?;
        let mut values = Vec::new();
        let mut tile = Vec::new();
        for bytes in slab.chunks(self.tile[0].saturating_mul(row_bytes)) {
            values.resize(bytes.len() / row_bytes * self.cols, 0.0);
            read_f32(dtype, bytes, &mut values)?;
            self.scan_tiles(&values, &mut tile, &mut found);
        }
        Ok(found)
    }

    /// As [`scan_rows`](Self::scan_rows) for values that are read already.
    ///
    /// # Errors
    /// As there.
    pub fn scan_values(&self, first_row: usize, values: &[f32]) -> Result<SlabSearch> {
        let n_rows = values.len() / self.cols;
        if n_rows * self.cols != values.len() {
            return Err(self.bad_slab(first_row, n_rows));
        }
        let mut found = self.start(first_row, n_rows)?;
        let mut tile = Vec::new();
        for values in values.chunks(self.tile[0].saturating_mul(self.cols)) {
            self.scan_tiles(values, &mut tile, &mut found);
        }
        Ok(found)
    }

    fn start(&self, first_row: usize, n_rows: usize) -> Result<SlabSearch> {
        let end = first_row.saturating_add(n_rows);
        let is_cut_right = first_row.is_multiple_of(self.tile[0])
            && end <= self.rows
            && (end == self.rows || end.is_multiple_of(self.tile[0]));
        if !is_cut_right {
            return Err(self.bad_slab(first_row, n_rows));
        }
        if self.first_pass() == FirstPass::WholeRange && self.whole.is_none() {
            return Err(ErrorKind::MissingTensor { tensor: "range of the whole weight".to_owned() }.into());
        }
        if self.needs_importance {
            // Only strict kwargs make this an error.
            column_factors(&self.args, self.cols, None, self.grid.as_ref().is_some_and(|it| it.is_strict))?;
        }
        Ok(SlabSearch { first_row, n_rows, ranges: Vec::new(), found: self.improvements(), sums: Vec::new() })
    }

    /// Those of a slab in which nothing was searched yet.
    pub(super) fn improvements(&self) -> Improvements {
        let n_steps = self.grid.as_ref().map_or(0, |it| it.factors.len());
        Improvements::new(n_steps, self.grid.as_ref().and_then(|it| it.patience))
    }

    fn bad_slab(&self, first_row: usize, n_rows: usize) -> compressed_tensors::Error {
        let expected = format!(
            "whole rows of {} values, cut at multiples of {} rows, within {} rows (rows {first_row} to {})",
            self.cols,
            self.tile[0],
            self.rows,
            first_row.saturating_add(n_rows)
        );
        ErrorKind::Shape { tensor: "weight".to_owned(), found: vec![n_rows, self.cols], expected }.into()
    }

    /// Takes one row of tiles.
    fn scan_tiles(&self, values: &[f32], tile: &mut Vec<f32>, slab: &mut SlabSearch) {
        let Some(grid) = &self.grid else { return self.scan_ranges(values, slab) };
        let [height, width] = self.tile;
        match (self.args.strategy, self.whole) {
            (QuantizationStrategy::Tensor, Some(whole)) => {
                let n_steps = grid.factors.len();
                slab.ranges.resize(1, whole);
                slab.sums.resize(n_steps, self.no_error(whole));
                let qparams: Vec<Qparam> = (0..n_steps).map(|step| grid.qparam(whole, step)).collect();
                let mut sums = vec![0.0; n_steps];
                for row in values.chunks(self.cols) {
                    grid.row_sums(row, whole, &qparams, &mut sums);
                    slab.sums.iter_mut().zip(&sums).for_each(|(sum, row)| sum.add(*row));
                }
            }
            (QuantizationStrategy::Block, _) => {
                for first in (0..self.cols).step_by(width) {
                    let n_cols = width.min(self.cols - first);
                    tile.clear();
                    values.chunks(self.cols).for_each(|row| tile.extend_from_slice(&row[first..first + n_cols]));
                    // A block that the edge cuts is filled up with zeros, which have no error.
                    let extra = (tile.len() < height.saturating_mul(width)).then_some(0.0);
                    grid.runs(tile, None, tile.len(), extra, (&mut slab.ranges, &mut slab.found));
                }
            }
            _ => grid.runs(values, self.factors.as_deref(), width, None, (&mut slab.ranges, &mut slab.found)),
        }
    }

    fn scan_ranges(&self, values: &[f32], slab: &mut SlabSearch) {
        let [height, width] = self.tile;
        let first = slab.ranges.len();
        for (i, row) in values.chunks(self.cols).enumerate() {
            for (j, run) in row.chunks(width).enumerate() {
                let new = range(run);
                match slab.ranges.get_mut(first + j) {
                    Some(seen) if i > 0 => *seen = join(*seen, new),
                    _ => slab.ranges.push(new),
                }
            }
        }
        if self.args.strategy == QuantizationStrategy::Tensor {
            let whole = slab.ranges.iter().copied().reduce(join);
            slab.ranges.clear();
            slab.ranges.extend(whole);
        }
        if self.args.strategy == QuantizationStrategy::Block {
            let is_cut = values.len() < height.saturating_mul(self.cols);
            let n_tiles = slab.ranges.len() - first;
            for (j, seen) in slab.ranges[first..].iter_mut().enumerate() {
                if is_cut || (j + 1 == n_tiles && !self.cols.is_multiple_of(width)) {
                    *seen = join(*seen, (0.0, 0.0));
                }
            }
        }
    }

    /// A sum of errors that can hold those of the whole weight.
    fn no_error(&self, (min, max): Range) -> ExactSum {
        let Some(grid) = &self.grid else { return ExactSum::below(0.0) };
        let reach = 4.0 * f64::from(grid.expand) * f64::from(propagating_max(min.abs(), max.abs()));
        let largest = if reach > 0.0 { super::power::power(reach.min(1e300), grid.norm) } else { 0.0 };
        ExactSum::below(largest.min(f64::from(f32::MAX)) * self.cols as f64)
    }

    /// Joins all slabs, in the order of rows, and chooses the ranges.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] where the slabs do not make up the weight.
    pub fn resolve(&self, slabs: impl IntoIterator<Item = SlabSearch>) -> Result<SearchedRanges> {
        let mut whole = self.start(0, 0)?;
        let is_tensor = self.is_tensor();
        for slab in slabs {
            if slab.first_row != whole.n_rows {
                return Err(self.bad_slab(slab.first_row, slab.n_rows));
            }
            whole.n_rows += slab.n_rows;
            match (is_tensor, whole.ranges.first_mut(), slab.ranges.first()) {
                (true, Some(seen), Some(new)) => *seen = join(*seen, *new),
                _ => whole.ranges.extend_from_slice(&slab.ranges),
            }
            whole.found.append(&slab.found);
            match whole.sums.is_empty() {
                true => whole.sums = slab.sums,
                false => whole.sums.iter_mut().zip(&slab.sums).for_each(|(sum, new)| sum.merge(new)),
            }
        }
        if whole.n_rows != self.rows {
            return Err(self.bad_slab(0, whole.n_rows));
        }
        let outcome = self.outcome(&self.survey(&whole));
        Ok(self.resolve_slab(whole, &outcome))
    }
}

fn join(a: Range, b: Range) -> Range {
    (propagating_min(a.0, b.0), propagating_max(a.1, b.1))
}
