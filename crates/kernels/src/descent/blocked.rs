//! Descent on blocks of rows: columns in turn, moves spread along rows of the matrix, then scales of all rows of the block at once.

use std::ops::Range;

use rayon::prelude::*;

use super::Grid;
use super::products::{add_product, subtract_scattered};
use crate::gptq_sweep::{round_int, with_quantize};
use crate::rows::{Fused, fused_twins, lane_dot};
use crate::{Mat, Profile};

/// Rows whose pulls are formed as one product, which bounds the memory that they take.
const SLAB: usize = 512;
/// Rows that pass over the matrix together, so that what is read of it serves all of them.
const ROWS: usize = 128;
/// Columns in turn whose rows of the matrix stay in the caches while the rows of a block pass.
const COLUMNS: usize = 64;
/// Columns that are asked at once whether any of their codes could move.
const ASKED: usize = 16;

/// As [`super::descend`], for each row; arguments agree.
pub(super) fn descend(
    profile: Profile,
    grid: &Grid<'_>,
    moments: Mat<'_, f32>,
    rounds: u32,
    weight: &[f32],
    rounded: &mut [f32],
    scales: &mut [f32],
) -> Vec<[f64; 2]> {
    let (cols, groups, still) = (grid.cols, grid.groups(), still(grid));
    let curves: Vec<f32> = moments.data().iter().copied().step_by(cols + 1).collect();
    let mut all = Vec::with_capacity(weight.len() / cols);
    let (mut errors, mut pulls) = (Vec::new(), Vec::new());
    let slabs = weight.chunks(SLAB * cols).zip(rounded.chunks_mut(SLAB * cols)).zip(scales.chunks_mut(SLAB * groups));
    for (slab, ((weight, rounded), scales)) in slabs.enumerate() {
        errors.clear();
        errors.extend(weight.iter().zip(&*rounded).map(|(w, v)| w - v));
        pulls.clear();
        pulls.resize(weight.len(), 0.0);
        add_product(profile, &errors, moments, &mut pulls);
        let blocks = weight.par_chunks(ROWS * cols).zip(rounded.par_chunks_mut(ROWS * cols));
        let blocks = blocks.zip(scales.par_chunks_mut(ROWS * groups).zip(pulls.par_chunks_mut(ROWS * cols)));
        let of_blocks = blocks.enumerate().map(|(idx, ((weight, values), (scales, pulls)))| {
            let zero_points = grid.zero_points_from(slab * SLAB + idx * ROWS);
            let is_moved = vec![true; scales.len()];
            let curves = &curves;
            let mut block =
                Block { profile, grid, zero_points, moments, curves, still, values, scales, pulls, is_moved };
            let before = block.errors(weight);
            descend_block(profile, &mut block, rounds);
            before.into_iter().zip(block.errors(weight)).map(|(before, after)| [before, after]).collect::<Vec<_>>()
        });
        all.extend(of_blocks.collect::<Vec<_>>().into_iter().flatten());
    }
    all
}

/// A pull of less than this share of a scale times a curve moves nothing: the nearest value stays the nearest, for rounding to
/// 8 bits of fraction has put it off by less than the rest.
fn still(grid: &Grid<'_>) -> f32 {
    let (lowest, highest) = grid.codes();
    let most = if grid.zero_points.is_some() { highest - lowest } else { -lowest };
    (0.49 - most / 256.0).max(0.2)
}

/// Rows of a weight and what their errors pull at.
struct Block<'a> {
    profile: Profile,
    grid: &'a Grid<'a>,
    zero_points: Option<&'a [f32]>,
    moments: Mat<'a, f32>,
    /// The diagonal of the moments.
    curves: &'a [f32],
    still: f32,
    values: &'a mut [f32],
    scales: &'a mut [f32],
    /// `(weight - values) moments`.
    pulls: &'a mut [f32],
    /// Of each group, whether a code has moved since its scale was looked at.
    is_moved: Vec<bool>,
}

