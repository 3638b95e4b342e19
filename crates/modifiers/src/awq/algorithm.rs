//! Statistics, the grid of scales, and the search.

use compressed_tensors::{
    args::{QuantizationArgs, QuantizationStrategy},
    numbers::Float,
    scales::global_scale,
};
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use crate::{
    error::{ErrorKind, Result, check_len},
    quantization::algorithm::{WeightSpec, amax},
    smoothquant::algorithm::{multiply_columns, power},
};

/// What a scale is at least, before all are normalized, and what is added where it is divided by a power of weights.
const SMALLEST: f64 = 1e-4;

/// Mean magnitude of every channel over tokens, summed in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct ActivationMean {
    sum: Vec<f64>,
    n_tokens: u64,
}

impl ActivationMean {
    /// Of no token, for `channels` channels.
    pub fn new(channels: usize) -> Self {
        Self { sum: vec![0.0; channels], n_tokens: 0 }
    }

    /// Takes tokens `(T, C)`; with a mask (T) only those that count.
    ///
    /// # Errors
    /// Values that do not fill rows, a mask of another length.
    pub fn observe(&mut self, tokens: &[f32], mask: Option<&[bool]>) -> Result<()> {
        let channels = self.sum.len();
        let n_tokens = tokens.len() / channels.max(1);
        check_len("an activation", tokens.len(), &[n_tokens, channels])?;
        if let Some(mask) = mask {
            check_len("a loss mask", mask.len(), &[n_tokens])?;
        }
        for (token, values) in tokens.chunks_exact(channels.max(1)).enumerate() {
            if mask.is_none_or(|it| it[token]) {
                self.sum.iter_mut().zip(values).for_each(|(sum, x)| *sum += f64::from(x.abs()));
                self.n_tokens += 1;
            }
        }
        Ok(())
    }

    /// Adds what another rank has seen.
    ///
    /// # Errors
    /// Another number of channels.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        check_len("channels", other.sum.len(), &[self.sum.len()])?;
        self.sum.iter_mut().zip(&other.sum).for_each(|(a, b)| *a += b);
        self.n_tokens += other.n_tokens;
        Ok(())
    }

    /// The means after the activation was divided by positive `scales`.
    ///
    /// # Errors
    /// Scales of another number.
    pub fn divide(&mut self, scales: &[f64]) -> Result<()> {
        check_len("scales", scales.len(), &[self.sum.len()])?;
        self.sum.iter_mut().zip(scales).for_each(|(sum, s)| *sum /= s);
        Ok(())
    }

    /// Tokens that counted.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// The means.
    ///
    /// # Errors
    /// A mean that is not finite, also where no token counted.
    pub fn mean(&self) -> Result<Vec<f32>> {
        let mean: Vec<f32> = self.sum.iter().map(|sum| (sum / self.n_tokens as f64) as f32).collect();
        match mean.iter().position(|it| !it.is_finite()) {
            None => Ok(mean),
            Some(channel) => {
                let value = f64::from(mean[channel]);
                Err(ErrorKind::NonFinite { what: "mean activation", channel, value }.into())
            }
        }
    }
}

/// A weight `(O, N)` that reads the smoothed channels.
#[derive(Clone, Copy, Debug)]
pub struct Balance<'a> {
    /// How it is quantized; `None` for a router and its like, which is scaled in the end but not searched for.
    pub args: Option<&'a QuantizationArgs>,
    /// Type of the weight.
    pub float: Float,
    /// O.
    pub rows: usize,
    /// The values.
    pub weight: &'a [f32],
    /// Weights with the same number share a global scale, where the scheme has one.
    pub fused: Option<usize>,
}

impl<'a> Balance<'a> {
    fn spec(&self, cols: usize) -> Option<WeightSpec<'a>> {
        Some(WeightSpec { args: self.args?, float: self.float, rows: self.rows, cols })
    }
}

