//! What rounding costs, a block of rows at a time.

use rayon::prelude::*;

use super::Grid;
use crate::Profile;
use crate::gptq_sweep::{round_int, with_quantize};
use crate::rows::{lane_sum, twins};

/// Rows of a task.
const ROWS: usize = 32;

/// As [`super::rounding_costs`]; arguments agree.
pub(super) fn rounding_costs(
    profile: Profile,
    grid: &Grid<'_>,
    costs: &[f32],
    weight: &[f32],
    scales: &[f32],
    sums: &mut [f32],
) {
    let groups = grid.groups();
    let rows = weight.par_chunks(ROWS * grid.cols).zip(scales.par_chunks(ROWS * groups));
    rows.zip(sums.par_chunks_mut(ROWS * groups)).enumerate().for_each(|(idx, ((weight, scales), sums))| {
        let block = Block { grid, zero_points: grid.zero_points_from(idx * ROWS), costs, weight, scales };
        costs_of_block(profile, &block, sums);
    });
}

struct Block<'a> {
    grid: &'a Grid<'a>,
    zero_points: Option<&'a [f32]>,
    costs: &'a [f32],
    weight: &'a [f32],
    scales: &'a [f32],
}

twins! {
    fn costs_of_block(block: &Block<'_>, sums: &mut [f32]) = costs_of;
}

#[inline(always)]
fn costs_of(block: &Block<'_>, sums: &mut [f32]) {
    let (lowest, highest) = block.grid.codes();
    with_quantize!(|y| round_int(y, lowest, highest), block.grid.scale_type, block.zero_points.is_some(), |quantize| {
        block.costs(quantize, sums)
    })
}

impl Block<'_> {
    #[inline(always)]
    fn costs(&self, quantize: impl Fn(f32, f32, f32) -> f32, sums: &mut [f32]) {
        let Grid { cols, width, .. } = *self.grid;
        let mut terms = vec![0.0; width.min(cols)];
        let groups = self.weight.chunks_exact(cols).flat_map(|row| row.chunks(width).zip(self.costs.chunks(width)));
        for (at, (group, costs)) in groups.enumerate() {
            let (scale, zero) = (self.scales[at], self.zero_points.map_or(0.0, |it| it[at]));
            for (term, (&w, cost)) in terms.iter_mut().zip(group.iter().zip(costs)) {
                let error = w - quantize(w, scale, zero);
                *term = cost * error * error;
            }
            sums[at] = lane_sum(&terms[..group.len()], |it| it);
        }
    }
}
