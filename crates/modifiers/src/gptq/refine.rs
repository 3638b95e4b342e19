//! Better scales and codes for a weight that is rounded: both are moved while the error of the layer's outputs falls.
#![expect(non_snake_case, reason = "matrices are capital letters")]

use std::ops::Range;

use compressed_tensors::{
    args::QuantizationStrategy,
    numbers::Float,
    quantize::Qparams,
    scales::{Arithmetic, Code},
};
use kernels::gptq_sweep::{Rounding, ScaleType, quantize_dequantize};
use rayon::prelude::*;

use super::algorithm::Hessian;
use crate::{
    error::{Result, check_len},
    quantization::algorithm::WeightSpec,
};

/// Rows that pass over the matrix together, so that each of its rows is read once for all of them.
const BLOCK_ROWS: usize = 16;

/// Shares of a range that a search tries, from the whole of it downwards.
const SHRINKS: usize = 32;

/// What the smallest tried share of a range is.
const LEAST_SHARE: f32 = 0.6;

/// The damped second moments `(N, N)`, by which an error of a row costs `e H e^T`.
#[derive(Clone, Debug)]
pub(super) struct Objective {
    cols: usize,
    H: Vec<f32>,
}

impl Objective {
    /// Of second moments whose diagonal is raised by a share of its mean; inputs that are always 0 get a diagonal of 1.
    pub(super) fn new(hessian: &Hessian, dampening_frac: f32) -> Self {
        let (N, H) = hessian.damped(dampening_frac);
        Self { cols: N, H }
    }

    fn row(&self, j: usize) -> &[f32] {
        &self.H[j * self.cols..(j + 1) * self.cols]
    }

    fn diagonal(&self, j: usize) -> f32 {
        self.H[j * self.cols + j]
    }

    /// The diagonal (N): what an error of each column costs by itself.
    pub(super) fn costs(&self) -> Vec<f32> {
        (0..self.cols).map(|j| self.diagonal(j)).collect()
    }
}

/// How the weight's codes and scales are formed; none where they are not integers with scales of whole groups of a row.
struct Form {
    arithmetic: Arithmetic,
    rounding: Rounding,
    scale_type: ScaleType,
    width: usize,
    per_row: usize,
}

impl Form {
    fn of(spec: &WeightSpec<'_>, qparams: &Qparams) -> Result<Option<Self>> {
        let arithmetic = Arithmetic::of(spec.args)?;
        let tiles = spec.tiles()?;
        check_len("scales", qparams.scales.len(), &[tiles.count])?;
        let is_by_row = matches!(spec.args.strategy, QuantizationStrategy::Group | QuantizationStrategy::Channel);
        let Code::Int { bits: bits @ ..=8 } = arithmetic.code else { return Ok(None) };
        if !is_by_row || qparams.global_scale.is_some() || spec.cols == 0 {
            return Ok(None);
        }
        let scale_type = match qparams.dtype {
            Float::F32 => ScaleType::F32,
            Float::BF16 => ScaleType::Bf16,
            Float::F16 => ScaleType::F16,
        };
        let (width, per_row) = (tiles.width, tiles.per_row);
        Ok(Some(Self { arithmetic, rounding: Rounding::int(bits), scale_type, width, per_row }))
    }
}

