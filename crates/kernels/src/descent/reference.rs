//! Descent on codes and scales in plain loops.
#![expect(non_snake_case, reason = "matrices are capital letters in reference loops")]

use super::Grid;
use crate::Profile;
use crate::gemm::reference::multiply_add;
use crate::gptq_sweep::{Rounding, quantize_dequantize, round_int};
use crate::rows::{lane_dot, lane_sum};

/// What rounding costs each group; arguments agree.
pub fn rounding_costs(grid: &Grid<'_>, costs: &[f32], W: &[f32], S: &[f32], sums: &mut [f32]) {
    for (at, sum) in sums.iter_mut().enumerate() {
        let (row, group) = (at / grid.groups(), at % grid.groups());
        let first = group * grid.width;
        let last = grid.cols.min(first + grid.width);
        let term = |j: usize| {
            let w = W[row * grid.cols + j];
            let error = w - value(grid, w, S[at], at);
            costs[j] * error * error
        };
        *sum = lane_sum(&(first..last).map(term).collect::<Vec<f32>>(), |it| it);
    }
}

/// Quantized and dequantized under the scale of a group.
fn value(grid: &Grid<'_>, w: f32, scale: f32, at: usize) -> f32 {
    quantize_dequantize(Rounding::int(grid.bits), grid.scale_type, w, scale, grid.zero_points.map(|it| it[at]))
}

/// One row after the other; arguments agree. The error of each row before and after.
pub fn descend(
    profile: Profile,
    grid: &Grid<'_>,
    H: &[f32],
    rounds: u32,
    W: &[f32],
    V: &mut [f32],
    S: &mut [f32],
) -> Vec<[f64; 2]> {
    let C = grid.cols;
    let mut errors = Vec::new();
    for row in 0..W.len() / C {
        let E: Vec<f32> = (0..C).map(|j| W[row * C + j] - V[row * C + j]).collect();
        let mut pulls = vec![0.0; C];
        (0..C).for_each(|j| add(profile, E[j], &H[j * C..(j + 1) * C], &mut pulls));
        let before = lane_dot(&E, &pulls);
        let mut it = Row { profile, grid, H, row, V: &mut V[row * C..(row + 1) * C], pulls };
        let S = &mut S[row * grid.groups()..(row + 1) * grid.groups()];
        let mut is_moved = vec![true; S.len()];
        for _ in 0..rounds {
            it.move_codes(S, &mut is_moved);
            if !is_moved.contains(&true) {
                break;
            }
            for group in 0..S.len() {
                if std::mem::take(&mut is_moved[group]) {
                    it.move_scale(group, &mut S[group]);
                }
            }
        }
        let E: Vec<f32> = it.V.iter().enumerate().map(|(j, v)| W[row * C + j] - v).collect();
        errors.push([before, lane_dot(&E, &it.pulls)]);
    }
    errors
}

struct Row<'a> {
    profile: Profile,
    grid: &'a Grid<'a>,
    H: &'a [f32],
    row: usize,
    V: &'a mut [f32],
    /// `(w - v) H`.
    pulls: Vec<f32>,
}

impl Row<'_> {
    /// The value that a code of a group stands for, nearest to `value`.
    fn nearest(&self, group: usize, scale: f32, value: f32) -> f32 {
        self.grid.weight_type.round(self::value(self.grid, value, scale, self.row * self.grid.groups() + group))
    }

    fn move_codes(&mut self, S: &[f32], is_moved: &mut [bool]) {
        let C = self.grid.cols;
        for j in 0..C {
            let (group, old, pull, curve) = (j / self.grid.width, self.V[j], self.pulls[j], self.H[j * C + j]);
            let new = self.nearest(group, S[group], old + pull / curve);
            let step = new - old;
            // Rounding to the type of the weight can make the nearest value the worse one.
            if step != 0.0 && 2.0 * step * pull > step * step * curve {
                self.V[j] = new;
                add(self.profile, -step, &self.H[j * C..(j + 1) * C], &mut self.pulls);
                is_moved[group] = true;
            }
        }
    }

    /// Fits the scale of a group to its codes by least squares.
    fn move_scale(&mut self, group: usize, scale: &mut f32) {
        let C = self.grid.cols;
        let first = group * self.grid.width;
        let columns = first..C.min(first + self.grid.width);
        let values = self.V[columns.clone()].to_vec();
        let curve = lane_dot(&values, &self.products(first, &values));
        let old = *scale;
        let factor = (1.0 + lane_dot(&values, &self.pulls[columns.clone()]) / curve).clamp(0.5, 2.0);
        let new = self.grid.weight_type.round(old * factor as f32);
        if !(curve > 0.0 && new != old && new > 0.0 && new.is_finite()) {
            return;
        }
        let moved: Vec<f32> =
            values.iter().map(|it| self.nearest(group, new, round_int(it / old, -512.0, 512.0) * new)).collect();
        let steps: Vec<f32> = moved.iter().zip(&values).map(|(new, old)| new - old).collect();
        let cost = lane_dot(&steps, &self.products(first, &steps));
        if 2.0 * lane_dot(&steps, &self.pulls[columns.clone()]) > cost {
            *scale = new;
            self.V[columns.clone()].copy_from_slice(&moved);
            columns.zip(steps).for_each(|(j, it)| add(self.profile, -it, &self.H[j * C..(j + 1) * C], &mut self.pulls));
        }
    }

    /// `x H` within the columns from `first` on that x has values for.
    fn products(&self, first: usize, x: &[f32]) -> Vec<f32> {
        let mut products = vec![0.0; x.len()];
        for (j, it) in (first..).zip(x) {
            let start = j * self.grid.cols + first;
            add(self.profile, *it, &self.H[start..start + x.len()], &mut products);
        }
        products
    }
}

/// to += factor * from.
fn add(profile: Profile, factor: f32, from: &[f32], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = multiply_add(profile, factor, *from, *to));
}