fused_twins! {
    fn descend_block(block: &mut Block<'_>, rounds: u32) = descend_of;
}

#[inline(always)]
fn descend_of<const FUSED: bool>(fused: Fused<FUSED>, block: &mut Block<'_>, rounds: u32) {
    let grid = block.grid;
    let (lowest, highest) = grid.codes();
    with_quantize!(|y| round_int(y, lowest, highest), grid.scale_type, block.zero_points.is_some(), |quantize| {
        block.descend(fused, rounds, |value, scale, zero| grid.weight_type.round(quantize(value, scale, zero)))
    })
}

impl Block<'_> {
    /// `sum e H e^T` of each row.
    fn errors(&self, weight: &[f32]) -> Vec<f64> {
        let cols = self.grid.cols;
        let rows = weight.chunks_exact(cols).zip(self.values.chunks_exact(cols)).zip(self.pulls.chunks_exact(cols));
        rows.map(|((weight, values), pulls)| {
            let errors: Vec<f32> = weight.iter().zip(values).map(|(w, v)| w - v).collect();
            lane_dot(&errors, pulls)
        })
        .collect()
    }

    #[inline(always)]
    fn descend<const FUSED: bool>(
        &mut self,
        fused: Fused<FUSED>,
        rounds: u32,
        nearest: impl Fn(f32, f32, f32) -> f32 + Copy,
    ) {
        let groups = self.grid.groups();
        let mut rows: Vec<usize> = (0..self.scales.len() / groups).collect();
        for _ in 0..rounds {
            self.move_codes(fused, &rows, nearest);
            rows.retain(|row| self.is_moved[row * groups..(row + 1) * groups].contains(&true));
            if rows.is_empty() {
                break;
            }
            for group in 0..groups {
                let mut take = |row: &usize| std::mem::take(&mut self.is_moved[row * groups + group]);
                let rows: Vec<usize> = rows.iter().copied().filter(|row| take(row)).collect();
                self.move_scales(group, &rows, nearest);
            }
        }
    }

    #[inline(always)]
    fn move_codes<const FUSED: bool>(
        &mut self,
        fused: Fused<FUSED>,
        rows: &[usize],
        nearest: impl Fn(f32, f32, f32) -> f32 + Copy,
    ) {
        let (cols, width) = (self.grid.cols, self.grid.width);
        for start in (0..cols).step_by(COLUMNS) {
            for &row in rows {
                let mut first = start;
                while first < cols.min(start + COLUMNS) {
                    let end = cols.min(start + COLUMNS).min(first + ASKED).min((first / width + 1) * width);
                    self.move_within(fused, row, first..end, nearest);
                    first = end;
                }
            }
        }
    }

    /// Moves codes of some columns of one group of a row.
    #[inline(always)]
    fn move_within<const FUSED: bool>(
        &mut self,
        fused: Fused<FUSED>,
        row: usize,
        columns: Range<usize>,
        nearest: impl Fn(f32, f32, f32) -> f32,
    ) {
        let (cols, width) = (self.grid.cols, self.grid.width);
        let at = row * self.grid.groups() + columns.start / width;
        let (scale, zero) = (self.scales[at], self.zero_points.map_or(0.0, |it| it[at]));
        let values = &mut self.values[row * cols..(row + 1) * cols];
        let pulls = &mut self.pulls[row * cols..(row + 1) * cols];
        let least = self.still * scale;
        let could_move = |(pull, curve): (&f32, &f32)| pull.abs() >= least * curve;
        let asked = pulls[columns.clone()].iter().zip(&self.curves[columns.clone()]);
        if !asked.fold(false, |any, it| any | could_move(it)) {
            return;
        }
        for j in columns {
            let (old, pull, curve) = (values[j], pulls[j], self.curves[j]);
            if !could_move((&pull, &curve)) {
                continue;
            }
            let new = nearest(old + pull / curve, scale, zero);
            let step = new - old;
            // Rounding to the type of the weight can make the nearest value the worse one.
            if step != 0.0 && 2.0 * step * pull > step * step * curve {
                values[j] = new;
                let along = &self.moments.data()[j * cols..(j + 1) * cols];
                pulls.iter_mut().zip(along).for_each(|(to, it)| *to = fused.f32(-step, *it, *to));
                self.is_moved[at] = true;
            }
        }
    }

    /// Fits the scales of a group of these rows to their codes by least squares.
    #[inline(always)]
    fn move_scales(&mut self, group: usize, rows: &[usize], nearest: impl Fn(f32, f32, f32) -> f32) {
        let (cols, groups) = (self.grid.cols, self.grid.groups());
        let first = group * self.grid.width;
        let width = self.grid.width.min(cols - first);
        let part = |row: usize| row * cols + first..row * cols + first + width;
        let within = self.moments.sub(first, width, first, width);

        let mut values = Vec::with_capacity(rows.len() * width);
        rows.iter().for_each(|row| values.extend_from_slice(&self.values[part(*row)]));
        let mut products = vec![0.0; values.len()];
        add_product(self.profile, &values, within, &mut products);
        let (mut fitted, mut moved, mut steps) = (Vec::new(), Vec::new(), Vec::new());
        for ((&row, values), products) in rows.iter().zip(values.chunks(width)).zip(products.chunks(width)) {
            let (at, curve) = (row * groups + group, lane_dot(values, products));
            let old = self.scales[at];
            let factor = (1.0 + lane_dot(values, &self.pulls[part(row)]) / curve).clamp(0.5, 2.0);
            let new = self.grid.weight_type.round(old * factor as f32);
            if curve > 0.0 && new != old && new > 0.0 && new.is_finite() {
                let zero = self.zero_points.map_or(0.0, |it| it[at]);
                let start = moved.len();
                moved.extend(values.iter().map(|it| nearest(round_int(it / old, -512.0, 512.0) * new, new, zero)));
                steps.extend(moved[start..].iter().zip(values).map(|(new, old)| new - old));
                fitted.push((row, new));
            }
        }

        products.truncate(steps.len());
        products.fill(0.0);
        add_product(self.profile, &steps, within, &mut products);
        let (mut taken, mut away) = (Vec::new(), Vec::new());
        let of_fitted = steps.chunks(width).zip(products.chunks(width)).zip(moved.chunks(width));
        for ((row, scale), ((steps, products), moved)) in fitted.into_iter().zip(of_fitted) {
            if 2.0 * lane_dot(steps, &self.pulls[part(row)]) > lane_dot(steps, products) {
                self.scales[row * groups + group] = scale;
                self.values[part(row)].copy_from_slice(moved);
                away.extend_from_slice(steps);
                taken.push(row * cols);
            }
        }
        let along = self.moments.sub(first, width, 0, cols);
        subtract_scattered(self.profile, &away, along, self.pulls, &taken);
    }
}
