//! Second moments of inputs: one of each distinct input, whatever number of modules are given it.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use kernels::{Mat, Profile};
use lifecycle::{Activation, Result, Sample, Tap, error::Error};

use super::{algorithm::Hessian, correction::CrossMoments};
use crate::{dense::Dense, smoothquant::mappings::parent};

/// Part of the names of experts' linears.
pub(super) const EXPERTS: &str = ".experts.";

/// The distinct inputs of a wave.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    distinct: Vec<Input>,
    /// Position in `distinct` of each module that has seen a token.
    input_of: IndexMap<String, usize>,
    last: Option<Last>,
    /// Buffers for inputs.
    values: Vec<f32>,
}

/// Second moments and the modules that share them; the first one is the one whose input is added.
#[derive(Debug)]
struct Input {
    leader: String,
    first_batch: (usize, usize),
    hessian: Hessian,
    /// How far it has moved.
    moved: CrossMoments,
}

/// The input that was added last, which the modules beside its own are likely to be given too.
#[derive(Debug)]
struct Last {
    input: usize,
    batch: (usize, usize),
    edge: Option<usize>,
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl Inputs {
    /// Number of distinct inputs.
    pub(super) fn n_distinct(&self) -> usize {
        self.distinct.len()
    }

    /// Modules whose input has been seen and not been asked for.
    pub(super) fn modules(&self) -> impl ExactSizeIterator<Item = &String> {
        self.input_of.keys()
    }

    /// Adds what a module was given, unless it is what another has been given.
    ///
    /// # Errors
    /// An input that was another module's and is not any more; a read that fails.
    pub(super) fn accumulate(&mut self, profile: Profile, module: &str, sample: &Sample<'_>) -> Result<()> {
        let shape = sample.value.shape();
        let cols = shape.last().copied().unwrap_or(0);
        let elements: usize = shape.iter().product();
        if elements == 0 {
            return Ok(());
        }
        let batch = (sample.batch_idx, sample.call_idx);
        let is_beside = |last: &Last, distinct: &[Input]| {
            last.batch == batch && last.shape == shape && parent(&distinct[last.input].leader) == parent(module)
        };
        // The same edge of the graph is the same value; where edges are not known, values are compared.
        let by_edge = self
            .last
            .as_ref()
            .filter(|last| is_beside(last, &self.distinct) && sample.edge.is_some() && last.edge == sample.edge);
        let by_edge = by_edge.map(|it| it.input);
        let mut values = std::mem::take(&mut self.values);
        if sample.edge.is_none() {
            values.resize(elements, 0.0);
            sample.value.read_rows(0..elements / cols, &mut values)?;
        }
        let shared = by_edge.or_else(|| {
            let is_unknown = sample.edge.is_none();
            let last =
                self.last.as_ref().filter(|last| is_unknown && last.edge.is_none() && is_beside(last, &self.distinct));
            last.filter(|last| last.values == values).map(|it| it.input)
        });
        let input = match (self.input_of.get(module).copied(), shared) {
            (Some(own), Some(shared)) if own == shared && self.distinct[own].leader != module => return Ok(()),
            (Some(own), _) if self.distinct[own].leader == module => own,
            (Some(own), _) => {
                let message = format!("its input has been that of {} and now differs", self.distinct[own].leader);
                return Err(Error::failed(message));
            }
            (None, Some(shared)) if self.distinct[shared].first_batch == batch => {
                self.input_of.insert(module.to_owned(), shared);
                return Ok(());
            }
            (None, _) => {
                let (leader, hessian, moved) = (module.to_owned(), Hessian::new(cols), CrossMoments::new(cols));
                self.distinct.push(Input { leader, first_batch: batch, hessian, moved });
                self.input_of.insert(module.to_owned(), self.distinct.len() - 1);
                self.distinct.len() - 1
            }
        };
        // A matrix is one sequence; of anything larger, the first dimension counts sequences.
        let n_samples = if shape.len() < 3 { 1 } else { shape[0] as u64 };
        let Input { hessian, moved, .. } = &mut self.distinct[input];
        // Experts are chosen by inputs: other tokens come by where these have moved.
        if let Some(unchanged) = sample.unchanged.filter(|_| !module.contains(EXPERTS)) {
            add_moved(moved, profile, sample.value, unchanged)?;
        }
        add(hessian, profile, sample.value, n_samples)?;
        // What was compared last is the buffer of what comes next.
        let before = self.last.take().map(|it| it.values).unwrap_or_default();
        let (kept, free) = if sample.edge.is_none() { (values, before) } else { (before, values) };
        self.values = free;
        self.last = Some(Last { input, batch, edge: sample.edge, shape: shape.to_vec(), values: kept });
        Ok(())
    }

    /// Divides the inputs of these modules by positive numbers.
    ///
    /// # Errors
    /// Divisors of another number than channels.
    pub(super) fn divide(&mut self, taps: &[Tap], divisors: &[f32]) -> Result<()> {
        let inputs = taps.iter().filter_map(|it| self.input_of.get(&it.module).copied());
        let inputs: BTreeSet<usize> = inputs.collect();
        for idx in inputs {
            let Input { leader, hessian, moved, .. } = &mut self.distinct[idx];
            hessian.divide_inputs(divisors).map_err(|e| e.at(leader.as_str()))?;
            moved.divide_inputs(divisors).map_err(|e| e.at(leader.as_str()))?;
        }
        Ok(())
    }

    /// All inputs of a wave have been seen.
    pub(super) fn finish(&mut self) {
        self.last = None;
        self.values = Vec::new();
    }

    /// Which of the distinct inputs a module was given, which it is asked once.
    pub(super) fn input_of(&mut self, module: &str) -> Option<usize> {
        self.input_of.shift_remove(module)
    }

    /// Takes the moments of a distinct input.
    pub(super) fn take(&mut self, input: usize) -> (Hessian, CrossMoments) {
        let Input { hessian, moved, .. } = &mut self.distinct[input];
        (std::mem::replace(hessian, Hessian::new(0)), std::mem::replace(moved, CrossMoments::new(0)))
    }

    /// Puts them back for modules of a later wave.
    pub(super) fn put_back(&mut self, input: usize, (hessian, moved): (Hessian, CrossMoments)) {
        (self.distinct[input].hessian, self.distinct[input].moved) = (hessian, moved);
    }

    /// Forgets what nobody will ask for.
    pub(super) fn forget(&mut self) {
        if self.input_of.is_empty() {
            self.distinct.clear();
        }
    }
}

/// Adds a value to second moments.
fn add(hessian: &mut Hessian, profile: Profile, value: &dyn Activation, n_samples: u64) -> Result<()> {
    let cols = hessian.cols();
    Ok(match Dense::of(value)? {
        Dense::Bf16(x) => hessian.accumulate(profile, matrix(&x, cols)?, n_samples),
        Dense::F16(x) => hessian.accumulate(profile, matrix(&x, cols)?, n_samples),
        Dense::F32(x) => hessian.accumulate(profile, matrix(&x, cols)?, n_samples),
    }?)
}

/// Adds a value, as it is and as it was, to how far it has moved.
fn add_moved(moved: &mut CrossMoments, profile: Profile, now: &dyn Activation, before: &dyn Activation) -> Result<()> {
    match (Dense::of(now)?, Dense::of(before)?) {
        (Dense::Bf16(x), Dense::Bf16(u)) => moved.accumulate(profile, &x, &u)?,
        (Dense::F16(x), Dense::F16(u)) => moved.accumulate(profile, &x, &u)?,
        (Dense::F32(x), Dense::F32(u)) => moved.accumulate(profile, &x, &u)?,
        _ => return Err(Error::failed("its input has another type than it had before anything was changed")),
    }
    Ok(())
}

fn matrix<T>(data: &[T], cols: usize) -> crate::Result<Mat<'_, T>> {
    Ok(Mat::new(data, data.len() / cols.max(1), cols)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::ops::Range;

    use compressed_tensors::DType;
    use half::bf16;

    use super::*;

    const MODULE: &str = "layers.1.mlp.up_proj";
    const SHAPE: [usize; 2] = [5, 3];

    /// Values of a type that lie in memory, or are only read.
    struct Held {
        dtype: DType,
        values: Vec<f32>,
        bytes: Option<Vec<u8>>,
    }

    impl Held {
        fn new(dtype: DType, values: &[f32], lies_in_memory: bool) -> Self {
            let bytes = |it: &f32| match dtype {
                DType::BF16 => bf16::from_f32(*it).to_le_bytes().to_vec(),
                _ => it.to_le_bytes().to_vec(),
            };
            let bytes = lies_in_memory.then(|| values.iter().flat_map(bytes).collect());
            Self { dtype, values: values.to_vec(), bytes }
        }
    }

    impl Activation for Held {
        fn dtype(&self) -> DType {
            self.dtype
        }

        fn shape(&self) -> &[usize] {
            &SHAPE
        }

        fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
            out.copy_from_slice(&self.values[rows.start * SHAPE[1]..rows.end * SHAPE[1]]);
            Ok(())
        }

        fn as_bytes(&self) -> Option<&[u8]> {
            self.bytes.as_deref()
        }
    }

