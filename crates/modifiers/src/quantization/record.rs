//! What a quantizing modifier says of each module that it rounded, for the report.

use lifecycle::{Error, ModuleStore, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::targets::Target;

/// Rows that are compared at once, which bounds the memory.
const SLAB_ROWS: usize = 256;

/// Rows of which outputs are compared.
const SAMPLED_ROWS: usize = 128;

/// How far values are from those that they stand for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    /// `sqrt(sum (w - v)^2 / sum w^2)`.
    pub relative_error: f64,
    /// Signal to quantization noise in decibels: `10 log10(sum w^2 / sum (w - v)^2)`; none where they are equal.
    pub sqnr_db: Option<f64>,
}

impl Distance {
    /// From the sums of squares of the values and of the differences.
    pub fn of(signal: f64, noise: f64) -> Self {
        let sqnr_db = (noise > 0.0).then(|| 10.0 * (signal / noise).log10()).filter(|it| it.is_finite());
        let relative_error = if signal > 0.0 { (noise / signal).sqrt() } else { 0.0 };
        Self { relative_error, sqnr_db }
    }
}

/// What became of a module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModuleRecord {
    /// Its name.
    pub module: String,
    /// Tokens of calibration data that reached it, where they were counted.
    pub tokens: Option<u64>,
    /// What the method itself minimizes.
    pub loss: Option<f64>,
    /// The weight, rounded, against the weight that was given to be rounded.
    pub weight: Option<Distance>,
    /// Outputs on the calibration data, over at most 128 rows that are spread over the weight; none without second moments.
    pub output: Option<Distance>,
    /// Share of the mean diagonal that was added to it.
    pub dampening_frac: Option<f32>,
    /// Factorizations tried; more than one means that the damping was raised.
    pub attempts: Option<u32>,
    /// Columns whose input was always 0.
    pub dead_columns: Option<usize>,
    /// Why the weight was rounded to nearest instead.
    pub fallback: Option<String>,
    /// The cost of its rounding before and after refinement, where codes and scales were refined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refined: Option<[f64; 2]>,
    /// Seconds of computing.
    pub seconds: f64,
}

impl ModuleRecord {
    /// The record as JSON.
    pub fn value(&self) -> Value {
        // Numbers, texts and fixed names are always JSON.
        serde_json::to_value(self).unwrap_or_default()
    }
}

/// The sum of squares that rows (R, N) of a weight put out on all tokens seen.
pub type Energy<'a> = &'a dyn Fn(&[f32]) -> Result<f64>;

/// Compares `after` (O, N) with the weight that the model still holds, and outputs where `energy` is known.
///
/// # Errors
/// A failed read.
pub fn distances(
    model: &dyn ModuleStore,
    name: &str,
    target: &Target,
    after: &[f32],
    energy: Option<Energy<'_>>,
) -> Result<(Distance, Option<Distance>)> {
    let (rows, cols) = (target.rows, target.cols);
    let parameter = format!("{name}.weight");
    let step = rows.div_ceil(SAMPLED_ROWS).max(1);
    let n_sampled = if energy.is_some() { rows.div_ceil(step) * cols } else { 0 };
    let (mut sampled, mut differences) = (Vec::with_capacity(n_sampled), Vec::with_capacity(n_sampled));
    let mut before = Vec::new();
    let (mut signal, mut noise) = (0.0f64, 0.0f64);
    for first in (0..rows).step_by(SLAB_ROWS) {
        let slab = first..(first + SLAB_ROWS).min(rows);
        before.resize(slab.len() * cols, 0.0);
        model.read_rows(&parameter, slab.clone(), &mut before)?;
        let after = &after[slab.start * cols..slab.end * cols];
        // Sums of rows are added in order, so that threads do not change the figure.
        let both = before.par_chunks_exact(cols.max(1)).zip(after.par_chunks_exact(cols.max(1)));
        for sums in both.map(|(before, after)| squares(before, after)).collect::<Vec<_>>() {
            signal += sums.0;
            noise += sums.1;
        }
        if energy.is_some() {
            let both = before.chunks_exact(cols.max(1)).zip(after.chunks_exact(cols.max(1)));
            for (_, (before, after)) in slab.zip(both).filter(|it| it.0.is_multiple_of(step)) {
                sampled.extend_from_slice(before);
                differences.extend(before.iter().zip(after).map(|(w, v)| w - v));
            }
        }
    }
    let output =
        energy.map(|energy| Ok::<_, Error>(Distance::of(energy(&sampled)?, energy(&differences)?))).transpose()?;
    Ok((Distance::of(signal, noise), output))
}

/// Sums of squares of a row, and of what it lacks of `after`.
fn squares(before: &[f32], after: &[f32]) -> (f64, f64) {
    before.iter().zip(after).fold((0.0, 0.0), |sum, (w, v)| {
        let (w, d) = (f64::from(*w), f64::from(*w) - f64::from(*v));
        (sum.0 + w * w, sum.1 + d * d)
    })
}
