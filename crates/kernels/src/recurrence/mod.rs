//! Mixers of positions that carry a state: the causal convolution, the selective scan and the gated delta rule.
//!
//! Each row, head or channel is a plain loop over tokens in f32, as written here; rows and heads run beside one another.

use rayon::prelude::*;

use crate::elementary::{exp, ln_f64};
use crate::error::{Error, ErrorKind, check_len};
use crate::{Element, Result};

/// Added to the squared length of query and key before its root is divided by.
const UNIT_EPS: f32 = 1e-6;

/// `y[t] = bias + sum over i of w[i] * x[t + 1 - K + i]` per channel, tokens before the first being zero: x (B, T, C), w (C, K),
/// bias (C), y (B, T, C); taps are added in order, the sum is rounded once.
pub fn causal_conv<T: Element>(
    [tokens, channels, taps]: [usize; 3],
    w: &[f32],
    bias: Option<&[f32]>,
    x: &[T],
    y: &mut [T],
) -> Result<()> {
    check_len("causal_conv: w", w.len(), &[channels, taps])?;
    check_len("causal_conv: y", y.len(), &[x.len()])?;
    let row = (tokens * channels).max(1);
    y.par_chunks_mut(row).zip(x.par_chunks(row)).for_each(|(y, x)| {
        for (t, y) in y.chunks_exact_mut(channels.max(1)).enumerate() {
            for (c, y) in y.iter_mut().enumerate() {
                let mut sum = 0.0;
                for tap in taps.saturating_sub(t + 1)..taps {
                    sum += w[c * taps + tap] * x[(t + 1 + tap - taps) * channels + c].to_f32();
                }
                *y = T::from_f32(sum + bias.map_or(0.0, |bias| bias[c]));
            }
        }
    });
    Ok(())
}

/// Shape of a scan.
#[derive(Clone, Copy, Debug)]
pub struct Scan {
    /// B.
    pub batch: usize,
    /// T.
    pub tokens: usize,
    /// H, heads of the values.
    pub heads: usize,
    /// Heads that keys and queries have; head h reads that of number `h / (heads / groups)`.
    pub groups: usize,
    /// D, width of a key.
    pub key_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
}

/// Parameters of a selective scan, by head.
#[derive(Clone, Copy, Debug)]
pub struct Selective<'a> {
    /// Logarithms of the decays (H).
    pub decay_log: &'a [f32],
    /// Added to the steps before softplus (H).
    pub step_bias: &'a [f32],
    /// Factors on the input beside the state (H).
    pub skip: &'a [f32],
    /// Least and largest step.
    pub limits: [f32; 2],
}

/// Mamba 2: per head `S = exp(-step * exp(decay_log)) * S + (step * x) k^T`, `y = S q + skip * x`, with
/// `step = clamp(softplus(step + bias))`: x (B, T, H, P), steps (B, T, H), k and q (B, T, G, N), y (B, T, H, P).
pub fn selective_scan<T: Element>(
    scan: Scan,
    parameters: Selective<'_>,
    [x, steps, k, q]: [&[T]; 4],
    y: &mut [T],
) -> Result<()> {
    let Selective { decay_log, step_bias, skip, limits } = parameters;
    scan.check("selective_scan", [x.len(), k.len(), q.len(), y.len()])?;
    check_len("selective_scan: steps", steps.len(), &[scan.batch, scan.tokens, scan.heads])?;
    for (name, numbers) in
        [("selective_scan: decay", decay_log), ("selective_scan: bias", step_bias), ("selective_scan: skip", skip)]
    {
        check_len(name, numbers.len(), &[scan.heads])?;
    }
    scan.by_head(y, |b, h, t, state, out| {
        let step = steps[(b * scan.tokens + t) * scan.heads + h].to_f32() + step_bias[h];
        let step = softplus(step).clamp(limits[0], limits[1]);
        let decay = exp(-exp(decay_log[h]) * step);
        let (k, q) = (scan.key(k, b, t, h), scan.key(q, b, t, h));
        for (p, out) in out.iter_mut().enumerate() {
            let input = scan.value(x, b, t, h)[p].to_f32();
            let state = &mut state[p * scan.key_dim..][..scan.key_dim];
            let mut sum = 0.0;
            for ((state, k), q) in state.iter_mut().zip(k).zip(q) {
                *state = *state * decay + step * input * k.to_f32();
                sum += *state * q.to_f32();
            }
            *out = sum + skip[h] * input;
        }
    });
    Ok(())
}

