//! Round to nearest on slices: min-max scales, and the values that a saved weight is read back as.

use compressed_tensors::{
    args::{QuantizationArgs, QuantizationStrategy},
    numbers::Float,
    quantize::{Qparams, ScaleMap},
    scales::{Arithmetic, global_scale, propagating_max},
};
use pulp::Arch;
use rayon::prelude::*;

use super::loops::{RangesOfRow, RoundRow};
use crate::error::{Result, check_len};

/// A weight `(O, N)` and how it is quantized.
#[derive(Clone, Copy, Debug)]
pub struct WeightSpec<'a> {
    /// The scheme's arguments for weights.
    pub args: &'a QuantizationArgs,
    /// Type of the weight; its values are given as f32.
    pub float: Float,
    /// O.
    pub rows: usize,
    /// N.
    pub cols: usize,
}

/// Tiles of a weight that share a scale, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Rows of a tile.
    pub height: usize,
    /// Columns of a tile; those at the right end may be narrower.
    pub width: usize,
    /// Tiles across.
    pub per_row: usize,
    /// Tiles in all.
    pub count: usize,
}

impl WeightSpec<'_> {
    /// The tiles of the strategy.
    ///
    /// # Errors
    /// Groups that do not divide the columns, and strategies of activations.
    pub fn tiles(&self) -> Result<Tiles> {
        use QuantizationStrategy as S;
        let &Self { args, rows, cols, .. } = self;
        let count = ScaleMap::weight(args, &[rows, cols])?.scales();
        let positive = |it: i64| usize::try_from(it).unwrap_or(1).max(1);
        let (height, width) = match (args.strategy, args.group_size, args.block_structure) {
            (S::Group | S::TensorGroup, Some(size), _) => (1, positive(size)),
            (S::Block, _, Some([height, width])) => (height.max(1), width.max(1)),
            (S::Tensor, ..) => (rows.max(1), cols.max(1)),
            _ => (1, cols.max(1)),
        };
        Ok(Tiles { height, width, per_row: cols.div_ceil(width), count })
    }

    /// Smallest and largest value of every tile, in row-major order; NaN is kept.
    ///
    /// # Errors
    /// As [`tiles`](Self::tiles), and a weight of another length.
    pub fn ranges(&self, weight: &[f32]) -> Result<Vec<(f32, f32)>> {
        check_len("weight", weight.len(), &[self.rows, self.cols])?;
        let tiles = self.tiles()?;
        if weight.is_empty() {
            return Ok(vec![(0.0, 0.0); tiles.count]);
        }
        let mut ranges = vec![(f32::INFINITY, f32::NEG_INFINITY); tiles.count];
        let slabs = weight.par_chunks(tiles.height.saturating_mul(self.cols));
        let arch = Arch::new();
        ranges.par_chunks_mut(tiles.per_row).zip(slabs).for_each(|(ranges, slab)| {
            for row in slab.chunks_exact(self.cols) {
                arch.dispatch(RangesOfRow { row, width: tiles.width, ranges: &mut *ranges });
            }
        });
        Ok(ranges)
    }

    /// Scales and zero points of the weight's own ranges (`memoryless_minmax`), as its module stores them.
    ///
    /// `shared` is the global scale of fused weights; without it tensor_group uses the weight's own.
    ///
    /// # Errors
    /// As [`ranges`](Self::ranges), and arguments without arithmetic.
    pub fn minmax(&self, weight: &[f32], shared: Option<f32>) -> Result<Qparams> {
        let ranges = self.ranges(weight)?;
        let arithmetic = Arithmetic::of(self.args)?;
        let global = (self.args.strategy == QuantizationStrategy::TensorGroup)
            .then(|| shared.unwrap_or_else(|| global_scale(amax(&ranges), self.float)));
        Ok(Qparams::from_ranges(&arithmetic, &ranges, self.float, global).stored_as(self.float))
    }

    /// Replaces a weight by what it is read back as: quantized and dequantized in the weight's type.
    ///
    /// This is `decompress(compress(W))` with the given scales: what the layers after a written one see.
    ///
    /// # Errors
    /// As [`tiles`](Self::tiles), and scales of another number.
    pub fn round_to_nearest(&self, qparams: &Qparams, weight: &mut [f32]) -> Result<()> {
        check_len("weight", weight.len(), &[self.rows, self.cols])?;
        let (tiles, arithmetic) = (self.tiles()?, Arithmetic::of(self.args)?);
        check_len("scales", qparams.scales.len(), &[tiles.count])?;
        let zero_points = qparams.zero_points.as_deref().filter(|_| !arithmetic.symmetric);
        if let Some(zero_points) = zero_points {
            check_len("zero points", zero_points.len(), &[tiles.count])?;
        }
        if weight.is_empty() {
            return Ok(());
        }
        let dtype = if qparams.global_scale.is_some() { Float::F32 } else { qparams.dtype };
        let divided: Option<Vec<f32>> =
            qparams.global_scale.map(|global| qparams.scales.iter().map(|it| it / global).collect());
        let scales = divided.as_deref().unwrap_or(&qparams.scales);
        let slabs = weight.par_chunks_mut(tiles.height.saturating_mul(self.cols));
        let arch = Arch::new();
        slabs.enumerate().for_each(|(tile_row, slab)| {
            let places = tile_row * tiles.per_row..(tile_row + 1) * tiles.per_row;
            for row in slab.chunks_exact_mut(self.cols) {
                arch.dispatch(RoundRow {
                    row,
                    width: tiles.width,
                    scales: &scales[places.clone()],
                    zero_points: zero_points.map(|it| &it[places.clone()]),
                    code: arithmetic.code,
                    float: self.float,
                    dtype,
                });
            }
        });
        Ok(())
    }
}

/// Largest magnitude of ranges, which is what fused tensors share; 0 without any.
pub fn amax(ranges: &[(f32, f32)]) -> f32 {
    ranges.iter().map(|(min, max)| propagating_max(*max, -*min)).fold(0.0, propagating_max)
}
