//! Scales of one weight by an observer that searches, from slabs of rows.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use compressed_tensors::{DType, args::QuantizationArgs, weight_compressor::MinMax};
use modifiers::observers::{
    Observation, Outcome, SearchResult, SearchedRanges, SlabSearch, Survey, WeightSearch, weight_observer,
};

use crate::{error::Result, slabs::Spare};

/// The search of a weight, where its observer has one; min-max is what the compressor does by itself.
///
/// # Errors
/// Those of the observer's name and kwargs, and of shapes that it cannot search.
pub(super) fn search_of(
    args: &QuantizationArgs,
    dtype: DType,
    shape: [usize; 2],
) -> compressed_tensors::Result<Option<WeightSearch>> {
    let searches = matches!(weight_observer(args)?.entry.observation, Observation::Search(_));
    (searches && !shape.contains(&0)).then(|| WeightSearch::of(args, dtype, shape)).transpose()
}

/// A pass over the slabs of a weight: calls `work` with the first row and the bytes of each, in any order, in parallel.
pub(super) trait Pass: Fn(&(dyn Fn(usize, &[u8]) -> Result<()> + Sync)) -> Result<()> {}

impl<T: Fn(&(dyn Fn(usize, &[u8]) -> Result<()> + Sync)) -> Result<()>> Pass for T {}

/// A search that knows all of its weight.
pub(super) struct Searched<'a> {
    search: WeightSearch,
    outcome: Outcome,
    /// Slabs that need not be scanned again, by first row.
    kept: Mutex<HashMap<usize, (u64, SlabSearch)>>,
    spare: &'a Spare,
    /// The range of all scales together, where a global scale is made of it.
    range: Option<MinMax>,
}

impl<'a> Searched<'a> {
    /// Reads the weight as often as its scales need: once for a range or the survey that they share, once more for
    /// both. What is found in a slab is kept as long as there is `spare` memory.
    ///
    /// # Errors
    /// Those of the pass.
    pub(super) fn new(
        search: &WeightSearch,
        range: Option<&MinMax>,
        shares_a_scale: bool,
        spare: &'a Spare,
        pass: impl Pass,
    ) -> Result<Self> {
        let search = range.map_or_else(|| search.clone(), |range| search.clone().with_range(range));
        let outcome = search.outcome(&Survey::default());
        let mut searched = Self { search, outcome, kept: Mutex::default(), spare, range: None };
        if searched.search.needs_survey() {
            let survey = Mutex::new(Survey::default());
            pass(&|first_row, slab| {
                let found = searched.scan(first_row, slab)?;
                let new = searched.search.survey(&found);
                searched.keep(first_row, found);
                let mut joined = survey.lock().unwrap_or_else(PoisonError::into_inner);
                *joined = std::mem::take(&mut *joined).merge(new);
                Ok(())
            })?;
            let survey = survey.into_inner().unwrap_or_else(PoisonError::into_inner);
            searched.outcome = searched.search.outcome(&survey);
        }
        if shares_a_scale {
            let range = Mutex::new(MinMax::EMPTY);
            pass(&|first_row, slab| {
                let found = searched.found(first_row, slab)?;
                let new = searched.search.resolve_slab(found.clone(), &searched.outcome).range();
                searched.keep(first_row, found);
                let mut joined = range.lock().unwrap_or_else(PoisonError::into_inner);
                *joined = joined.merge(new);
                Ok(())
            })?;
            searched.range = Some(range.into_inner().unwrap_or_else(PoisonError::into_inner));
        }
        Ok(searched)
    }

    /// The range of which the global scale is made.
    pub(super) fn range(&self) -> Option<MinMax> {
        self.range
    }

    /// The one scale of a weight that has no more.
    pub(super) fn whole(&self) -> Option<SearchResult> {
        self.search.resolve_whole(&self.outcome).map(|it| it.qparams(None))
    }

    /// Scales and zero points of a slab, counted from its first row.
    ///
    /// # Errors
    /// A slab that is cut at a wrong row.
    pub(super) fn slab(&self, first_row: usize, slab: &[u8], global_scale: Option<f32>) -> Result<SearchResult> {
        let ranges: SearchedRanges = self.search.resolve_slab(self.found(first_row, slab)?, &self.outcome);
        Ok(ranges.qparams(global_scale))
    }

    fn scan(&self, first_row: usize, slab: &[u8]) -> Result<SlabSearch> {
        use crate::error::InContext;
        self.search.scan_rows(first_row, slab).context("observer")
    }

