//! What a oneshot run is asked to do.

use std::path::PathBuf;

use calibration::arguments::DatasetArguments;
use checkpoint::Existing;
use kernels::Isa;

pub use pipelines::Partition;

use crate::{Interrupt, eval::Compute, model_free::Tolerance};

/// Where the modifiers of a run come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecipeSource {
    /// A recipe file.
    File(PathBuf),
    /// A recipe as text.
    Text(String),
    /// A preset scheme for all linears but the output head, by our method for it.
    Scheme(String),
}

/// On which tokens experts are calibrated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpertCalibration {
    /// Every expert on all tokens, whatever its router chose.
    #[default]
    All,
    /// Each on those that its router chose; without any, it is rounded to nearest.
    Routed,
    /// Each on those that its router chose; with fewer than a least number, it is rounded to nearest.
    RoutedThenFallback {
        /// The least number.
        min_tokens: u64,
    },
}

impl ExpertCalibration {
    /// The least number of tokens by default.
    pub const DEFAULT_MIN_TOKENS: u64 = 64;

    /// Tokens without which an expert's statistics are not used.
    pub(super) fn min_tokens(self) -> u64 {
        match self {
            Self::RoutedThenFallback { min_tokens } => min_tokens,
            Self::All | Self::Routed => 0,
        }
    }

    /// The policy in words, as fingerprints and reports have it.
    pub(super) fn text(self) -> String {
        match self {
            Self::All => "all".to_owned(),
            Self::Routed => "routed".to_owned(),
            Self::RoutedThenFallback { min_tokens } => format!("routed_then_fallback below {min_tokens} tokens"),
        }
    }
}

/// Which modules a run takes up.
///
/// Patterns are those of a recipe's targets: names, classes, or regular expressions behind `re:`. A module is chosen that
/// matches one, or lies in a module that does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// All that the recipe names.
    #[default]
    All,
    /// Of those, the chosen ones; all others stay as the source has them.
    Only {
        /// What chooses.
        patterns: Vec<String>,
    },
    /// Of those, the chosen ones, from the source's weights; all others are taken over from a finished output of the same source.
    Redo {
        /// What chooses.
        patterns: Vec<String>,
        /// The output's directory.
        from: PathBuf,
    },
}

/// What happens to an output that is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FinalCheck {
    /// It is verified against its source.
    #[default]
    Verify,
    /// Nothing.
    Skip,
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
    /// Which modules of those that the recipe names.
    pub scope: Scope,
    /// Which data calibrates, and how it becomes batches.
    pub data: DatasetArguments,
    /// On which tokens experts are calibrated; `moe_calibrate_all_experts: false` of the data's arguments says `Routed` too.
    pub experts: ExpertCalibration,
    /// The type to compute in.
    pub compute: Compute,
    /// The instruction set that computes; none for the fastest of this processor. [`Isa::Portable`] gives the same bytes on all.
    pub profile: Option<Isa>,
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
    /// A folder for the numbers of the run: JSON lines, CSV and TensorBoard events, wave by wave and module by module.
    pub log_dir: Option<PathBuf>,
    /// What to do with an output that exists.
    pub existing: Existing,
    /// Whether `.py` files of the source are copied.
    pub remote_code: Tolerance,
    /// What happens to the output in the end.
    pub final_check: FinalCheck,
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
            scope: Scope::default(),
            data: DatasetArguments::default(),
            experts: ExpertCalibration::default(),
            compute: Compute::Auto,
            profile: None,
            partition: Partition::default(),
            pipeline: None,
            batch_window: 1,
            threads: 0,
            max_memory_bytes: None,
            max_shard_bytes: Self::DEFAULT_SHARD_BYTES,
            log_dir: None,
            existing: Existing::Resume,
            remote_code: Tolerance::Allow,
            final_check: FinalCheck::default(),
            interrupt: Interrupt::default(),
        }
    }
    /// On which tokens experts are calibrated, whichever argument says so.
    pub(super) fn expert_calibration(&self) -> ExpertCalibration {
        match self.experts {
            ExpertCalibration::All if !self.data.moe_calibrate_all_experts => ExpertCalibration::Routed,
            other => other,
        }
    }
}
