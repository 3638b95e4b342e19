//! What judging takes at least, from shapes, and whether all weights may stay.

use std::collections::HashMap;

use models::Model;
use tensor::nll::VOCABULARY_TILE;

use super::{EvalOptions, Subject};
use crate::{
    ceiling::PROGRAM_BYTES,
    error::{ErrorKind, Result},
};

/// Bytes of an element of a weight on the way to the type computed in.
const CAST_BYTES: u64 = 4;

/// Whether the weights of all models stay in memory once they are read; else each is read again whenever it is used.
///
/// # Errors
/// `Memory` with the number where not even the largest step fits.
pub(super) fn holds_all(options: &EvalOptions, subjects: &[&Subject], n_tokens: usize) -> Result<bool> {
    let Some(allowed_bytes) = options.max_memory_bytes else { return Ok(true) };
    let steps: Vec<Step> =
        subjects.iter().map(|it| largest_step(it.model(), n_tokens as u64, subjects.len())).collect();
    let needed_bytes = PROGRAM_BYTES + steps.iter().map(|it| it.bytes).sum::<u64>();
    if needed_bytes > allowed_bytes {
        let module = steps.into_iter().max_by_key(|it| it.bytes).map_or_else(String::new, |it| it.module);
        return Err(ErrorKind::Memory { module, needed_bytes, allowed_bytes }.into());
    }
    let all: u64 = subjects.iter().map(|it| parameter_bytes(it.model())).sum();
    Ok(needed_bytes.saturating_add(all) <= allowed_bytes)
}

/// A module and what it takes while it runs.
struct Step {
    module: String,
    bytes: u64,
}

fn width(model: &Model) -> u64 {
    (model.store().dtype().bits() / 8) as u64
}

fn parameter_bytes(model: &Model) -> u64 {
    model.store().parameters().map(|(_, it)| it.shape.iter().product::<usize>() as u64 * width(model)).sum()
}

/// The most that weights and values take at once while a row of `n_tokens` runs.
fn largest_step(model: &Model, n_tokens: u64, n_subjects: usize) -> Step {
    let width = width(model);
    let (mut weights, mut outputs): (HashMap<String, u64>, HashMap<String, u64>) = Default::default();
    let (mut hidden, mut head) = (0, 0);
    let causal = model.causal();
    for id in model.tree().ids() {
        let Some(linear) = model.linear(id) else { continue };
        let &[rows, cols] = model.store().info(linear.weight).shape.as_slice() else { continue };
        let (rows, cols) = (rows as u64, cols as u64);
        if causal.as_ref().is_some_and(|it| it.head == id) {
            let tile = rows.min(VOCABULARY_TILE as u64);
            hidden = cols;
            head = tile * (cols + n_tokens) * (width + CAST_BYTES);
            continue;
        }
        let path = model.tree().path(id);
        *weights.entry(run_together(path)).or_default() += rows * cols * (width + CAST_BYTES);
        let parent = path.rsplit_once('.').map_or("", |it| it.0);
        *outputs.entry(parent.to_owned()).or_default() += rows;
    }
    let widest = outputs.values().max().copied().unwrap_or(0);
    let largest = weights.into_iter().max_by(|a, b| (a.1, &b.0).cmp(&(b.1, &a.0))).unwrap_or_default();
    let values = (6 * hidden + 2 * widest) * n_tokens * width;
    // To compare, the outputs of all layers of a row stay.
    let layers = model.match_targets::<&str>(&[]).map_or(0, |it| it.len() as u64);
    let compared = if n_subjects > 1 { layers * hidden * n_tokens * width } else { 0 };
    let bytes = compared + (largest.1 + values).max(head + 2 * hidden * n_tokens * width);
    Step { module: largest.0, bytes }
}

/// The name under which the weights lie that run as one: those of the experts of a layer, else the module's own.
fn run_together(path: &str) -> String {
    let mut parts: Vec<&str> = path.rsplitn(4, '.').collect();
    match parts.as_slice() {
        [_, number, "experts", _] if number.bytes().all(|it| it.is_ascii_digit()) => {
            parts.remove(1);
            parts.reverse();
            parts.join(".")
        }
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_run_together_and_other_layers_alone() {
        assert_eq!(run_together("model.layers.0.mlp.experts.12.up_proj"), "model.layers.0.mlp.experts.up_proj");
        assert_eq!(run_together("model.layers.0.mlp.up_proj"), "model.layers.0.mlp.up_proj");
        assert_eq!(run_together("lm_head"), "lm_head");
    }
}
