//! Ranges of activations, scales from them, and their application to norms, linears and the layers that read them.

use compressed_tensors::numbers::Float;
use kernels::elementary::{ln_f64, pow_f64};
use rayon::prelude::*;

use crate::error::{ErrorKind, Result, check_len};

/// What a scale is at least.
const SMALLEST: f32 = 1e-5;

/// Smallest and largest value of every channel over all tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelRange {
    min: Vec<f32>,
    max: Vec<f32>,
    n_tokens: u64,
}

impl ChannelRange {
    /// Of no token, for `channels` channels.
    pub fn new(channels: usize) -> Self {
        Self { min: vec![f32::INFINITY; channels], max: vec![f32::NEG_INFINITY; channels], n_tokens: 0 }
    }

    /// From smallest and largest values.
    ///
    /// # Errors
    /// Lists of different lengths.
    pub fn from_bounds(min: Vec<f32>, max: Vec<f32>, n_tokens: u64) -> Result<Self> {
        check_len("maxima", max.len(), &[min.len()])?;
        Ok(Self { min, max, n_tokens })
    }

    /// Takes tokens `(T, C)`.
    ///
    /// # Errors
    /// Values that do not fill rows.
    pub fn observe(&mut self, tokens: &[f32]) -> Result<()> {
        let channels = self.min.len();
        let n_tokens = tokens.len() / channels.max(1);
        check_len("an activation", tokens.len(), &[n_tokens, channels])?;
        for token in tokens.chunks_exact(channels.max(1)) {
            for ((min, max), &value) in self.min.iter_mut().zip(&mut self.max).zip(token) {
                // A NaN stays, so that it is found when scales are made.
                *min = if value < *min || value.is_nan() { value } else { *min };
                *max = if value > *max || value.is_nan() { value } else { *max };
            }
        }
        self.n_tokens += n_tokens as u64;
        Ok(())
    }

    /// Takes what another rank has seen.
    ///
    /// # Errors
    /// Ranges of another number of channels.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        check_len("channels", other.min.len(), &[self.min.len()])?;
        self.min.iter_mut().zip(&other.min).for_each(|(a, &b)| *a = if b < *a || b.is_nan() { b } else { *a });
        self.max.iter_mut().zip(&other.max).for_each(|(a, &b)| *a = if b > *a || b.is_nan() { b } else { *a });
        self.n_tokens += other.n_tokens;
        Ok(())
    }

    /// The range after the activation was divided by positive `scales`.
    ///
    /// # Errors
    /// Scales of another number.
    pub fn divide(&mut self, scales: &[f64]) -> Result<()> {
        check_len("scales", scales.len(), &[self.min.len()])?;
        let divide = |it: &mut f32, s: &f64| *it = (f64::from(*it) / s) as f32;
        self.min.iter_mut().zip(scales).for_each(|(it, s)| divide(it, s));
        self.max.iter_mut().zip(scales).for_each(|(it, s)| divide(it, s));
        Ok(())
    }

    /// Tokens seen.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Smallest values.
    pub fn min(&self) -> &[f32] {
        &self.min
    }

    /// Largest values.
    pub fn max(&self) -> &[f32] {
        &self.max
    }
}

/// How scales follow from ranges.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Smoothing {
    /// `r^a / w^(1-a)`, r the channel's range and w twice the largest weight that reads it; r where no weight does.
    SmoothQuant {
        /// a: 0 leaves all difficulty to the activation, 1 to the weights.
        strength: f32,
    },
    /// `r / log2(2 + r)`.
    LogEqualization,
}

/// Largest magnitude of each column of a weight `(O, N)`, joined into `maxima` (N).
///
/// # Errors
/// A weight that does not fill rows.
pub fn column_maxima(weight: &[f32], maxima: &mut [f32]) -> Result<()> {
    let cols = maxima.len();
    check_len("weight", weight.len(), &[weight.len() / cols.max(1), cols])?;
    for row in weight.chunks_exact(cols.max(1)) {
        for (max, value) in maxima.iter_mut().zip(row) {
            let value = value.abs();
            *max = if value > *max || value.is_nan() { value } else { *max };
        }
    }
    Ok(())
}