/// Replaces scales (and zero points) by those of the shrunk range of each group whose rounding costs least, where the error of
/// column j costs `costs[j]` times its square. Weights of other forms than integer groups and channels are left alone.
///
/// # Errors
/// Weights, scales and costs of other lengths than the specification's.
pub(super) fn search_scales(spec: &WeightSpec<'_>, costs: &[f32], weight: &[f32], qparams: &mut Qparams) -> Result<()> {
    check_len("weight", weight.len(), &[spec.rows, spec.cols])?;
    check_len("costs", costs.len(), &[spec.cols])?;
    let Some(form) = Form::of(spec, qparams)? else { return Ok(()) };
    let ranges = spec.ranges(weight)?;
    let mut best = vec![f32::INFINITY; ranges.len()];
    for step in 0..SHRINKS {
        let share = 1.0 - (1.0 - LEAST_SHARE) * step as f32 / (SHRINKS - 1) as f32;
        let shrunk: Vec<(f32, f32)> = ranges.iter().map(|(low, high)| (low * share, high * share)).collect();
        let tried = Qparams::from_ranges(&form.arithmetic, &shrunk, spec.float, None).stored_as(spec.float);
        let zero_points = tried.zero_points.as_deref().filter(|_| !form.arithmetic.symmetric);
        let tiles = best.par_chunks_mut(form.per_row).zip(weight.par_chunks_exact(spec.cols));
        let scales = qparams.scales.par_chunks_mut(form.per_row);
        let chosen: Vec<Vec<(usize, f32)>> = tiles
            .zip(scales)
            .enumerate()
            .map(|(row, ((best, weight), scales))| {
                let mut taken = Vec::new();
                for (tile, (weight, costs)) in weight.chunks(form.width).zip(costs.chunks(form.width)).enumerate() {
                    let at = row * form.per_row + tile;
                    let (scale, zero_point) = (tried.scales[at], zero_points.map(|it| it[at]));
                    let mut sum = 0.0f32;
                    for (&w, cost) in weight.iter().zip(costs) {
                        let error = w - quantize_dequantize(form.rounding, form.scale_type, w, scale, zero_point);
                        sum += cost * error * error;
                    }
                    if sum < best[tile] && scale > 0.0 {
                        best[tile] = sum;
                        scales[tile] = scale;
                        taken.extend(zero_point.map(|it| (at, it)));
                    }
                }
                taken
            })
            .collect();
        if let Some(zero_points) = &mut qparams.zero_points {
            chosen.into_iter().flatten().for_each(|(at, zero_point)| zero_points[at] = zero_point);
        }
    }
    Ok(())
}

/// Moves the codes and scales of `rounded`, which stands for `weight`, `rounds` times over: in each round every code goes where
/// the error of the outputs is least while all else stays, then every scale. The error never rises.
///
/// Returns the error before and after, `sum e H e^T` over the rows. Weights of other forms than integer groups and channels are
/// left alone.
///
/// # Errors
/// Weights and scales of other lengths than the specification's.
pub(super) fn refine(
    spec: &WeightSpec<'_>,
    objective: &Objective,
    rounds: u32,
    weight: &[f32],
    rounded: &mut [f32],
    qparams: &mut Qparams,
) -> Result<[f64; 2]> {
    check_len("weight", weight.len(), &[spec.rows, spec.cols])?;
    check_len("rounded weight", rounded.len(), &[spec.rows, spec.cols])?;
    check_len("columns", spec.cols, &[objective.cols])?;
    let Some(form) = Form::of(spec, qparams)? else { return Ok([0.0; 2]) };
    let is_symmetric = form.arithmetic.symmetric;
    let zero_points = qparams.zero_points.as_deref().filter(|_| !is_symmetric);
    let block = BLOCK_ROWS * spec.cols;
    let scales = qparams.scales.par_chunks_mut(BLOCK_ROWS * form.per_row);
    let blocks = rounded.par_chunks_mut(block).zip(weight.par_chunks(block)).zip(scales).enumerate();
    let errors: Vec<[f64; 2]> = blocks
        .map(|(idx, ((rounded, weight), scales))| {
            let first = idx * BLOCK_ROWS * form.per_row;
            let zero_points = zero_points.map(|it| &it[first..first + scales.len()]);
            let (float, is_moved) = (spec.float, vec![true; scales.len()]);
            let mut rows =
                Rows { form: &form, objective, float, rounded, scales, zero_points, G: Vec::new(), is_moved };
            rows.start(weight);
            let before = rows.error(weight);
            for _ in 0..rounds {
                rows.move_codes();
                if !rows.is_moved.contains(&true) {
                    break;
                }
                rows.move_scales();
            }
            [before, rows.error(weight)]
        })
        .collect();
    Ok(errors.into_iter().fold([0.0; 2], |sum, it| [sum[0] + it[0], sum[1] + it[1]]))
}

/// Rows of a weight and what their errors pull at.
struct Rows<'a> {
    form: &'a Form,
    objective: &'a Objective,
    float: Float,
    rounded: &'a mut [f32],
    scales: &'a mut [f32],
    zero_points: Option<&'a [f32]>,
    /// `(weight - rounded) H`, row by row.
    G: Vec<f32>,
    /// Of each group, whether a code has moved since its scale was looked at.
    is_moved: Vec<bool>,
}

