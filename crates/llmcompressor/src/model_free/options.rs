//! What `model_free_ptq` is asked to do.

use std::path::PathBuf;

use checkpoint::Existing;
use compressed_tensors::{config::QuantizationConfig, scheme::QuantizationScheme};

use crate::Interrupt;

/// Where the schemes come from.
#[derive(Clone, Debug)]
pub enum SchemeSource {
    /// A preset by name, e.g. `W4A16`; the config group gets the preset's name.
    Preset(String),
    /// A scheme built in code; its group is called `config_group_0`.
    Scheme(Box<QuantizationScheme>),
    /// A whole `quantization_config`.
    Config(Box<QuantizationConfig>),
}

/// Whether modules that engines expect in full precision are left alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DefaultIgnores {
    /// Embeddings, output head, norms, routers, towers and projectors stay as they are.
    #[default]
    On,
    /// Only what `ignore` names stays; norms always do.
    Off,
}

/// What to do with a condition that is likely a mistake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tolerance {
    /// Refuse.
    #[default]
    Refuse,
    /// Go on and say so in the report.
    Allow,
}

/// What `model_free_ptq` is asked to do.
#[derive(Clone, Debug)]
pub struct ModelFreeOptions {
    /// The source: a directory or a hub id.
    pub model: String,
    /// The output directory.
    pub output: PathBuf,
    /// Which schemes.
    pub scheme: SchemeSource,
    /// Replaces the targets of a preset; empty means `Linear`, every matrix.
    pub targets: Vec<String>,
    /// Modules to leave alone, beside the default ones.
    pub ignore: Vec<String>,
    /// Modules to quantize although they are ignored by default.
    pub include: Vec<String>,
    /// Whether the default ignores hold.
    pub default_ignores: DefaultIgnores,
    /// Weight observer that searches scales; `None` is min-max.
    pub observer: Option<String>,
    /// Columns that share a scale, in place of the scheme's.
    pub group_size: Option<usize>,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
    /// Ceiling for buffers.
    pub max_memory_bytes: u64,
    /// Cuts output shards at this size; `None` mirrors the source's shards.
    pub max_shard_bytes: Option<u64>,
    /// What to do with an output that exists.
    pub existing: Existing,
    /// NaN and infinite weights.
    pub non_finite: Tolerance,
    /// Schemes that no engine can run on these shapes.
    pub unservable: Tolerance,
    /// `ignore` patterns that match nothing.
    pub unmatched_ignore: Tolerance,
    /// Whether `.py` files of the source are copied.
    pub remote_code: Tolerance,
    /// A request to stop.
    pub interrupt: Interrupt,
}

impl ModelFreeOptions {
    /// The default ceiling for buffers: 256 MiB.
    pub const DEFAULT_MEMORY_BYTES: u64 = 256 << 20;

    /// Options that compress `model` into `output` with a preset, everything else by default.
    pub fn preset(model: impl Into<String>, output: impl Into<PathBuf>, scheme: impl Into<String>) -> Self {
        Self::new(model, output, SchemeSource::Preset(scheme.into()))
    }

    /// Options that compress `model` into `output` with the given schemes, everything else by default.
    pub fn new(model: impl Into<String>, output: impl Into<PathBuf>, scheme: SchemeSource) -> Self {
        Self {
            model: model.into(),
            output: output.into(),
            scheme,
            targets: Vec::new(),
            ignore: Vec::new(),
            include: Vec::new(),
            default_ignores: DefaultIgnores::On,
            observer: None,
            group_size: None,
            threads: 0,
            max_memory_bytes: Self::DEFAULT_MEMORY_BYTES,
            max_shard_bytes: None,
            existing: Existing::Resume,
            non_finite: Tolerance::Refuse,
            unservable: Tolerance::Refuse,
            unmatched_ignore: Tolerance::Allow,
            remote_code: Tolerance::Allow,
            interrupt: Interrupt::default(),
        }
    }
}