/// Scales of the channels, at least 1e-5; powers and quotients are rounded to `float`, the model's type, as the reference
/// does. `maxima` are those of [`column_maxima`] over all layers that read the channels.
///
/// # Errors
/// Lists of different lengths; a range or a maximum that is not finite, with its channel.
pub fn scales(smoothing: Smoothing, range: &ChannelRange, maxima: &[f32], float: Float) -> Result<Vec<f32>> {
    check_len("column maxima", maxima.len(), &[range.min.len()])?;
    let mut scales = Vec::with_capacity(maxima.len());
    for (channel, ((min, max), weight)) in range.min.iter().zip(&range.max).zip(maxima).enumerate() {
        let r = float.round(max - min);
        for (what, value) in [("range of activations", r), ("largest weight", *weight)] {
            if !value.is_finite() {
                return Err(ErrorKind::NonFinite { what, channel, value: f64::from(value) }.into());
            }
        }
        let power = |x: f32, y: f32| float.round(power(f64::from(x), f64::from(y)) as f32);
        let scale = match smoothing {
            Smoothing::SmoothQuant { strength } => {
                let w = float.round(2.0 * weight);
                if w > 0.0 { float.round(power(r, strength) / power(w, 1.0 - strength)) } else { r }
            }
            Smoothing::LogEqualization => {
                let log2 = ln_f64(f64::from(float.round(2.0 + r))) * std::f64::consts::LOG2_E;
                float.round(r / float.round(log2 as f32))
            }
        };
        scales.push(if scale > SMALLEST { scale } else { SMALLEST });
    }
    Ok(scales)
}

/// x^y of a number that is not negative, without the platform's library.
pub(crate) fn power(x: f64, y: f64) -> f64 {
    match () {
        () if y == 0.0 => 1.0,
        () if x == 0.0 && y > 0.0 => 0.0,
        () if y == 1.0 => x,
        () => pow_f64(x, y),
    }
}

/// A norm's weight, as stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// What is added to the stored weight before it multiplies: 1 for Gemma's `1 + w`, else 0.
    pub offset: f32,
    /// Type of the weight.
    pub float: Float,
}

/// Divides what a norm gives: `w' = (offset + w) / s - offset`, rounded once.
///
/// The bias of a norm is divided by [`divide_rows`] with one column.
///
/// # Errors
/// Scales of another number.
pub fn divide_norm(norm: Norm, scales: &[f64], weight: &mut [f32]) -> Result<()> {
    check_len("norm weight", weight.len(), &[scales.len()])?;
    let offset = f64::from(norm.offset);
    for (value, s) in weight.iter_mut().zip(scales) {
        *value = norm.float.round(((offset + f64::from(*value)) / s - offset) as f32);
    }
    Ok(())
}

/// By what a norm's output is divided where its weight is now `after`: the scales but for the rounding of the weight, which is
/// large for one that is stored as its distance from an offset.
///
/// # Errors
/// Lists of different lengths.
pub fn divisors(norm: Norm, scales: &[f32], before: &[f32], after: &[f32]) -> Result<Vec<f32>> {
    check_len("norm weight", before.len(), &[scales.len()])?;
    check_len("norm weight", after.len(), &[scales.len()])?;
    let wide = |it: &f32| f64::from(norm.offset) + f64::from(*it);
    let one = |((s, before), after): ((&f32, &f32), &f32)| {
        let ratio = (wide(before) / wide(after)) as f32;
        // A channel that is nothing may be divided by anything.
        if ratio.is_finite() && ratio > 0.0 { ratio } else { *s }
    };
    Ok(scales.iter().zip(before).zip(after).map(one).collect())
}

/// Divides what a linear gives: the last rows of its weight `(O, N)`, as many as there are scales. A bias is a weight of one
/// column.
///
/// # Errors
/// A weight that does not fill rows, or has fewer rows than there are scales.
pub fn divide_rows(float: Float, cols: usize, scales: &[f64], weight: &mut [f32]) -> Result<()> {
    let rows = weight.len() / cols.max(1);
    check_len("weight", weight.len(), &[rows, cols])?;
    if rows < scales.len() {
        return Err(ErrorKind::Length { what: "rows of a smoothed weight", found: rows, expected: scales.len() }.into());
    }
    let first = (rows - scales.len()) * cols;
    weight[first..].par_chunks_exact_mut(cols.max(1)).zip(scales).for_each(|(row, s)| {
        row.iter_mut().for_each(|it| *it = float.round((f64::from(*it) / s) as f32));
    });
    Ok(())
}

/// Multiplies the columns of a weight `(O, N)` that reads what was divided.
///
/// # Errors
/// A weight that does not fill rows.
pub fn multiply_columns(float: Float, scales: &[f64], weight: &mut [f32]) -> Result<()> {
    let cols = scales.len();
    check_len("weight", weight.len(), &[weight.len() / cols.max(1), cols])?;
    weight.par_chunks_exact_mut(cols.max(1)).for_each(|row| {
        row.iter_mut().zip(scales).for_each(|(it, s)| *it = float.round((f64::from(*it) * s) as f32));
    });
    Ok(())
}
