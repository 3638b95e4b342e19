//! How far outputs are from those of the original weights.

use kernels::{Element, Profile, distance, moments};

use crate::{
    dense::Dense,
    error::{Result, check_len},
};

/// Sum of squared differences of the outputs of one batch, and how many there are.
///
/// As in the reference, differences, squares and the sum are rounded to the outputs' type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchLoss {
    /// The sum.
    pub sum: f32,
    /// Elements that counted.
    pub elements: u64,
}

impl BatchLoss {
    /// Of outputs `(T, O)`; with a mask (T) only of tokens that count.
    ///
    /// # Errors
    /// Slices of different lengths.
    pub fn of<E: Element>(profile: Profile, original: &[E], candidate: &[E], mask: Option<&[bool]>) -> Result<Self> {
        check_len("a candidate's output", candidate.len(), &[original.len()])?;
        let (mut sum, mut elements) = (0.0, 0);
        let width = original.len() / mask.map_or(1, <[bool]>::len).max(1);
        if let Some(mask) = mask {
            check_len("an output", original.len(), &[mask.len(), width])?;
        }
        let mut first = 0;
        for run in mask.unwrap_or(&[true]).chunk_by(|a, b| a == b) {
            let end = first + run.len() * width;
            if run[0] {
                sum += distance::squared(profile, &original[first..end], &candidate[first..end])?;
                elements += (end - first) as u64;
            }
            first = end;
        }
        Ok(Self { sum: E::from_f32(sum as f32).to_f32(), elements })
    }

    /// Of two values of one type; else NaN.
    ///
    /// # Errors
    /// As [`BatchLoss::of`].
    pub(crate) fn of_values(
        profile: Profile,
        original: &Dense<'_>,
        candidate: &Dense<'_>,
        mask: Option<&[bool]>,
    ) -> Result<Self> {
        match (original, candidate) {
            (Dense::Bf16(a), Dense::Bf16(b)) => Self::of(profile, a, b, mask),
            (Dense::F16(a), Dense::F16(b)) => Self::of(profile, a, b, mask),
            (Dense::F32(a), Dense::F32(b)) => Self::of(profile, a, b, mask),
            _ => Ok(Self { sum: f32::NAN, elements: 0 }),
        }
    }

    /// Mean over all elements of batches, added up in f32 as the reference does; NaN without any.
    pub fn mean(batches: &[Self]) -> f64 {
        let total = batches.iter().fold(0.0f32, |total, it| total + it.sum);
        f64::from(total) / batches.iter().map(|it| it.elements).sum::<u64>() as f64
    }
}

/// Second moments of a linear's inputs in f64, upper triangle: the exact loss of any weight without a token.
///
/// f32 would not rank close candidates.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    profile: Profile,
    cols: usize,
    sum: Vec<f64>,
    n_tokens: u64,
}

impl Gram {
    /// Of no token.
    pub fn new(profile: Profile, cols: usize) -> Self {
        Self { profile, cols, sum: vec![0.0; cols * cols], n_tokens: 0 }
    }

    /// Adds tokens `(T, N)`; with a mask (T) only those that count. The bits of the sums do not depend on where tokens of f32 are
    /// cut into calls; those of bf16 and f16 are cut at multiples of [`moments::PANEL_TOKENS`], or with the data.
    ///
    /// # Errors
    /// Values that do not fill rows, a mask of another length.
    pub fn accumulate<E: Element>(&mut self, tokens: &[E], mask: Option<&[bool]>) -> Result<()> {
        let cols = self.cols;
        let n_tokens = tokens.len() / cols.max(1);
        check_len("an activation", tokens.len(), &[n_tokens, cols])?;
        let Some(mask) = mask else {
            self.n_tokens += n_tokens as u64;
            return Ok(moments::accumulate(self.profile, tokens, cols, &mut self.sum)?);
        };
        check_len("a loss mask", mask.len(), &[n_tokens])?;
        let counted = tokens.chunks_exact(cols.max(1)).zip(mask).filter(|it| *it.1);
        let counted: Vec<E> = counted.flat_map(|it| it.0).copied().collect();
        self.n_tokens += (counted.len() / cols.max(1)) as u64;
        Ok(moments::accumulate(self.profile, &counted, cols, &mut self.sum)?)
    }

    /// The moments after the inputs were divided by positive `scales`.
    ///
    /// # Errors
    /// Scales of another number.
    pub fn divide_inputs(&mut self, scales: &[f64]) -> Result<()> {
        check_len("scales", scales.len(), &[self.cols])?;
        for (row, s) in self.sum.chunks_mut(self.cols.max(1)).zip(scales) {
            row.iter_mut().zip(scales).for_each(|(sum, t)| *sum /= s * t);
        }
        Ok(())
    }

    /// Tokens that counted.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// Mean squared difference of the outputs of two weights `(O, N)`: `sum_o d_o G d_o^T / (T O)`.
    ///
    /// # Errors
    /// Weights that do not fill rows.
    pub fn loss(&self, original: &[f32], candidate: &[f32]) -> Result<f64> {
        let cols = self.cols.max(1);
        let rows = original.len() / cols;
        check_len("weight", original.len(), &[rows, cols])?;
        check_len("a candidate's weight", candidate.len(), &[rows, cols])?;
        let mut per_row = vec![0.0f64; rows];
        let pairs = original.chunks(cols * LOSS_ROWS).zip(candidate.chunks(cols * LOSS_ROWS));
        let mut changes = Vec::with_capacity(cols * LOSS_ROWS.min(rows));
        for (losses, (a, b)) in per_row.chunks_mut(LOSS_ROWS).zip(pairs) {
            changes.clear();
            changes.extend(a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
            moments::energy(self.profile, &self.sum, &changes, losses)?;
        }
        Ok(per_row.iter().sum::<f64>() / (self.n_tokens as f64 * rows as f64))
    }
}

/// Rows of a weight whose change is held in f64.
const LOSS_ROWS: usize = 1024;
