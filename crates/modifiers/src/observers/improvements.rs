//! Which candidates improved the error of each scale, kept until it is known where the search stops.

/// The improving steps of a run of scales.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Improvements {
    /// Bytes of bits per scale; 0 where the search cannot stop early and the last step is all that counts.
    stride: usize,
    masks: Vec<u8>,
    lasts: Vec<u16>,
}

impl Improvements {
    /// Of a search with this many candidates.
    pub(super) fn new(n_steps: usize, patience: Option<usize>) -> Self {
        let can_stop = patience.is_some_and(|it| it < n_steps);
        Self { stride: if can_stop { n_steps.div_ceil(8) } else { 0 }, masks: Vec::new(), lasts: Vec::new() }
    }

    /// Adds a scale that nothing has improved yet.
    #[inline(always)]
    pub(super) fn push(&mut self) {
        if self.stride == 0 {
            self.lasts.push(0);
        } else {
            self.masks.resize(self.masks.len() + self.stride, 0);
        }
    }

    /// Bytes that a scale takes.
    pub(super) fn scale_bytes(&self) -> usize {
        self.stride.max(size_of::<u16>())
    }

    /// Says that candidate `step` improved the scale added last.
    #[inline(always)]
    pub(super) fn mark(&mut self, step: usize) {
        if self.stride == 0 {
            if let Some(last) = self.lasts.last_mut() {
                *last = step as u16;
            }
        } else if let Some(byte) = (self.masks.len() + step / 8).checked_sub(self.stride) {
            self.masks[byte] |= 1 << (step % 8);
        }
    }

    /// Appends those of the scales that follow.
    pub(super) fn append(&mut self, other: &Self) {
        self.masks.extend_from_slice(&other.masks);
        self.lasts.extend_from_slice(&other.lasts);
    }

    /// The candidates that improved some scale, as bits; empty where the search cannot stop early.
    pub(super) fn any(&self) -> Vec<u8> {
        let mut any = vec![0u8; self.stride];
        for mask in self.masks.chunks(self.stride.max(1)) {
            any.iter_mut().zip(mask).for_each(|(any, mask)| *any |= mask);
        }
        any
    }

    /// The last improving step below `n_evaluated` of each scale, 0 where there is none.
    pub(super) fn lasts(&self, n_evaluated: usize) -> impl Iterator<Item = usize> + '_ {
        let masked = self
            .masks
            .chunks(self.stride.max(1))
            .map(move |mask| (0..n_evaluated).rev().find(|step| mask[step / 8] & (1 << (step % 8)) != 0).unwrap_or(0));
        masked.chain(self.lasts.iter().map(|it| usize::from(*it)))
    }
}

/// Number of candidates that were tried before `patience` of them in a row improved no scale, given those that did.
pub(super) fn n_evaluated(any: &[u8], n_steps: usize, patience: Option<usize>) -> usize {
    let Some(patience) = patience.filter(|_| !any.is_empty()) else { return n_steps };
    let mut stale = 0;
    for step in 0..n_steps {
        stale = if any[step / 8] & (1 << (step % 8)) != 0 { 0 } else { stale + 1 };
        if stale >= patience {
            return step + 1;
        }
    }
    n_steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(n_steps: usize, patience: Option<usize>, scales: &[&[usize]]) -> Improvements {
        let mut found = Improvements::new(n_steps, patience);
        for steps in scales {
            found.push();
            steps.iter().for_each(|step| found.mark(*step));
        }
        found
    }

    #[test]
    fn patience_counts_over_all_scales_and_cuts_what_comes_later() {
        let found = marked(20, Some(3), &[&[0, 2, 9], &[0, 5], &[]]);
        // Steps 6, 7 and 8 improve nothing, so that 9 is not reached.
        assert_eq!(n_evaluated(&found.any(), 20, Some(3)), 9);
        assert_eq!(found.lasts(9).collect::<Vec<_>>(), [2, 5, 0]);
        let mut split = marked(20, Some(3), &[&[0, 2, 9]]);
        split.append(&marked(20, Some(3), &[&[0, 5], &[]]));
        assert_eq!(split, found);
    }

    #[test]
    fn without_patience_the_last_improvement_counts() {
        for patience in [None, Some(20)] {
            let found = marked(20, patience, &[&[0, 2, 19], &[]]);
            assert_eq!(n_evaluated(&found.any(), 20, patience), 20);
            assert_eq!(found.lasts(20).collect::<Vec<_>>(), [19, 0]);
        }
    }
}
