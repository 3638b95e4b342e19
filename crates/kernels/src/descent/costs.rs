//! What rounding costs, a block of rows at a time.

use rayon::prelude::*;

use super::Grid;
use super::rounding::with_quantize;
use crate::Profile;
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
    rows.zip(sums.par_chunks_mut(ROWS * groups)).enumerate().for_each(|(block, ((weight, scales), sums))| {
        costs_of_block(profile, grid, grid.zero_points_from(block * ROWS), costs, weight, scales, sums);
    });
}

twins! {
    fn costs_of_block(
        grid: &Grid<'_>, zero_points: Option<&[f32]>, costs: &[f32], weight: &[f32], scales: &[f32], sums: &mut [f32],
    ) = costs_of;
}

#[inline(always)]
fn costs_of(
    grid: &Grid<'_>,
    zero_points: Option<&[f32]>,
    costs: &[f32],
    weight: &[f32],
    scales: &[f32],
    sums: &mut [f32],
) {
    with_quantize!(grid, |quantize| costs_by(grid, zero_points, costs, weight, scales, sums, quantize))
}

#[inline(always)]
fn costs_by(
    grid: &Grid<'_>,
    zero_points: Option<&[f32]>,
    costs: &[f32],
    weight: &[f32],
    scales: &[f32],
    sums: &mut [f32],
    quantize: impl Fn(f32, f32, f32) -> f32,
) {
    let mut terms = vec![0.0; grid.width.min(grid.cols)];
    let groups = weight.chunks_exact(grid.cols).flat_map(|row| row.chunks(grid.width).zip(costs.chunks(grid.width)));
    for (at, (group, costs)) in groups.enumerate() {
        let (scale, zero) = (scales[at], zero_points.map_or(0.0, |it| it[at]));
        for (term, (&w, cost)) in terms.iter_mut().zip(group.iter().zip(costs)) {
            let error = w - quantize(w, scale, zero);
            *term = cost * error * error;
        }
        sums[at] = lane_sum(&terms[..group.len()], |it| it);
    }
}