impl Rows<'_> {
    fn start(&mut self, weight: &[f32]) {
        let N = self.objective.cols;
        self.G = vec![0.0; weight.len()];
        for j in 0..N {
            let H = self.objective.row(j);
            for (row, G) in self.G.chunks_exact_mut(N).enumerate() {
                let error = weight[row * N + j] - self.rounded[row * N + j];
                add_scaled(G, error, H);
            }
        }
    }

    fn error(&self, weight: &[f32]) -> f64 {
        let errors = weight.iter().zip(self.rounded.iter()).map(|(w, v)| f64::from(w - v));
        errors.zip(&self.G).map(|(e, g)| e * f64::from(*g)).sum()
    }

    /// The value that a code stands for, nearest to `value`.
    fn nearest(&self, value: f32, at: usize) -> f32 {
        let zero_point = self.zero_points.map(|it| it[at]);
        let value = quantize_dequantize(self.form.rounding, self.form.scale_type, value, self.scales[at], zero_point);
        self.float.round(value)
    }

    fn move_codes(&mut self) {
        let N = self.objective.cols;
        for j in 0..N {
            let (H, diagonal) = (self.objective.row(j), self.objective.diagonal(j));
            for row in 0..self.rounded.len() / N {
                let (old, pull) = (self.rounded[row * N + j], self.G[row * N + j]);
                let at = row * self.form.per_row + j / self.form.width;
                let new = self.nearest(old + pull / diagonal, at);
                let step = new - old;
                // Rounding to the type of the weight can make the nearest value the worse one.
                if step != 0.0 && 2.0 * step * pull > step * step * diagonal {
                    self.rounded[row * N + j] = new;
                    add_scaled(&mut self.G[row * N..(row + 1) * N], -step, H);
                    self.is_moved[at] = true;
                }
            }
        }
    }

    fn move_scales(&mut self) {
        let (N, width, per_row) = (self.objective.cols, self.form.width, self.form.per_row);
        for tile in 0..per_row {
            for row in 0..self.rounded.len() / N {
                if std::mem::take(&mut self.is_moved[row * per_row + tile]) {
                    self.move_scale(row * per_row + tile, row, tile * width..N.min((tile + 1) * width));
                }
            }
        }
    }

    /// Fits a scale to the codes of its columns by least squares.
    fn move_scale(&mut self, at: usize, row: usize, columns: Range<usize>) {
        let N = self.objective.cols;
        let part = row * N + columns.start..row * N + columns.end;
        let pulls = &self.G[part.clone()];
        let values = &self.rounded[part.clone()];
        let curve = self.cost(values, &columns);
        if curve <= 0.0 {
            return;
        }
        let old = self.scales[at];
        let factor = (1.0 + dot(values, pulls) / curve).clamp(0.5, 2.0) as f32;
        let new = self.float.round(old * factor);
        if new == old || !(new > 0.0 && new.is_finite()) {
            return;
        }
        let codes: Vec<f32> = values.iter().map(|it| (it / old).round()).collect();
        self.scales[at] = new;
        let moved: Vec<f32> = codes.iter().map(|it| self.nearest(it * new, at)).collect();
        let steps: Vec<f32> = moved.iter().zip(values).map(|(new, old)| new - old).collect();
        if 2.0 * dot(&steps, pulls) <= self.cost(&steps, &columns) {
            self.scales[at] = old;
            return;
        }
        self.rounded[part].copy_from_slice(&moved);
        for (j, step) in columns.zip(steps).filter(|it| it.1 != 0.0) {
            add_scaled(&mut self.G[row * N..(row + 1) * N], -step, self.objective.row(j));
        }
    }

    /// `x H x^T` over the columns that x has values for.
    fn cost(&self, x: &[f32], columns: &Range<usize>) -> f64 {
        let products =
            columns.clone().zip(x).map(|(j, it)| f64::from(*it) * dot(x, &self.objective.row(j)[columns.clone()]));
        products.sum()
    }
}

fn dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

fn add_scaled(to: &mut [f32], factor: f32, from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += factor * from);
}
