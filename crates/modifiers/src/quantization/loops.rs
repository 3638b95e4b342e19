//! Loops over rows of a weight, compiled for the processor at hand; each has the bits of the functions that it inlines.

use compressed_tensors::{
    numbers::Float,
    quantize::{Division, dequantize_value, quantize_value},
    scales::{Code, propagating_max, propagating_min},
};
use pulp::NullaryFnOnce;

/// Values that are compared side by side.
const LANES: usize = 16;

/// Joins the smallest and the largest value of each tile of a row into those known of it; NaN is kept.
pub(super) struct RangesOfRow<'a> {
    pub(super) row: &'a [f32],
    /// Columns of a tile.
    pub(super) width: usize,
    /// One for each tile of the row.
    pub(super) ranges: &'a mut [(f32, f32)],
}

impl NullaryFnOnce for RangesOfRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (range, tile) in self.ranges.iter_mut().zip(self.row.chunks(self.width)) {
            let (mut min, mut max) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
            let (chunks, rest) = tile.as_chunks::<LANES>();
            for chunk in chunks {
                for lane in 0..LANES {
                    min[lane] = propagating_min(min[lane], chunk[lane]);
                    max[lane] = propagating_max(max[lane], chunk[lane]);
                }
            }
            let (low, high) = (min.iter().chain(rest), max.iter().chain(rest));
            range.0 = low.fold(range.0, |a, b| propagating_min(a, *b));
            range.1 = high.fold(range.1, |a, b| propagating_max(a, *b));
        }
    }
}

/// Replaces a row by what it is read back as.
pub(super) struct RoundRow<'a> {
    pub(super) row: &'a mut [f32],
    /// Columns of a tile.
    pub(super) width: usize,
    /// What each tile is divided by and multiplied with.
    pub(super) scales: &'a [f32],
    pub(super) zero_points: Option<&'a [f32]>,
    pub(super) code: Code,
    /// Type of the row.
    pub(super) float: Float,
    /// Type that is multiplied in.
    pub(super) dtype: Float,
}

impl NullaryFnOnce for RoundRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let (code, float, dtype) = (self.code, self.float, self.dtype);
        // Types that are known when this is compiled are not asked for at each number.
        match (code, float, dtype) {
            (Code::Int { bits }, Float::BF16, Float::BF16) => self.round(Code::Int { bits }, Float::BF16, Float::BF16),
            (Code::Int { bits }, Float::F16, Float::F16) => self.round(Code::Int { bits }, Float::F16, Float::F16),
            (Code::Int { bits }, Float::F32, Float::F32) => self.round(Code::Int { bits }, Float::F32, Float::F32),
            _ => self.round(code, float, dtype),
        }
    }
}

impl RoundRow<'_> {
    #[inline(always)]
    fn round(self, code: Code, float: Float, dtype: Float) {
        let tiles = self.row.chunks_mut(self.width).zip(self.scales);
        match self.zero_points {
            Some(zero_points) => {
                for ((tile, scale), zero_point) in tiles.zip(zero_points) {
                    round_tile(tile, code, (*scale, Some(*zero_point)), float, dtype);
                }
            }
            None => {
                for (tile, scale) in tiles {
                    round_tile(tile, code, (*scale, None), float, dtype);
                }
            }
        }
    }
}

#[inline(always)]
fn round_tile(tile: &mut [f32], code: Code, (scale, zero_point): (f32, Option<f32>), float: Float, dtype: Float) {
    let types = [float, float.promote(dtype)];
    for value in tile {
        let code = quantize_value(code, *value, scale, zero_point, types, Division::Eager);
        *value = float.round(dequantize_value(code, scale, zero_point, dtype));
    }
}