    #[test]
    fn what_was_less_what_is_goes_into_the_moments_of_moved_inputs_in_every_type() {
        // Sixteenths of small numbers, which bf16 holds.
        let x: Vec<f32> = (0..15).map(|i| (i * 7 % 11) as f32 / 16.0 - 0.25).collect();
        let u: Vec<f32> = x.iter().enumerate().map(|(i, it)| it + (i * 5 % 3) as f32 / 16.0).collect();
        let profile = Profile::PORTABLE;
        let mut want = CrossMoments::new(SHAPE[1]);
        want.accumulate(profile, &x, &u).unwrap();
        assert!(want != CrossMoments::new(SHAPE[1]));
        for (dtype, lies_in_memory) in
            [(DType::F32, true), (DType::F32, false), (DType::BF16, true), (DType::BF16, false)]
        {
            let [now, before] = [&x, &u].map(|it| Held::new(dtype, it, lies_in_memory));
            let add = |module: &str, unchanged: &dyn Activation| {
                let unchanged = Some(unchanged);
                let mut inputs = Inputs::default();
                let sample = Sample { batch_idx: 0, call_idx: 0, edge: Some(1), value: &now, unchanged, mask: None };
                inputs.accumulate(profile, module, &sample).map(|()| inputs.take(0).1)
            };
            assert!(add(MODULE, &before).unwrap() == want, "{dtype:?} {lies_in_memory}");
            // Experts are given other tokens where their router's input has moved.
            assert!(add("layers.1.mlp.experts.0.up_proj", &before).unwrap() == CrossMoments::new(SHAPE[1]));
            let other = Held::new(if dtype == DType::F32 { DType::BF16 } else { DType::F32 }, &u, lies_in_memory);
            assert!(add(MODULE, &other).unwrap_err().to_string().contains("another type"));
        }
    }
}