/// Mean over all rows of all quantized weights of `|W| / (max |W| of its tile + 1e-6)`; zeros without any.
///
/// Quotients are rounded to the weight's type, sums are f64.
///
/// # Errors
/// Weights that do not fit their arguments.
pub fn weight_mean(cols: usize, balance: &[Balance<'_>]) -> Result<Vec<f64>> {
    let (mut sums, mut n_rows) = (vec![0.0f64; cols], 0);
    for layer in balance {
        let Some(spec) = layer.spec(cols) else { continue };
        let (tiles, float) = (spec.tiles()?, layer.float);
        let largest: Vec<f32> =
            spec.ranges(layer.weight)?.iter().map(|&(min, max)| float.round(min.abs().max(max.abs()) + 1e-6)).collect();
        for (row, values) in layer.weight.chunks_exact(cols.max(1)).enumerate() {
            let first = row / tiles.height * tiles.per_row;
            for (col, (sum, value)) in sums.iter_mut().zip(values).enumerate() {
                *sum += f64::from(float.round(value.abs() / largest[first + col / tiles.width]));
            }
        }
        n_rows += layer.rows;
    }
    sums.iter_mut().for_each(|sum| *sum /= f64::from(n_rows.max(1) as u32));
    Ok(sums)
}

/// Whether weights have a say in the scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DuoScaling {
    /// Activations alone.
    Off,
    /// Activations over weights, and the identity.
    #[default]
    On,
    /// Half of the grid each.
    Both,
}

/// A point of the grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Exponent of the activations, 0 to 1.
    pub ratio: f64,
    /// Whether the weights' means divide.
    pub duo: bool,
}

/// The candidates in the order in which they are tried; the first of equal losses wins.
///
/// # Errors
/// Fewer points than the kind of grid needs: 2, 3 with duo scaling, 4 with both.
pub fn grid(duo: DuoScaling, n_grid: usize) -> Result<Vec<Candidate>> {
    let least = match duo {
        DuoScaling::Off => 2,
        DuoScaling::On => 3,
        DuoScaling::Both => 4,
    };
    if n_grid < least {
        let expected = format!("at least {least} with this duo_scaling");
        return Err(ErrorKind::InvalidField { field: "n_grid", found: n_grid.to_string(), expected }.into());
    }
    let line = |points: usize| (0..points).map(move |i| i as f64 / (points - 1) as f64);
    let with = |duo: bool| move |ratio: f64| Candidate { ratio, duo };
    Ok(match duo {
        DuoScaling::Off => line(n_grid).map(with(false)).collect(),
        DuoScaling::On => std::iter::once(with(false)(0.0)).chain(line(n_grid - 1).map(with(true))).collect(),
        DuoScaling::Both => line(n_grid / 2).flat_map(|ratio| [with(false)(ratio), with(true)(ratio)]).collect(),
    })
}

/// Scales of the channels, normalized so that the largest times the smallest is 1; what is not finite becomes 1.
///
/// Powers of activations are f32; what follows is f64 with duo scaling, else rounded to f32 after every step.
pub fn candidate_scales(x_mean: &[f32], w_mean: &[f64], candidate: Candidate) -> Vec<f64> {
    let round = |it: f64| if candidate.duo { it } else { f64::from(it as f32) };
    let smallest = round(SMALLEST);
    let mut scales: Vec<f64> = x_mean
        .iter()
        .zip(w_mean)
        .map(|(&x, &w)| {
            let x = f64::from(power(f64::from(x), candidate.ratio) as f32);
            let scale = if candidate.duo { x / (power(w, 1.0 - candidate.ratio) + SMALLEST) } else { x };
            if scale < smallest { smallest } else { scale }
        })
        .collect();
    let bound = |start: f64, of: fn(f64, f64) -> f64| scales.iter().copied().fold(start, of);
    let (max, min) = (bound(f64::NEG_INFINITY, f64::max), bound(f64::INFINITY, f64::min));
    let norm = round(round(max * min).sqrt());
    for scale in &mut scales {
        *scale = round(*scale / norm);
        if !scale.is_finite() {
            *scale = 1.0;
        }
    }
    scales
}

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    /// Scales to apply, one per channel.
    pub scales: Vec<f64>,
    /// Position of the candidate in the grid.
    pub index: usize,
    /// Loss of every candidate.
    pub losses: Vec<f64>,
}

