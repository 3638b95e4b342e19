//! What a oneshot run is asked to do.

use std::path::PathBuf;

use calibration::arguments::DatasetArguments;
use checkpoint::Existing;

pub use pipelines::Partition;

use crate::{Interrupt, eval::Compute, model_free::Tolerance};

/// Where the modifiers of a run come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecipeSource {
    /// A recipe file.
    File(PathBuf),
    /// A recipe as text.
    Text(String),
    /// A preset scheme for all linears but the output head, rounded to nearest.
    Scheme(String),
}

/// What `oneshot` is asked to do.
#[derive(Clone, Debug)]
pub struct OneshotOptions {
    /// The source: a directory or a hub id.
    pub model: String,
    /// The output directory.
    pub output: PathBuf,
    /// Which modifiers.
    pub recipe: RecipeSource,
    /// Which data calibrates, and how it becomes batches.
    pub data: DatasetArguments,
    /// The type to compute in.
    pub compute: Compute,
    /// Where waves begin.
    pub partition: Partition,
    /// Name of the pipeline; none for what the modifiers need.
    pub pipeline: Option<String>,
    /// Batches of equal shape that run together; nothing that is written depends on it.
    pub batch_window: usize,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
    /// Ceiling for weights, statistics and activations; `None` sets none.
    pub max_memory_bytes: Option<u64>,
    /// Cuts output shards at this size.
    pub max_shard_bytes: u64,
    /// What to do with an output that exists.
    pub existing: Existing,
    /// Whether `.py` files of the source are copied.
    pub remote_code: Tolerance,
    /// A request to stop.
    pub interrupt: Interrupt,
}

impl OneshotOptions {
    /// The size at which a new shard begins by default: 5 GB.
    pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

    /// Options that compress `model` into `output` by a recipe, everything else by default.
    pub fn new(model: impl Into<String>, output: impl Into<PathBuf>, recipe: RecipeSource) -> Self {
        Self {
            model: model.into(),
            output: output.into(),
            recipe,
            data: DatasetArguments::default(),
            compute: Compute::Auto,
            partition: Partition::default(),
            pipeline: None,
            batch_window: 1,
            threads: 0,
            max_memory_bytes: None,
            max_shard_bytes: Self::DEFAULT_SHARD_BYTES,
            existing: Existing::Resume,
            remote_code: Tolerance::Allow,
            interrupt: Interrupt::default(),
        }
    }
}
