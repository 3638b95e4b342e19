//! How far a model's predictions and layers are from those of a reference model.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use graph::ModuleId;
use models::{HookGuard, Tap};
use rayon::prelude::*;
use serde::Serialize;
use tensor::Tensor;

use super::{Subject, Window};
use crate::error::{ErrorKind, Result};

/// Tokens whose logits are compared at once.
const TOKENS: usize = 32;

/// Kullback-Leibler divergence of the model from the reference, per token, in nats.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct KlDivergence {
    /// Mean over predicted tokens.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

/// How much of a layer's output is error.
#[derive(Clone, Debug, Serialize)]
pub struct LayerNoise {
    /// The layer.
    pub layer: String,
    /// `10 log10(signal / noise)` over all tokens, in dB; none where there is no noise.
    pub sqnr_db: Option<f64>,
}

/// Distance from a reference model.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The reference as given.
    pub reference: String,
    /// Of the predicted distributions.
    pub kl: KlDivergence,
    /// Share of tokens for which both predict the same one.
    pub top1: f64,
    /// Per decoder layer, in order.
    pub layers: Vec<LayerNoise>,
}

impl Comparison {
    /// Two lines for a person.
    pub(super) fn summary(&self) -> String {
        let KlDivergence { mean, p50, p90, p99, max } = self.kl;
        let loudest = self.layers.iter().filter_map(|it| Some((it.sqnr_db?, &it.layer)));
        let worst = loudest.min_by(|a, b| a.0.total_cmp(&b.0));
        let worst =
            worst.map_or_else(|| "no layer differs".to_owned(), |(db, it)| format!("worst layer {it} at {db:.1} dB"));
        format!(
            "against {}: KL mean {mean:.5}, median {p50:.5}, 90 % {p90:.5}, 99 % {p99:.5}, max {max:.4}; same first choice \
             for {:.2} %; {worst}",
            self.reference,
            100.0 * self.top1
        )
    }
}

type Outputs = Arc<Mutex<Vec<Tensor>>>;

/// Compares row after row.
pub(super) struct Comparer<'a> {
    candidate: &'a Subject,
    reference: &'a Subject,
    /// What the layers gave in the latest row, in running order.
    heard: [Outputs; 2],
    _guards: Vec<HookGuard>,
    kl: Vec<f64>,
    n_same: usize,
    layers: Vec<(String, f64, f64)>,
}

impl<'a> Comparer<'a> {
    /// A comparison of `candidate` with `reference`.
    ///
    /// # Errors
    /// `Option` where vocabularies or layers differ.
    pub(super) fn new(candidate: &'a Subject, reference: &'a Subject) -> Result<Self> {
        let refuse = |found: String, expected: String| ErrorKind::Option { option: "--reference", found, expected };
        if candidate.vocabulary() != reference.vocabulary() {
            let tokens = |it: &Subject| it.vocabulary().map_or("no".to_owned(), |it| it.to_string());
            return Err(refuse(
                format!("a model of {} tokens", tokens(reference)),
                format!("{} tokens, as the model has", tokens(candidate)),
            )
            .into());
        }
        let layers = |it: &Subject| -> Result<Vec<ModuleId>> {
            Ok(it.model().match_targets::<&str>(&[])?.into_iter().collect())
        };
        let modules = [layers(candidate)?, layers(reference)?];
        if modules[0].len() != modules[1].len() {
            let [found, expected] = [&modules[1], &modules[0]].map(|it| format!("{} layers", it.len()));
            return Err(refuse(format!("a model of {found}"), format!("{expected}, as the model has")).into());
        }
        let heard = [Outputs::default(), Outputs::default()];
        let mut guards = Vec::new();
        for ((subject, modules), heard) in [candidate, reference].into_iter().zip(&modules).zip(&heard) {
            for &module in modules {
                let heard = Arc::clone(heard);
                guards.push(subject.hooks().add(module, Tap::Output, move |output| {
                    lock(&heard).extend(output.first().cloned());
                    Ok(None)
                }));
            }
        }
        let names = modules[0].iter().map(|it| (candidate.model().tree().path(*it).to_owned(), 0.0, 0.0)).collect();
        Ok(Self { candidate, reference, heard, _guards: guards, kl: Vec::new(), n_same: 0, layers: names })
    }

