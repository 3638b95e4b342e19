//! Negative log-likelihood of a target token per row, from logits that come in tiles of the vocabulary.

pub mod reference;

use crate::error::check_len;
use crate::{Profile, Result};

/// Columns of a vocabulary tile; a numerics constant.
pub const VOCABULARY_TILE: usize = 4096;

/// What is known of a row after the tiles so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowState {
    /// Largest logit.
    pub max: f32,
    /// Sum of `exp(logit - max)`.
    pub sum: f64,
    /// The target's logit, once its tile has come.
    pub target: Option<f32>,
}

impl Default for RowState {
    fn default() -> Self {
        Self { max: f32::NEG_INFINITY, sum: 0.0, target: None }
    }
}

impl RowState {
    /// `ln(sum(exp(logits))) - logit of the target`; none where the target's tile has not come.
    pub fn nll(&self) -> Option<f64> {
        let target = f64::from(self.target?);
        Some(crate::elementary::ln_f64(self.sum) + (f64::from(self.max) - target))
    }
}

/// Merges one tile: logits (rows, tile) of the tokens from `first_token`, target (rows), state (rows).
///
/// Tiles come in rising order, each [`VOCABULARY_TILE`] wide but the last; then the result depends on the row alone.
/// Within a tile the sum of exponentials is f32 in 16 lanes; tiles are merged in f64.
pub fn merge_tile(
    profile: Profile,
    logits: &[f32],
    first_token: usize,
    targets: &[u32],
    state: &mut [RowState],
) -> Result<()> {
    check_len("nll: targets", targets.len(), &[state.len()])?;
    let width = logits.len().checked_div(state.len()).unwrap_or(0);
    check_len("nll: logits", logits.len(), &[state.len(), width])?;
    let _ = profile;
    reference::merge_tile(logits, first_token, targets, state);
    Ok(())
}

/// Negative log-likelihood of each row of whole logits: logits (rows, V), targets (rows), each below V; out (rows).
///
/// Equal to [`merge_tile`] over tiles of [`VOCABULARY_TILE`].
/// A target beyond V is [`Index`](crate::ErrorKind::Index).
pub fn nll(profile: Profile, logits: &[f32], targets: &[u32], out: &mut [f64]) -> Result<()> {
    use crate::error::{Error, ErrorKind};
    check_len("nll: out", out.len(), &[targets.len()])?;
    let width = logits.len().checked_div(targets.len()).unwrap_or(0);
    check_len("nll: logits", logits.len(), &[targets.len(), width])?;
    if let Some(position) = targets.iter().position(|&target| target as usize >= width) {
        let kind = ErrorKind::Index { found: targets[position] as usize, position, bound: width };
        return Err(Error::new("nll: targets", kind));
    }
    for ((row, target), out) in logits.chunks_exact(width.max(1)).zip(targets).zip(out) {
        let mut state = [RowState::default()];
        for (idx, tile) in row.chunks(VOCABULARY_TILE).enumerate() {
            merge_tile(profile, tile, idx * VOCABULARY_TILE, &[*target], &mut state)?;
        }
        *out = state[0].nll().unwrap_or(f64::NAN);
    }
    Ok(())
}
