//! Observers of the min-max family: running ranges of a tensor that is seen in batches.

use crate::{
    ErrorKind, Result,
    args::{QuantizationArgs, QuantizationStrategy},
    numbers::Float,
    quantize::{Qparams, ScaleMap},
    scales::{Arithmetic, global_scale, propagating_max, propagating_min},
};

/// How a batch changes what was seen before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Running {
    /// The last batch alone counts (`memoryless_minmax`).
    LastBatch,
    /// All batches count alike (`static_minmax`).
    All,
    /// A moving average with this weight of the new batch (`minmax`); 1 means the last batch alone.
    Average(f32),
}

impl Running {
    /// Reads an observer name; `averaging_constant` is taken from the arguments' `observer_kwargs`, else 0.01.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownName`] for a name outside the family, [`ErrorKind::InvalidField`] for a constant that
    /// is no number.
    pub fn named(name: &str, args: &QuantizationArgs) -> Result<Self> {
        match name {
            "memoryless_minmax" => Ok(Self::LastBatch),
            "static_minmax" => Ok(Self::All),
            "minmax" => match args.observer_kwargs.get("averaging_constant") {
                None => Ok(Self::Average(0.01)),
                Some(value) => value.as_f64().map(|it| Self::Average(it as f32)).ok_or_else(|| {
                    ErrorKind::InvalidField {
                        field: "averaging_constant".to_owned(),
                        found: value.to_string(),
                        expected: "a number".to_owned(),
                    }
                    .into()
                }),
            },
            _ => {
                let known = ["memoryless_minmax", "static_minmax", "minmax"].map(str::to_owned).to_vec();
                Err(ErrorKind::UnknownName { what: "min-max observer", name: name.to_owned(), known }.into())
            }
        }
    }
}

/// Running ranges of one tensor, one per scale; a global scale comes from the largest of them.
#[derive(Clone, Debug, PartialEq)]
pub struct MinMaxObserver {
    running: Running,
    float: Float,
    ranges: Vec<(f32, f32)>,
    scale_shape: Vec<usize>,
}

impl MinMaxObserver {
    /// An observer of values of type `float` that has seen nothing.
    pub fn new(running: Running, float: Float) -> Self {
        Self { running, float, ranges: Vec::new(), scale_shape: Vec::new() }
    }

    /// Takes a batch whose elements use the scales of `map`.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] where the number of scales changes between batches.
    pub fn observe(&mut self, values: &[f32], map: &ScaleMap) -> Result<()> {
        self.observe_ranges(map.ranges(values), map.scale_shape())
    }

    /// Takes the ranges of a batch that were found in another way, one per element of `scale_shape`.
    ///
    /// # Errors
    /// As [`observe`](Self::observe).
    pub fn observe_ranges(&mut self, ranges: Vec<(f32, f32)>, scale_shape: &[usize]) -> Result<()> {
        if !self.ranges.is_empty() && self.ranges.len() != ranges.len() {
            let expected = format!("{:?} as in the first batch", self.scale_shape);
            let found = scale_shape.to_vec();
            return Err(ErrorKind::Shape { tensor: "scale".to_owned(), found, expected }.into());
        }
        self.scale_shape = scale_shape.to_vec();
        self.ranges = match self.ranges.is_empty() {
            true => ranges,
            false => self.ranges.iter().zip(ranges).map(|(seen, new)| self.join(*seen, new)).collect(),
        };
        Ok(())
    }

    /// Smallest and largest value per scale; empty before the first batch.
    pub fn ranges(&self) -> &[(f32, f32)] {
        &self.ranges
    }

    /// Shape of the scale tensor; empty before the first batch.
    pub fn scale_shape(&self) -> &[usize] {
        &self.scale_shape
    }

    /// Largest magnitude in the running ranges, which is what fused tensors share; `None` before the first batch.
    pub fn amax(&self) -> Option<f32> {
        self.ranges.iter().map(|(min, max)| propagating_max(*max, -*min)).reduce(propagating_max)
    }

    /// The tensor's own global scale; `None` before the first batch and for other strategies than tensor_group.
    pub fn global_scale(&self, args: &QuantizationArgs) -> Option<f32> {
        let amax = self.amax().filter(|_| args.strategy == QuantizationStrategy::TensorGroup)?;
        Some(global_scale(amax, self.float))
    }

    /// Scales and zero points of what was seen, in the type they are computed in.
    ///
    /// `shared` is a global scale found over fused tensors; without it the tensor's own is used.
    ///
    /// # Errors
    /// As [`Arithmetic::of`].
    pub fn qparams(&self, args: &QuantizationArgs, shared: Option<f32>) -> Result<Qparams> {
        let global_scale = self.global_scale(args).map(|own| shared.unwrap_or(own));
        Ok(Qparams::from_ranges(&Arithmetic::of(args)?, &self.ranges, self.float, global_scale))
    }

    fn join(&self, seen: (f32, f32), new: (f32, f32)) -> (f32, f32) {
        match self.running {
            Running::LastBatch => new,
            Running::Average(1.0) => new,
            Running::All => (propagating_min(seen.0, new.0), propagating_max(seen.1, new.1)),
            Running::Average(constant) => {
                let average = |seen: f32, new: f32| {
                    // Each product and the sum are rounded to the observed type.
                    let (seen, new) = (self.float.round(seen * (1.0 - constant)), self.float.round(new * constant));
                    self.float.round(seen + new)
                };
                (average(seen.0, new.0), average(seen.1, new.1))
            }
        }
    }
}
