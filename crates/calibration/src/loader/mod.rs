//! From arguments to batches: which data, which rows of it, and how they become tokens.

mod data;
mod locate;
mod plan;
mod processor;

pub use data::{Batches, CalibrationData};
pub use processor::Preprocess;

use std::{path::PathBuf, sync::Arc};

use crate::{
    Result,
    batches::{Batch, Sample},
    tokenizer::Tokenizer,
};

/// What the caller knows beside the arguments.
#[derive(Clone)]
pub struct DataSettings {
    /// The model's tokenizer; without one, data must hold token ids.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// A hub cache that may hold copies of registered data sets.
    pub hub_cache: Option<PathBuf>,
    /// What the model can look up and attend to; samples beyond it are refused.
    pub limits: ModelLimits,
    /// This process among several that share the samples.
    pub rank: usize,
    /// How many processes share the samples.
    pub world: usize,
    /// Columns added to each row, instead of the data set's own preprocessing.
    pub preprocess: Option<Preprocess>,
    /// Stacks samples, instead of `data_collator`.
    pub collate: Option<CollateFunction>,
}

/// Stacks samples into a batch.
pub type CollateFunction = Arc<dyn Fn(Vec<Sample>) -> Result<Batch> + Send + Sync>;

/// What a model can look up and attend to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelLimits {
    /// Rows of the embedding table.
    pub vocabulary_rows: Option<usize>,
    /// Positions.
    pub max_positions: Option<usize>,
}

impl Default for DataSettings {
    fn default() -> Self {
        Self {
            tokenizer: None,
            hub_cache: None,
            limits: ModelLimits::default(),
            rank: 0,
            world: 1,
            preprocess: None,
            collate: None,
        }
    }
}