/// Tries all candidates and keeps the first with the least loss.
///
/// `loss` is given the weights of all balance layers as a candidate makes them, `rtn(W s) / s` by their min-max scales, and
/// says how far the parent's output is from that of the original weights.
///
/// # Errors
/// Weights that do not fit; no finite loss; faults of `loss`.
pub fn search(
    grid: &[Candidate],
    x_mean: &[f32],
    w_mean: &[f64],
    balance: &[Balance<'_>],
    loss: &mut dyn FnMut(&[Vec<f32>]) -> Result<f64>,
) -> Result<Best> {
    check_len("weight means", w_mean.len(), &[x_mean.len()])?;
    let mut best = Best { scales: Vec::new(), index: 0, losses: Vec::with_capacity(grid.len()) };
    let mut least = f64::INFINITY;
    let mut weights: Vec<Vec<f32>> = balance.iter().map(|it| it.weight.to_vec()).collect();
    for (index, candidate) in grid.iter().enumerate() {
        let scales = candidate_scales(x_mean, w_mean, *candidate);
        fill_candidate(&scales, balance, &mut weights)?;
        let found = loss(&weights)?;
        best.losses.push(found);
        if found < least {
            (least, best.scales, best.index) = (found, scales, index);
        }
    }
    match least.is_finite() {
        true => Ok(best),
        false => Err(ErrorKind::NoFiniteLoss { candidates: grid.len() }.into()),
    }
}

/// `rtn(W s) / s` of all quantized weights.
fn fill_candidate(scales: &[f64], balance: &[Balance<'_>], weights: &mut [Vec<f32>]) -> Result<()> {
    let cols = scales.len();
    let mut ranges = Vec::with_capacity(balance.len());
    for (layer, weight) in balance.iter().zip(&mut *weights) {
        let Some(spec) = layer.spec(cols) else {
            ranges.push(0.0);
            continue;
        };
        weight.copy_from_slice(layer.weight);
        multiply_columns(layer.float, scales, weight)?;
        ranges.push(match spec.args.strategy {
            QuantizationStrategy::TensorGroup => amax(&spec.ranges(weight)?),
            _ => 0.0,
        });
    }
    for (idx, (layer, weight)) in balance.iter().zip(weights).enumerate() {
        let Some(spec) = layer.spec(cols) else { continue };
        let of_set = |other: usize| layer.fused.is_some() && balance[other].fused == layer.fused;
        let shared = (0..balance.len()).filter(|&it| it == idx || of_set(it)).map(|it| ranges[it]).fold(0.0, f32::max);
        let qparams = spec.minmax(weight, Some(global_scale(shared, layer.float)))?;
        spec.round_to_nearest(&qparams, weight)?;
        weight.par_chunks_exact_mut(cols.max(1)).for_each(|row| {
            row.iter_mut().zip(scales).for_each(|(w, s)| *w = layer.float.round((f64::from(*w) / s) as f32));
        });
    }
    Ok(())
}

/// Sum of squared differences over batches of outputs, as the reference adds them: differences, squares and each batch's sum
/// are rounded to the outputs' type, the total is f32.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSum {
    float: Float,
    total: f32,
    elements: u64,
}

impl LossSum {
    /// Of no batch, for outputs of type `float`.
    pub fn new(float: Float) -> Self {
        Self { float, total: 0.0, elements: 0 }
    }

    /// Adds outputs `(T, O)` of one batch; with a mask (T) only of tokens that count.
    ///
    /// # Errors
    /// Slices of different lengths.
    pub fn add(&mut self, original: &[f32], candidate: &[f32], mask: Option<&[bool]>) -> Result<()> {
        check_len("a candidate's output", candidate.len(), &[original.len()])?;
        let width = original.len() / mask.map_or(1, <[bool]>::len).max(1);
        if let Some(mask) = mask {
            check_len("an output", original.len(), &[mask.len(), width])?;
        }
        let counts = |i: usize| mask.is_none_or(|it| it[i / width.max(1)]);
        let (mut sum, mut elements) = (0.0f64, 0);
        for (_, (a, b)) in original.iter().zip(candidate).enumerate().filter(|(i, _)| counts(*i)) {
            let difference = self.float.round(a - b);
            sum += f64::from(self.float.round(difference * difference));
            elements += 1;
        }
        self.total += self.float.round(sum as f32);
        self.elements += elements;
        Ok(())
    }

    /// Mean over all elements; NaN without any.
    pub fn mean(&self) -> f64 {
        f64::from(self.total) / self.elements as f64
    }
}

/// Columns of a lane group in [`Gram::loss`].
const LANES: usize = 8;
/// Rows of a weight that are judged together.
const LOSS_ROWS: usize = 16;

/// Second moments of a linear's inputs in f64, upper triangle: the exact loss of any weight without a token.
///
/// f32 would not rank close candidates.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    cols: usize,
    sum: Vec<f64>,
    n_tokens: u64,
}

