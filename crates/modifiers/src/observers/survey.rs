//! What must be known of a whole weight before the ranges of its slabs are chosen: a few bytes, however large it is.
//!
//! A search stops when a run of candidates improves no scale of the whole weight, so that no slab is final by itself.
//! Slabs may be kept until the survey is complete, or scanned again: both give the same ranges.

use compressed_tensors::args::QuantizationStrategy;

use super::{
    exact_sum::ExactSum,
    improvements::n_evaluated,
    search::Range,
    searched::SearchedRanges,
    weight_search::{SlabSearch, WeightSearch},
};

/// What slabs say about the whole weight; joined in any order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// Candidates that improved some scale, as bits.
    any: Vec<u8>,
    /// Errors of each candidate, where one scale holds for the whole weight.
    sums: Vec<ExactSum>,
}

impl Survey {
    /// What both say.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        match self.any.is_empty() {
            true => self.any = other.any,
            false => self.any.iter_mut().zip(&other.any).for_each(|(any, new)| *any |= new),
        }
        match self.sums.is_empty() {
            true => self.sums = other.sums,
            false => self.sums.iter_mut().zip(&other.sums).for_each(|(sum, new)| sum.merge(new)),
        }
        self
    }
}

/// Which candidates of a search count.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    n_evaluated: usize,
    /// The chosen one, where one scale holds for the whole weight.
    step: Option<usize>,
}

impl SlabSearch {
    /// Bytes that it takes while it is kept.
    pub fn n_bytes(&self) -> u64 {
        let ranges = self.ranges.len() * (size_of::<Range>() + self.found.scale_bytes());
        (size_of::<Self>() + ranges + self.sums.len() * size_of::<ExactSum>()) as u64
    }
}

impl WeightSearch {
    /// Whether slabs have to be surveyed before any of them is resolved.
    pub fn needs_survey(&self) -> bool {
        self.grid.is_some() && (self.is_tensor() || !self.improvements().any().is_empty())
    }

    /// Bytes that a slab keeps for each row, in a [`SlabSearch`] and in the scales that are made of it.
    pub fn row_bytes(&self) -> usize {
        let n_scales = if self.is_tensor() { 1 } else { self.scale_shape.get(1).copied().unwrap_or(1) };
        // A range, a scale and a zero point are two numbers of 4 bytes, and two.
        n_scales.saturating_mul(16 + self.improvements().scale_bytes()).div_ceil(self.tile[0].max(1))
    }

    /// What a slab says about the whole weight.
    pub fn survey(&self, slab: &SlabSearch) -> Survey {
        Survey { any: slab.found.any(), sums: slab.sums.clone() }
    }

    /// Where the search stops, from the surveys of all slabs; the empty survey where none is needed.
    pub fn outcome(&self, survey: &Survey) -> Outcome {
        let Some(grid) = &self.grid else { return Outcome { n_evaluated: 0, step: None } };
        let n_steps = grid.factors.len();
        if !self.is_tensor() {
            return Outcome { n_evaluated: n_evaluated(&survey.any, n_steps, grid.patience), step: None };
        }
        let mut found = self.improvements();
        found.push();
        let mut best = grid.worst();
        for (step, sum) in survey.sums.iter().enumerate() {
            let error = grid.error(sum.value());
            if error < best {
                best = error;
                found.mark(step);
            }
        }
        let n_evaluated = n_evaluated(&found.any(), n_steps, grid.patience);
        let step = found.lasts(n_evaluated).next();
        Outcome { n_evaluated, step }
    }

    /// The range of a scale that holds for the whole weight; `None` where there are more scales, or before
    /// [`with_range`](Self::with_range).
    pub fn resolve_whole(&self, outcome: &Outcome) -> Option<SearchedRanges> {
        let whole = self.whole.filter(|_| self.is_tensor())?;
        let (found, sums) = (self.improvements(), Vec::new());
        Some(self.resolve_slab(SlabSearch { first_row: 0, n_rows: 0, ranges: vec![whole], found, sums }, outcome))
    }

    /// Chooses the ranges of one slab. Rows of what is found count from the slab's first.
    ///
    /// For a scale that holds for the whole weight there is [`resolve_whole`](Self::resolve_whole).
    pub fn resolve_slab(&self, slab: SlabSearch, outcome: &Outcome) -> SearchedRanges {
        let mut ranges = slab.ranges;
        if let Some(grid) = &self.grid {
            match outcome.step {
                Some(step) => ranges.iter_mut().for_each(|range| *range = grid.candidate(*range, step)),
                None => {
                    for (range, step) in ranges.iter_mut().zip(slab.found.lasts(outcome.n_evaluated)) {
                        *range = grid.candidate(*range, step);
                    }
                }
            }
        }
        let mut scale_shape = self.scale_shape.clone();
        if let (false, Some(rows)) = (self.is_tensor(), scale_shape.first_mut()) {
            *rows = ranges.len() / self.scale_shape.get(1).copied().unwrap_or(1).max(1);
        }
        SearchedRanges {
            arithmetic: self.arithmetic,
            float: self.float,
            strategy: self.args.strategy,
            scale_shape,
            tile_rows: self.tile[0],
            ranges,
            n_evaluated: outcome.n_evaluated,
        }
    }

    pub(super) fn is_tensor(&self) -> bool {
        self.args.strategy == QuantizationStrategy::Tensor
    }
}
