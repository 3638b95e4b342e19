//! The search over the grid.

use std::ops::Range;

use super::{
    algorithm::{Balance, Candidate, candidate_scales, fill_candidate},
    loss::BatchLoss,
};
use crate::error::{ErrorKind, Result, check_len};

/// Batches that [`race`] judges all candidates on; after each round it has judged the remaining ones on twice as many.
pub const FIRST_ROUND: usize = 4;

/// Standard errors by which a candidate must lose to the best one to be given up, by the number of batches that both were judged
/// on: Student's t that one difference in two hundred exceeds by chance.
const CERTAIN: [(usize, f64); 5] = [(4, 5.84), (8, 3.50), (16, 2.95), (32, 2.74), (usize::MAX, 2.66)];

/// What a search found.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    /// Scales to apply, one per channel.
    pub scales: Vec<f64>,
    /// Position of the candidate in the grid.
    pub index: usize,
    /// Loss of every candidate, over the batches that it was judged on.
    pub losses: Vec<f64>,
    /// Losses of the first candidate and of the best one, over the batches that both were judged on.
    pub compared: [f64; 2],
}

/// Tries all candidates and keeps the first with the least loss.
///
/// `loss` is given the weights of all balance layers as a candidate makes them, `rtn(W s) / s` by their min-max scales, and
/// says how far the parent's output is from that of the original weights.
///
/// # Errors
/// Weights that do not fit; no finite loss; faults of `loss`.
pub fn search(
    grid: &[Candidate],
    x_mean: &[f32],
    w_mean: &[f64],
    balance: &[Balance<'_>],
    loss: &mut dyn FnMut(&[Vec<f32>]) -> Result<f64>,
) -> Result<Best> {
    check_len("weight means", w_mean.len(), &[x_mean.len()])?;
    let mut losses = Vec::with_capacity(grid.len());
    let mut weights: Vec<Vec<f32>> = balance.iter().map(|it| it.weight.to_vec()).collect();
    for candidate in grid {
        fill_candidate(&candidate_scales(x_mean, w_mean, *candidate), balance, &mut weights)?;
        losses.push(loss(&weights)?);
    }
    let index =
        first_least(losses.iter().copied().enumerate()).ok_or(ErrorKind::NoFiniteLoss { candidates: grid.len() })?;
    let scales = candidate_scales(x_mean, w_mean, grid[index]);
    Ok(Best { scales, index, compared: [losses[0], losses[index]], losses })
}

/// The losses of weights on each of a range of batches.
pub type Judge<'a> = &'a mut dyn FnMut(&[Vec<f32>], Range<usize>) -> Result<Vec<BatchLoss>>;

/// As [`search`], where running all batches is dear: a candidate that loses for certain is given up early.
///
/// `loss` says it of each of the given batches. The candidates are judged on the first [`FIRST_ROUND`] batches, then on as many
/// more as they have been judged on. After each round those are given up whose loss exceeds that of the best one, batch for
/// batch, by more standard errors of the mean difference than chance explains. What is left at the end was judged on all
/// batches, unless one alone was left before.
///
/// # Errors
/// As [`search`].
pub fn race(
    grid: &[Candidate],
    x_mean: &[f32],
    w_mean: &[f64],
    balance: &[Balance<'_>],
    n_batches: usize,
    loss: Judge<'_>,
) -> Result<Best> {
    check_len("weight means", w_mean.len(), &[x_mean.len()])?;
    let mut weights: Vec<Vec<f32>> = balance.iter().map(|it| it.weight.to_vec()).collect();
    let mut judged: Vec<Vec<BatchLoss>> = vec![Vec::new(); grid.len()];
    let mut left: Vec<usize> = (0..grid.len()).collect();
    let mut done = 0;
    while done < n_batches && (left.len() > 1 || done == 0) {
        let end = n_batches.min(FIRST_ROUND.max(2 * done));
        for &idx in &left {
            fill_candidate(&candidate_scales(x_mean, w_mean, grid[idx]), balance, &mut weights)?;
            judged[idx].extend(loss(&weights, done..end)?);
        }
        done = end;
        let Some(best) = first_least(left.iter().map(|it| (*it, BatchLoss::mean(&judged[*it])))) else { break };
        left.retain(|it| *it == best || !loses(&judged[*it], &judged[best]));
    }
    let losses: Vec<f64> = judged.iter().map(|it| BatchLoss::mean(it)).collect();
    let index = first_least(left.iter().map(|it| (*it, losses[*it])));
    let index = index.ok_or(ErrorKind::NoFiniteLoss { candidates: grid.len() })?;
    let both = judged[0].len().min(judged[index].len());
    let compared = [0, index].map(|it| BatchLoss::mean(&judged[it][..both]));
    Ok(Best { scales: candidate_scales(x_mean, w_mean, grid[index]), index, losses, compared })
}

/// The first of those with the least finite loss.
fn first_least(losses: impl Iterator<Item = (usize, f64)>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (idx, loss) in losses {
        if loss < best.map_or(f64::INFINITY, |it| it.1) {
            best = Some((idx, loss));
        }
    }
    best.map(|it| it.0)
}

/// Whether a candidate is worse than the best one for certain; one without a finite loss is.
fn loses(candidate: &[BatchLoss], best: &[BatchLoss]) -> bool {
    let differences: Vec<f64> = candidate.iter().zip(best).map(|(a, b)| f64::from(a.sum) - f64::from(b.sum)).collect();
    let certain = CERTAIN.iter().find(|it| differences.len() <= it.0).map_or(f64::INFINITY, |it| it.1);
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let variance = differences.iter().map(|it| (it - mean) * (it - mean)).sum::<f64>() / (n - 1.0);
    !mean.is_finite() || mean > certain * (variance / n).sqrt()
}