    /// What was kept of a slab, else what another scan finds.
    fn found(&self, first_row: usize, slab: &[u8]) -> Result<SlabSearch> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).remove(&first_row);
        match kept {
            Some((bytes, found)) => {
                self.spare.give_back(bytes);
                Ok(found)
            }
            None => self.scan(first_row, slab),
        }
    }

    fn keep(&self, first_row: usize, found: SlabSearch) {
        let bytes = found.n_bytes();
        if self.spare.take(bytes) {
            self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(first_row, (bytes, found));
        }
    }
}

impl Drop for Searched<'_> {
    fn drop(&mut self) {
        let kept = self.kept.get_mut().unwrap_or_else(PoisonError::into_inner);
        kept.values().for_each(|it| self.spare.give_back(it.0));
    }
}

#[cfg(test)]
mod tests {
    use compressed_tensors::args::{ArgsBuilder, QuantizationStrategy};

    use super::*;

    const ROWS: usize = 24;
    const COLS: usize = 64;

    fn weight() -> Vec<u8> {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..ROWS * COLS).flat_map(|_| (next() * next() * next() * 8.0).to_le_bytes()).collect()
    }

    /// Slabs of `step` rows, the last first.
    fn pass(weight: &[u8], step: usize) -> impl Pass + '_ {
        move |work| {
            let slabs: Vec<_> = weight.chunks(step * COLS * 4).enumerate().collect();
            slabs.into_iter().rev().try_for_each(|(idx, slab)| work(idx * step, slab))
        }
    }

    fn args(strategy: QuantizationStrategy) -> QuantizationArgs {
        use QuantizationStrategy as S;
        let args = ArgsBuilder::int(4).strategy(strategy).observer("mse");
        let args = match strategy {
            S::Group => args.group_size(16).asymmetric(),
            S::Block => args.block(5, 24),
            S::TensorGroup => ArgsBuilder::float(4)
                .strategy(strategy)
                .group_size(16)
                .scale_dtype(DType::F8E4M3)
                .zp_dtype(DType::F8E4M3)
                .observer("memoryless_mse"),
            _ => args,
        };
        args.build().unwrap()
    }

    #[test]
    fn slabs_have_the_scales_of_the_whole_weight_with_and_without_spare_memory() {
        use QuantizationStrategy as S;
        let weight = weight();
        let values: Vec<f32> = weight.as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it)).collect();
        let range = values.iter().fold(MinMax::EMPTY, |all, x| all.merge(MinMax { min: *x, max: *x, ..MinMax::EMPTY }));
        for strategy in [S::Tensor, S::Channel, S::Group, S::Block, S::TensorGroup] {
            let args = args(strategy);
            let search = search_of(&args, DType::F32, [ROWS, COLS]).unwrap().unwrap();
            let whole = search.clone().with_range(&range);
            let whole = whole.resolve([whole.scan_rows(0, &weight).unwrap()]).unwrap();
            assert!(
                whole.ranges()
                    != WeightSearch::new("minmax", &Default::default(), &args, DType::F32, [ROWS, COLS])
                        .and_then(|it| it.resolve([it.scan_rows(0, &weight)?]))
                        .unwrap()
                        .ranges(),
                "{strategy:?}"
            );
            let shares = strategy == S::TensorGroup;
            let global = shares.then_some(3.0);
            let expected = whole.clone().qparams(global);
            for (step, spare_bytes) in [(24, 0), (5, 0), (10, 500), (5, u64::MAX / 2)] {
                let spare = Spare::of(spare_bytes);
                let is_whole = strategy == S::Tensor;
                let found =
                    Searched::new(&search, is_whole.then_some(&range), shares, &spare, pass(&weight, step)).unwrap();
                assert_eq!(found.range(), shares.then(|| whole.range()));
                assert_eq!(found.whole().is_some(), is_whole);
                for (idx, slab) in weight.chunks(step * COLS * 4).enumerate() {
                    let (first_row, n_rows) = (idx * step, slab.len() / COLS / 4);
                    let own = found.whole().unwrap_or_else(|| found.slab(first_row, slab, global).unwrap());
                    let (own, expected) = (own.given(0, n_rows), expected.given(first_row, n_rows));
                    assert_eq!(own.scales, expected.scales, "{strategy:?} {step} {spare_bytes}");
                    assert_eq!(own.zero_points, expected.zero_points);
                }
                drop(found);
                assert!(spare.take(spare_bytes), "all that was taken is given back");
            }
        }
    }

    #[test]
    fn min_max_is_no_search() {
        for name in [None, Some("minmax"), Some("static_minmax"), Some("memoryless_minmax")] {
            let args = QuantizationArgs { observer: name.map(str::to_owned), ..args(QuantizationStrategy::Group) };
            assert!(search_of(&args, DType::F32, [ROWS, COLS]).unwrap().is_none());
        }
        let empty = search_of(&args(QuantizationStrategy::Group), DType::F32, [0, COLS]);
        assert!(empty.unwrap().is_none());
    }
}
