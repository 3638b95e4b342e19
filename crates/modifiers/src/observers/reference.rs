//! The grid search as the reference runs it: all scales step by step, one patience for all of them.
//!
//! These loops define the result of the fast search.

use compressed_tensors::{Result, args::QuantizationArgs, numbers::Float, quantize::ScaleMap};

use super::{
    search::{GridSearch, Range, magnitude, total},
    settings::SearchSettings,
};

/// Ranges that a search chose, and the number of candidates it tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Searched {
    /// Smallest and largest value per scale.
    pub ranges: Vec<(f32, f32)>,
    /// Candidates tried before the search stopped.
    pub n_evaluated: usize,
}

/// Searches the range of every scale of `map`, from the observed `ranges`.
///
/// `weights` are factors of the errors, one per value. The errors of a scale are added in f64 to eight sums in turn.
///
/// # Errors
/// Arguments without arithmetic.
pub fn search(
    settings: &SearchSettings,
    args: &QuantizationArgs,
    (values, float): (&[f32], Float),
    map: &ScaleMap,
    ranges: &[Range],
    weights: Option<&[f32]>,
) -> Result<Searched> {
    let grid = GridSearch::new(settings, args, float)?;
    let mut chosen: Vec<Range> = ranges.iter().map(|range| grid.candidate(*range, 0)).collect();
    let mut best = vec![grid.worst(); ranges.len()];
    let mut stale = 0;
    for step in 0..grid.factors.len() {
        let qparams: Vec<_> = ranges.iter().map(|range| grid.qparam(*range, step)).collect();
        let mut sums = vec![([0.0; 8], 0); ranges.len()];
        for (i, &x) in values.iter().enumerate() {
            let idx = map.index(i);
            let error = magnitude(grid.arithmetic.code, x, qparams[idx], float, grid.error);
            let share = grid.measure.share(error, grid.error);
            let share = weights.map_or(share, |weights| f64::from(share as f32 * weights[i]));
            let (lanes, n_values) = &mut sums[idx];
            lanes[*n_values % 8] += share;
            *n_values += 1;
        }
        let mut is_better = false;
        for (idx, (lanes, _)) in sums.iter().enumerate() {
            let error = grid.error(total(lanes));
            if error < best[idx] {
                best[idx] = error;
                chosen[idx] = grid.candidate(ranges[idx], step);
                is_better = true;
            }
        }
        stale = if is_better { 0 } else { stale + 1 };
        if grid.patience.is_some_and(|patience| stale >= patience) {
            return Ok(Searched { ranges: chosen, n_evaluated: step + 1 });
        }
    }
    Ok(Searched { ranges: chosen, n_evaluated: grid.factors.len() })
}