impl Gram {
    /// Of no token.
    pub fn new(cols: usize) -> Self {
        Self { cols, sum: vec![0.0; cols * cols], n_tokens: 0 }
    }

    /// Adds tokens `(T, N)`; with a mask (T) only those that count. The sums have one order, however tokens are cut.
    ///
    /// # Errors
    /// Values that do not fill rows, a mask of another length.
    pub fn accumulate(&mut self, tokens: &[f32], mask: Option<&[bool]>) -> Result<()> {
        let cols = self.cols;
        let n_tokens = tokens.len() / cols.max(1);
        check_len("an activation", tokens.len(), &[n_tokens, cols])?;
        if let Some(mask) = mask {
            check_len("a loss mask", mask.len(), &[n_tokens])?;
        }
        if tokens.is_empty() {
            return Ok(());
        }
        let counts = |token: usize| mask.is_none_or(|it| it[token]);
        self.n_tokens += (0..n_tokens).filter(|it| counts(*it)).count() as u64;
        let arch = Arch::new();
        // A block of tokens stays in cache while all rows take it.
        for (block, tokens) in tokens.chunks(64 * cols).enumerate() {
            let wide: Vec<f64> = tokens.iter().map(|it| f64::from(*it)).collect();
            self.sum.par_chunks_mut(cols).enumerate().for_each(|(i, row)| {
                for (t, x) in wide.chunks_exact(cols).enumerate() {
                    if counts(block * 64 + t) {
                        arch.dispatch(AddScaled { sum: &mut row[i..], x: &x[i..], by: x[i] });
                    }
                }
            });
        }
        Ok(())
    }

    /// The moments after the inputs were divided by positive `scales`.
    ///
    /// # Errors
    /// Scales of another number.
    pub fn divide_inputs(&mut self, scales: &[f64]) -> Result<()> {
        check_len("scales", scales.len(), &[self.cols])?;
        for (row, s) in self.sum.chunks_mut(self.cols.max(1)).zip(scales) {
            row.iter_mut().zip(scales).for_each(|(sum, t)| *sum /= s * t);
        }
        Ok(())
    }

    /// Tokens that counted.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Mean squared difference of the outputs of two weights `(O, N)`: `sum_o d_o G d_o^T / (T O)`.
    ///
    /// # Errors
    /// Weights that do not fill rows.
    pub fn loss(&self, original: &[f32], candidate: &[f32]) -> Result<f64> {
        let cols = self.cols;
        let rows = original.len() / cols.max(1);
        check_len("weight", original.len(), &[rows, cols])?;
        check_len("a candidate's weight", candidate.len(), &[rows, cols])?;
        let mut per_row = vec![0.0f64; rows];
        let block = cols.max(1) * LOSS_ROWS;
        let pairs = original.par_chunks(block).zip(candidate.par_chunks(block));
        let arch = Arch::new();
        // A row of moments stays in cache while a block of weights takes it.
        per_row.par_chunks_mut(LOSS_ROWS).zip(pairs).for_each(|(losses, (a, b))| {
            let d: Vec<f64> = a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)).collect();
            for (i, row) in self.sum.chunks_exact(cols).enumerate() {
                for (loss, d) in losses.iter_mut().zip(d.chunks_exact(cols)) {
                    let beyond = arch.dispatch(Dot(&row[i + 1..], &d[i + 1..]));
                    *loss += d[i] * (row[i] * d[i] + 2.0 * beyond);
                }
            }
        });
        Ok(per_row.iter().sum::<f64>() / (self.n_tokens as f64 * rows as f64))
    }
}

/// A sum in a fixed order that vector registers can follow.
struct Dot<'a>(&'a [f64], &'a [f64]);

impl NullaryFnOnce for Dot<'_> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (chunks_a, rest_a) = self.0.as_chunks::<LANES>();
        let (chunks_b, rest_b) = self.1.as_chunks::<LANES>();
        for (a, b) in chunks_a.iter().zip(chunks_b) {
            for lane in 0..LANES {
                lanes[lane] += a[lane] * b[lane];
            }
        }
        lanes.iter().sum::<f64>() + rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum::<f64>()
    }
}

/// Adds a multiple of a row, each element for itself.
struct AddScaled<'a> {
    sum: &'a mut [f64],
    x: &'a [f64],
    by: f64,
}

impl NullaryFnOnce for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (sum, x) in self.sum.iter_mut().zip(self.x) {
            *sum += self.by * x;
        }
    }
}
