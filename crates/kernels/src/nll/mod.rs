//! Negative log-likelihood of a target token per row, from logits that come in tiles of the vocabulary.

pub mod reference;

use rayon::prelude::*;

use crate::error::{Error, ErrorKind, check_len};
use crate::rows::twins;
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
    if width > 0 {
        let rows = logits.par_chunks(width).zip(targets.par_chunks(1)).zip(state.par_chunks_mut(1));
        rows.for_each(|((logits, target), state)| merge_rows(profile, logits, first_token, target, state));
    }
    Ok(())
}

twins! {
    /// The loop on this thread; lengths agree.
    fn merge_rows(logits: &[f32], first_token: usize, targets: &[u32], state: &mut [RowState]) = reference::merge_tile;
}

/// Negative log-likelihood of each row of whole logits: logits (rows, V), targets (rows), each below V; out (rows).
///
/// Equal to [`merge_tile`] over tiles of [`VOCABULARY_TILE`].
/// A target beyond V is [`Index`](ErrorKind::Index).
pub fn nll(profile: Profile, logits: &[f32], targets: &[u32], out: &mut [f64]) -> Result<()> {
    check_len("nll: out", out.len(), &[targets.len()])?;
    let width = logits.len().checked_div(targets.len()).unwrap_or(0);
    check_len("nll: logits", logits.len(), &[targets.len(), width])?;
    if let Some(position) = targets.iter().position(|&target| target as usize >= width) {
        let kind = ErrorKind::Index { found: targets[position] as usize, position, bound: width };
        return Err(Error::new("nll: targets", kind));
    }
    let rows = logits.par_chunks(width.max(1)).zip(targets.par_chunks(1)).zip(out);
    rows.for_each(|((row, target), out)| {
        let mut state = [RowState::default()];
        for (idx, tile) in row.chunks(VOCABULARY_TILE).enumerate() {
            merge_rows(profile, tile, idx * VOCABULARY_TILE, target, &mut state);
        }
        *out = state[0].nll().unwrap_or(f64::NAN);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::gemm::tests::numbers;

    const VOCABULARY: usize = 2 * VOCABULARY_TILE + 100;

    #[test]
    fn tiles_and_whole_rows_give_the_same_bits_under_every_profile() {
        let logits = numbers::<f32>(3 * VOCABULARY, 1);
        let targets = [0, VOCABULARY_TILE as u32, VOCABULARY as u32 - 1];
        let mut want = None;
        for profile in Profile::available() {
            let mut whole = [0.0; 3];
            nll(profile, &logits, &targets, &mut whole).unwrap();
            let mut state = [RowState::default(); 3];
            for start in (0..VOCABULARY).step_by(VOCABULARY_TILE) {
                let end = (start + VOCABULARY_TILE).min(VOCABULARY);
                let tile: Vec<f32> = logits.chunks(VOCABULARY).flat_map(|row| row[start..end].to_vec()).collect();
                merge_tile(profile, &tile, start, &targets, &mut state).unwrap();
            }
            assert_eq!(state.map(|row| row.nll().unwrap()), whole);
            assert_eq!(*want.get_or_insert(whole), whole, "{profile:?}");
        }
        for ((row, target), got) in logits.chunks(VOCABULARY).zip(targets).zip(want.unwrap()) {
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            // 256 f32 additions a lane of a tile, and exponentials of 2 ulp.
            assert!((got - (sum.ln() - f64::from(row[target as usize]))).abs() < 2e-6);
        }
    }

    #[test]
    fn a_target_beyond_the_vocabulary_is_told_and_one_whose_tile_has_not_come_has_no_value() {
        let error = nll(Profile::PORTABLE, &[0.0; 6], &[1, 3], &mut [0.0; 2]).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Index { found: 3, position: 1, bound: 3 });
        let mut state = [RowState::default()];
        merge_tile(Profile::PORTABLE, &[0.0, 1.0], 0, &[2], &mut state).unwrap();
        assert_eq!(state[0].nll(), None);
        merge_tile(Profile::PORTABLE, &[f32::NEG_INFINITY, 5.0], 2, &[3], &mut state).unwrap();
        assert_eq!(state[0].target, Some(5.0));
        assert_eq!(
            merge_tile(Profile::PORTABLE, &[0.0; 3], 0, &[0, 0], &mut state).unwrap_err().place(),
            "nll: targets"
        );
    }
}
