//! The contract of an observer: values in, ranges and scales out.

use compressed_tensors::{
    ErrorKind, Result,
    args::QuantizationArgs,
    numbers::Float,
    quantize::{Qparams, ScaleMap},
};
use serde_json::Value;

/// Which tensor of a module is observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The weight `(O, N)`.
    Weight,
    /// Inputs, features last.
    Input,
    /// Outputs, features last.
    Output,
    /// Queries `(B, H, T, D)`.
    Query,
    /// Keys `(B, H, T, D)`.
    Key,
    /// Values `(B, H, T, D)`.
    Value,
}

impl Role {
    /// The reference's base name.
    pub fn base_name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Input => "input",
            Self::Output => "output",
            Self::Query => "q",
            Self::Key => "k",
            Self::Value => "v",
        }
    }

    pub(super) fn scale_map(self, args: &QuantizationArgs, shape: &[usize]) -> Result<ScaleMap> {
        match self {
            Self::Weight => ScaleMap::weight(args, shape),
            _ => ScaleMap::calibrated(args, shape),
        }
    }
}

/// A batch of values.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Row-major, each a value of `float`.
    pub values: &'a [f32],
    /// The type they have in the model.
    pub float: Float,
    /// Extent of each dimension.
    pub shape: &'a [usize],
}

/// How ranks join a statistic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// The mean over ranks, rounded to the observed type.
    Average,
    /// The smallest.
    Min,
    /// The largest.
    Max,
    /// The sum over ranks.
    Sum,
}

/// One statistic of one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Partial {
    /// Its name.
    pub name: &'static str,
    /// How ranks join it.
    pub reduction: Reduction,
    /// Its values.
    pub values: Vec<f64>,
}

impl Partial {
    /// The same statistic of all ranks; `None` where there is no rank or their sizes differ.
    pub fn reduce(ranks: &[Self]) -> Option<Self> {
        let (first, rest) = ranks.split_first()?;
        let mut joined = first.clone();
        for rank in rest {
            if rank.name != joined.name || rank.values.len() != joined.values.len() {
                return None;
            }
            for (seen, new) in joined.values.iter_mut().zip(&rank.values) {
                *seen = match joined.reduction {
                    Reduction::Min if *new < *seen || new.is_nan() => *new,
                    Reduction::Max if *new > *seen || new.is_nan() => *new,
                    Reduction::Min | Reduction::Max => *seen,
                    Reduction::Average | Reduction::Sum => *seen + *new,
                };
            }
        }
        if joined.reduction == Reduction::Average {
            joined.values.iter_mut().for_each(|it| *it /= ranks.len() as f64);
        }
        Some(joined)
    }
}

/// Watches one tensor and says how to quantize it.
///
/// Batches are folded in the order they are observed.
pub trait Observer: Send {
    /// Name in the registry.
    fn name(&self) -> &'static str;

    /// The arguments of the tensor.
    fn args(&self) -> &QuantizationArgs;

    /// Takes a batch. Nothing happens for an empty one, nor for a weight that was observed before.
    ///
    /// # Errors
    /// A shape or strategy without scales, or another number of scales than in the first batch.
    fn observe(&mut self, observed: &Observed<'_>) -> Result<()>;

    /// Whether it takes the inputs of the module whose weight it observes.
    fn needs_inputs(&self) -> bool {
        false
    }

    /// Takes a batch of such inputs, features last.
    ///
    /// # Errors
    /// Rows of another length than before.
    fn observe_inputs(&mut self, _inputs: &Observed<'_>) -> Result<()> {
        Ok(())
    }

    /// Smallest and largest value per scale; empty before the first batch.
    fn ranges(&self) -> &[(f32, f32)];

    /// Shape of the scale tensor; empty before the first batch.
    fn scale_shape(&self) -> &[usize];

    /// Largest magnitude, which fused weights share; `None` before the first batch.
    fn amax(&self) -> Option<f32>;

    /// Scales and zero points of what was seen. `amax` is that of fused weights together, its own where absent.
    ///
    /// # Errors
    /// [`ErrorKind::MissingTensor`] before the first batch; arguments without arithmetic.
    fn qparams(&self, amax: Option<f32>) -> Result<Qparams>;

    /// Forgets all statistics, which are not needed once scales were asked for.
    fn clear(&mut self);

    /// What ranks join before scales are asked for, or before a weight is observed; nothing where each rank's own count.
    fn partials(&self) -> Vec<Partial>;

    /// Takes up joined statistics.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] for other statistics or sizes than [`partials`](Self::partials) has.
    fn set_partials(&mut self, partials: &[Partial]) -> Result<()>;

    /// All statistics; numbers are kept bit by bit.
    fn snapshot(&self) -> Value;

    /// Takes up a [`snapshot`](Self::snapshot).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] for a snapshot of another observer, and for what is none.
    fn restore(&mut self, snapshot: &Value) -> Result<()>;

    /// What the user should know of the last observation.
    fn warning(&self) -> Option<&str> {
        None
    }
}

pub(super) fn nothing_seen(name: &str) -> compressed_tensors::Error {
    ErrorKind::MissingTensor { tensor: format!("statistics of observer {name}") }.into()
}
