//! Statistics, the grid of scales, and the weights that a candidate makes.

use compressed_tensors::{
    args::{QuantizationArgs, QuantizationStrategy},
    numbers::Float,
    scales::global_scale,
};
use kernels::Element;
use pulp::{Arch, NullaryFnOnce};
use rayon::prelude::*;

use crate::{
    error::{ErrorKind, Result, check_len},
    quantization::algorithm::{WeightSpec, amax},
    smoothquant::algorithm::power,
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
    pub fn observe<E: Element>(&mut self, tokens: &[E], mask: Option<&[bool]>) -> Result<()> {
        let channels = self.sum.len();
        let n_tokens = tokens.len() / channels.max(1);
        check_len("an activation", tokens.len(), &[n_tokens, channels])?;
        if let Some(mask) = mask {
            check_len("a loss mask", mask.len(), &[n_tokens])?;
        }
        for (token, values) in tokens.chunks_exact(channels.max(1)).enumerate() {
            if mask.is_none_or(|it| it[token]) {
                self.sum.iter_mut().zip(values).for_each(|(sum, x)| *sum += f64::from(x.to_f32().abs()));
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

/// `rtn(W s) / s` of all quantized weights.
pub(super) fn fill_candidate(scales: &[f64], balance: &[Balance<'_>], weights: &mut [Vec<f32>]) -> Result<()> {
    let cols = scales.len();
    let mut ranges = Vec::with_capacity(balance.len());
    for (layer, weight) in balance.iter().zip(&mut *weights) {
        let Some(spec) = layer.spec(cols) else {
            ranges.push(0.0);
            continue;
        };
        let arch = Arch::new();
        let rows = weight.par_chunks_exact_mut(cols.max(1)).zip(layer.weight.par_chunks_exact(cols.max(1)));
        rows.for_each(|(row, from)| arch.dispatch(MultiplyRow { row, from, scales, float: layer.float }));
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
        let arch = Arch::new();
        weight.par_chunks_exact_mut(cols.max(1)).for_each(|row| {
            arch.dispatch(DivideRow { row, scales, float: layer.float });
        });
    }
    Ok(())
}

/// A row times scales, rounded.
struct MultiplyRow<'a> {
    row: &'a mut [f32],
    from: &'a [f32],
    scales: &'a [f64],
    float: Float,
}

impl NullaryFnOnce for MultiplyRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for ((to, from), s) in self.row.iter_mut().zip(self.from).zip(self.scales) {
            *to = self.float.round((f64::from(*from) * s) as f32);
        }
    }
}

/// A row over scales, rounded.
struct DivideRow<'a> {
    row: &'a mut [f32],
    scales: &'a [f64],
    float: Float,
}

impl NullaryFnOnce for DivideRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (value, s) in self.row.iter_mut().zip(self.scales) {
            *value = self.float.round((f64::from(*value) / s) as f32);
        }
    }
}