/// The gated delta rule: per head, with q and k of unit length and q divided by the root of D,
/// `S = exp(-exp(decay_log) * softplus(gate + bias)) * S`, `S += beta * (v - S k) k^T`, `y = S q`: v (B, T, H, P), k and q
/// (B, T, G, D), betas and gates (B, T, H), y (B, T, H, P); betas are sigmoids of what is given.
pub fn delta_scan<T: Element>(
    scan: Scan,
    [decay_log, gate_bias]: [&[f32]; 2],
    [v, k, q, betas, gates]: [&[T]; 5],
    y: &mut [T],
) -> Result<()> {
    scan.check("delta_scan", [v.len(), k.len(), q.len(), y.len()])?;
    for (name, numbers) in [("delta_scan: betas", betas), ("delta_scan: gates", gates)] {
        check_len(name, numbers.len(), &[scan.batch, scan.tokens, scan.heads])?;
    }
    check_len("delta_scan: decay", decay_log.len(), &[scan.heads])?;
    check_len("delta_scan: bias", gate_bias.len(), &[scan.heads])?;
    let unit = |x: &[T], factor: f32| -> Vec<f32> {
        let squares: f32 = x.iter().map(|x| x.to_f32() * x.to_f32()).sum();
        let inverse = 1.0 / (squares + UNIT_EPS).sqrt() * factor;
        x.iter().map(|x| x.to_f32() * inverse).collect()
    };
    let query_factor = 1.0 / (scan.key_dim as f32).sqrt();
    scan.by_head(y, |b, h, t, state, out| {
        let at = (b * scan.tokens + t) * scan.heads + h;
        let decay = exp(-exp(decay_log[h]) * softplus(gates[at].to_f32() + gate_bias[h]));
        let beta = T::from_f32(1.0 / (1.0 + exp(-betas[at].to_f32()))).to_f32();
        let (k, q) = (unit(scan.key(k, b, t, h), 1.0), unit(scan.key(q, b, t, h), query_factor));
        for (p, out) in out.iter_mut().enumerate() {
            let state = &mut state[p * scan.key_dim..][..scan.key_dim];
            let mut known = 0.0;
            for (state, k) in state.iter_mut().zip(&k) {
                *state *= decay;
                known += *state * k;
            }
            let change = (scan.value(v, b, t, h)[p].to_f32() - known) * beta;
            let mut sum = 0.0;
            for ((state, k), q) in state.iter_mut().zip(&k).zip(&q) {
                *state += change * k;
                sum += *state * q;
            }
            *out = sum;
        }
    });
    Ok(())
}

/// `ln(1 + exp(x))`, or x where the difference is lost.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { ln_f64(1.0 + f64::from(exp(x))) as f32 }
}

impl Scan {
    fn check(&self, name: &'static str, [v, k, q, y]: [usize; 4]) -> Result<()> {
        let &Self { batch, tokens, heads, groups, key_dim, value_dim } = self;
        if groups == 0 || !heads.is_multiple_of(groups) {
            let expected = format!("a divisor of the {heads} heads");
            return Err(Error::new(name, ErrorKind::Extent { found: groups, expected }));
        }
        check_len(name, v, &[batch, tokens, heads, value_dim])?;
        check_len(name, y, &[batch, tokens, heads, value_dim])?;
        check_len(name, k, &[batch, tokens, groups, key_dim])?;
        check_len(name, q, &[batch, tokens, groups, key_dim])
    }

    fn key<'a, T>(&self, x: &'a [T], b: usize, t: usize, h: usize) -> &'a [T] {
        let group = h / (self.heads / self.groups);
        &x[((b * self.tokens + t) * self.groups + group) * self.key_dim..][..self.key_dim]
    }

    fn value<'a, T>(&self, x: &'a [T], b: usize, t: usize, h: usize) -> &'a [T] {
        &x[((b * self.tokens + t) * self.heads + h) * self.value_dim..][..self.value_dim]
    }

    /// Runs `step(b, h, t, state, out)` over the tokens of each row and head, the state (P, D) starting at zero.
    fn by_head<T: Element>(&self, y: &mut [T], step: impl Fn(usize, usize, usize, &mut [f32], &mut [f32]) + Sync) {
        let &Self { tokens, heads, key_dim, value_dim, .. } = self;
        y.par_chunks_mut((tokens * heads * value_dim).max(1)).enumerate().for_each(|(b, y)| {
            let results: Vec<Vec<f32>> = (0..heads)
                .into_par_iter()
                .map(|h| {
                    let mut state = vec![0.0; value_dim * key_dim];
                    let mut out = vec![0.0; tokens * value_dim];
                    for (t, out) in out.chunks_exact_mut(value_dim.max(1)).enumerate() {
                        step(b, h, t, &mut state, out);
                    }
                    out
                })
                .collect();
            for (idx, y) in y.chunks_exact_mut(value_dim.max(1)).enumerate() {
                let (t, h) = (idx / heads, idx % heads);
                let from = &results[h][t * value_dim..][..value_dim];
                y.iter_mut().zip(from).for_each(|(y, &x)| *y = T::from_f32(x));
            }
        });
    }
}

#[cfg(test)]
mod tests;