    /// Adds a window of which the candidate has just given `hidden`.
    ///
    /// # Errors
    /// What the models refuse.
    pub(super) fn add(&mut self, window: &Window, hidden: &Tensor) -> Result<()> {
        let other = self.reference.hidden(&window.ids)?;
        self.add_layers()?;
        let judged = window.first_judged - 1..window.ids.len() - 1;
        for first in judged.clone().step_by(TOKENS) {
            let len = TOKENS.min(judged.end - first);
            let logits = [self.candidate.logits(hidden, first, len)?, self.reference.logits(&other, first, len)?];
            let [q, p] = [logits[0].to_f32(), logits[1].to_f32()];
            let (q, p) = (q.map_err(models::Error::from)?, p.map_err(models::Error::from)?);
            let vocabulary = q.len() / len;
            let tokens: Vec<(f64, bool)> = p
                .par_chunks(vocabulary)
                .zip(q.par_chunks(vocabulary))
                .map(|(p, q)| (divergence(p, q), top(p) == top(q)))
                .collect();
            self.n_same += tokens.iter().filter(|it| it.1).count();
            self.kl.extend(tokens.into_iter().map(|it| it.0));
        }
        Ok(())
    }

    fn add_layers(&mut self) -> Result<()> {
        let [ours, theirs] = &self.heard;
        let (ours, theirs) = (std::mem::take(&mut *lock(ours)), std::mem::take(&mut *lock(theirs)));
        for ((layer, ours), theirs) in self.layers.iter_mut().zip(ours).zip(theirs) {
            let (ours, theirs) =
                (ours.to_f32().map_err(models::Error::from)?, theirs.to_f32().map_err(models::Error::from)?);
            for (ours, theirs) in ours.iter().zip(theirs.iter()) {
                layer.1 += f64::from(*theirs).powi(2);
                layer.2 += (f64::from(*theirs) - f64::from(*ours)).powi(2);
            }
        }
        Ok(())
    }

    /// What was found.
    pub(super) fn finish(mut self, reference: String) -> Comparison {
        self.kl.sort_by(f64::total_cmp);
        let n = self.kl.len();
        let at = |share: f64| self.kl.get(((n as f64 - 1.0) * share).round() as usize).copied().unwrap_or(0.0);
        let kl = KlDivergence {
            mean: self.kl.iter().sum::<f64>() / n.max(1) as f64,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        };
        let sqnr = |signal: f64, noise: f64| (noise > 0.0).then(|| 10.0 * (signal / noise).log10());
        let layers = self
            .layers
            .iter()
            .map(|(layer, signal, noise)| LayerNoise { layer: layer.clone(), sqnr_db: sqnr(*signal, *noise) });
        Comparison { reference, kl, top1: self.n_same as f64 / n.max(1) as f64, layers: layers.collect() }
    }
}

fn lock(outputs: &Outputs) -> MutexGuard<'_, Vec<Tensor>> {
    outputs.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `sum p (log p - log q)` of the distributions that two rows of logits stand for, in f64.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p_offset, q_offset) = (log_sum_exp(p), log_sum_exp(q));
    let terms = p.iter().zip(q).map(|(p, q)| {
        let (log_p, log_q) = (f64::from(*p) - p_offset, f64::from(*q) - q_offset);
        log_p.exp() * (log_p - log_q)
    });
    terms.sum::<f64>().max(0.0)
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + logits.iter().map(|it| (f64::from(*it) - max).exp()).sum::<f64>().ln()
}

/// The first of the largest.
fn top(logits: &[f32]) -> usize {
    let mut top = 0;
    for (idx, value) in logits.iter().enumerate() {
        if *value > logits[top] {
            top = idx;
        }
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_known_distributions_is_the_formula() {
        let logits = |probabilities: [f64; 2]| probabilities.map(|it| it.ln() as f32 + 3.0);
        let (p, q) = (logits([0.75, 0.25]), logits([0.5, 0.5]));
        let expected = 0.75 * 1.5_f64.ln() + 0.25 * 0.5_f64.ln();
        assert!((divergence(&p, &q) - expected).abs() < 1e-6, "{} {expected}", divergence(&p, &q));
        assert_eq!(divergence(&p, &p), 0.0);
        assert_eq!(top(&[1.0, 3.0, 3.0]), 1);
    }
}
