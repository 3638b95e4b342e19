//! Attention in plain loops, query by query.

use super::{Attention, KEY_BLOCK};
use crate::elementary::{exp, tanh};
use crate::gemm::reference::{dot_panel, multiply_add};
use crate::{Element, Profile};

/// The running softmax over blocks of keys; arguments agree.
pub fn attention<T: Element>(profile: Profile, plan: &Attention<'_>, [q, k, v]: [&[T]; 3], out: &mut [T]) {
    let &Attention { batch, queries, keys, heads, kv_heads, head_dim, value_dim, .. } = plan;
    for b in 0..batch {
        for t in 0..queries {
            for h in 0..heads {
                let q = &q[((b * queries + t) * heads + h) * head_dim..][..head_dim];
                let kv = h / (heads / kv_heads);
                let key = |s: usize| &k[((b * keys + s) * kv_heads + kv) * head_dim..][..head_dim];
                let value = |s: usize| &v[((b * keys + s) * kv_heads + kv) * value_dim..][..value_dim];
                let mut row = Row::new(plan.sinks.map(|it| it[h]), value_dim);
                let (first, end) = plan.visible(t);
                for start in (first / KEY_BLOCK * KEY_BLOCK..end).step_by(KEY_BLOCK) {
                    let range = start..(start + KEY_BLOCK).min(keys);
                    let score = |s: usize| {
                        if s < first || s >= end {
                            return f32::NEG_INFINITY;
                        }
                        let pair = |d: usize| (q[d].to_f32(), key(s)[d].to_f32());
                        let mut score = dot_panel(profile, crate::element::Kind::F32, head_dim, pair) * plan.scale;
                        if let Some(cap) = plan.softcap {
                            score = cap * tanh(score / cap);
                        }
                        plan.bias.map_or(score, |bias| {
                            score + bias.data[b * bias.strides[0] + h * bias.strides[1] + t * bias.strides[2] + s]
                        })
                    };
                    let scores: Vec<f32> = range.clone().map(score).collect();
                    row.add(profile, &scores, |s, d| value(range.start + s)[d].to_f32());
                }
                let out = &mut out[((b * queries + t) * heads + h) * value_dim..][..value_dim];
                for (out, sum) in out.iter_mut().zip(&row.weighted) {
                    *out = T::from_f32(if row.sum == 0.0 { 0.0 } else { sum / row.sum });
                }
            }
        }
    }
}

/// State of a query's running softmax.
struct Row {
    max: f32,
    sum: f32,
    weighted: Vec<f32>,
}

impl Row {
    fn new(sink: Option<f32>, value_dim: usize) -> Self {
        let (max, sum) = sink.map_or((f32::NEG_INFINITY, 0.0), |sink| (sink, 1.0));
        Self { max, sum, weighted: vec![0.0; value_dim] }
    }

    fn add(&mut self, profile: Profile, scores: &[f32], value: impl Fn(usize, usize) -> f32) {
        let max = scores.iter().fold(self.max, |max, &score| if score > max { score } else { max });
        // Where nothing is visible yet, every weight is e^-inf; one that is no number stays none.
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let decay = exp(self.max - shift);
        let weights: Vec<f32> = scores.iter().map(|score| exp(score - shift)).collect();
        self.sum = self.sum * decay + crate::rows::lane_sum(&weights, |x| x);
        for (d, weighted) in self.weighted.iter_mut().enumerate() {
            *weighted *= decay;
            let mut partial = 0.0;
            for (s, &weight) in weights.iter().enumerate() {
                partial = multiply_add(profile, weight, value(s, d), partial);
            }
            *weighted += partial;
        }
        self.max = max;
    }
}
