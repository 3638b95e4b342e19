//! The data set arguments, their defaults and what they refuse.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{ErrorKind, Note, Result};

/// Functions that the reference wraps instead of tracing, by name.
pub const TRACING_IGNORE: [&str; 13] = [
    "_update_causal_mask",
    "create_causal_mask",
    "_update_mamba_mask",
    "make_causal_mask",
    "get_causal_mask",
    "mask_interface",
    "mask_function",
    "_prepare_4d_causal_attention_mask",
    "_prepare_fsmt_decoder_inputs",
    "_prepare_4d_causal_attention_mask_with_cache_position",
    "_update_linear_attn_mask",
    "project_per_layer_inputs",
    "_apply_attn_res",
];

const PIPELINES: [&str; 5] = ["basic", "datafree", "sequential", "layer_sequential", "independent"];
const COLLATORS: [&str; 2] = ["truncation", "padding"];
/// The seed of the shuffle unless one is given.
const DEFAULT_SEED: u64 = 42;

/// Which data calibrates, how it becomes batches, and how the pipeline handles them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatasetArguments {
    /// DVC repository for `dvc://` paths; refused when data is opened.
    pub dvc_data_repository: Option<String>,
    /// File or folder of a custom data set, or the local copy of a registered one.
    pub dataset_path: Option<String>,
    /// Column that holds the text.
    pub text_column: String,
    /// No effect.
    pub remove_columns: Option<Value>,
    /// Name of a registered data set whose preprocessing is applied, or a template over the row's columns.
    pub preprocessing_func: Option<String>,
    /// Rows of a batch.
    pub batch_size: usize,
    /// `truncation` or `padding`.
    pub data_collator: String,
    /// Name of a registered data set, or a path.
    pub dataset: Option<String>,
    /// Configuration of a registered data set.
    pub dataset_config_name: Option<String>,
    /// Tokens of a sample at most; `None` is the tokenizer's limit.
    pub max_seq_length: Option<usize>,
    /// Join all samples and cut pieces of `max_seq_length` tokens.
    pub concatenate_data: bool,
    /// Options of the file reader; none is known.
    pub raw_kwargs: Map<String, Value>,
    /// Which split, in the split grammar: `train`, `train[:5%]`.
    pub splits: Option<Splits>,
    /// Samples to use; `None` means all.
    pub num_calibration_samples: Option<usize>,
    /// Random order instead of descending length.
    pub shuffle_calibration_samples: bool,
    /// Take rows from the front and read no further than needed.
    pub streaming: bool,
    /// No effect: nothing is cached.
    pub overwrite_cache: bool,
    /// No effect: rows are tokenized when they are used.
    pub preprocessing_num_workers: Option<usize>,
    /// Fill every sample to `max_seq_length`.
    pub pad_to_max_length: bool,
    /// Accepted, unused.
    pub min_tokens_per_module: Option<f64>,
    /// Every expert sees every token during calibration.
    pub moe_calibrate_all_experts: bool,
    /// Name of the calibration pipeline.
    pub pipeline: Option<String>,
    /// Function names that the reference does not trace into; no effect.
    pub tracing_ignore: Vec<String>,
    /// Patterns of the modules that cut the model into subgraphs.
    pub sequential_targets: Option<Targets>,
    /// Where activations wait between subgraphs.
    pub sequential_offload_device: String,
    /// Targets of one subgraph.
    pub sequential_targets_per_subgraph: usize,
    /// No effect.
    pub quantization_aware_calibration: bool,
    /// Whether later layers are calibrated on the changed outputs of earlier ones.
    pub propagate_error: bool,
    /// Whether statistics skip tokens whose `loss_mask` is zero.
    pub use_loss_mask: bool,
    /// Reader threads; no effect on what is read.
    pub dataloader_num_workers: usize,
    /// Fetch the next batch of activations in a background thread.
    pub sequential_prefetch: bool,
    /// Seed of the shuffle (ours; the reference shuffles by an unseeded generator).
    pub seed: u64,
    /// Unreadable rows that may be left out (ours).
    pub skip_bad_rows: usize,
}

/// The forms of `splits`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Splits {
    /// One split.
    Name(String),
    /// The first one counts; deprecated.
    List(Vec<String>),
    /// The one under `calibration` counts; deprecated.
    Map(IndexMap<String, String>),
}

/// One pattern or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// One pattern.
    One(String),
    /// Several patterns.
    Many(Vec<String>),
}

impl Default for DatasetArguments {
    fn default() -> Self {
        Self {
            dvc_data_repository: None,
            dataset_path: None,
            text_column: "text".to_owned(),
            remove_columns: None,
            preprocessing_func: None,
            batch_size: 1,
            data_collator: "truncation".to_owned(),
            dataset: None,
            dataset_config_name: None,
            max_seq_length: None,
            concatenate_data: false,
            raw_kwargs: Map::new(),
            splits: None,
            num_calibration_samples: Some(512),
            shuffle_calibration_samples: true,
            streaming: false,
            overwrite_cache: false,
            preprocessing_num_workers: None,
            pad_to_max_length: false,
            min_tokens_per_module: None,
            moe_calibrate_all_experts: true,
            pipeline: Some("independent".to_owned()),
            tracing_ignore: TRACING_IGNORE.map(str::to_owned).to_vec(),
            sequential_targets: None,
            sequential_offload_device: "cpu".to_owned(),
            sequential_targets_per_subgraph: 1,
            quantization_aware_calibration: true,
            propagate_error: true,
            use_loss_mask: false,
            dataloader_num_workers: 0,
            sequential_prefetch: false,
            seed: DEFAULT_SEED,
            skip_bad_rows: 0,
        }
    }
}

impl DatasetArguments {
    /// Whether any data is named.
    pub fn is_dataset_provided(&self) -> bool {
        self.dataset.is_some() || self.dataset_path.is_some()
    }

    /// Refuses values that cannot mean anything, and says which given arguments have no effect.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] or [`ErrorKind::UnknownName`] with the argument's name.
    pub fn validate(&self) -> Result<Vec<Note>> {
        for (argument, count) in [
            ("batch_size", Some(self.batch_size)),
            ("max_seq_length", self.max_seq_length),
            ("num_calibration_samples", self.num_calibration_samples),
            ("sequential_targets_per_subgraph", Some(self.sequential_targets_per_subgraph)),
        ] {
            if count == Some(0) {
                return Err(invalid(argument, "0", "at least 1"));
            }
        }
        if self.text_column.is_empty() {
            return Err(invalid("text_column", "empty", "the name of a column"));
        }
        if let Some((option, _)) = self.raw_kwargs.iter().next() {
            return Err(invalid("raw_kwargs", &format!("{{`{option}`: ..}}"), "no option: files are read as they are"));
        }
        known("data collator", &self.data_collator, &COLLATORS)?;
        if let Some(pipeline) = &self.pipeline {
            known("pipeline", pipeline, &PIPELINES)?;
        }
        self.split()?;
        let mut notes = Vec::new();
        for (argument, given) in [
            ("remove_columns", self.remove_columns.is_some()),
            ("quantization_aware_calibration", !self.quantization_aware_calibration),
            ("min_tokens_per_module", self.min_tokens_per_module.is_some()),
            ("overwrite_cache", self.overwrite_cache),
        ] {
            if given {
                notes.push(Note::NoEffect { argument });
            }
        }
        notes.extend(self.split()?.1);
        Ok(notes)
    }

    /// The split to read, whatever form it was given in.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a mapping without `calibration`.
    pub fn split(&self) -> Result<(Option<&str>, Option<Note>)> {
        let deprecated = |form: &str| Some(Note::Deprecated { what: format!("`splits` as {form}: give one split") });
        match &self.splits {
            None => Ok((None, None)),
            Some(Splits::Name(name)) => Ok((Some(name), None)),
            Some(Splits::List(names)) => Ok((names.first().map(String::as_str), deprecated("a list"))),
            Some(Splits::Map(map)) => match map.get("calibration") {
                Some(name) => Ok((Some(name), deprecated("a mapping"))),
                None => {
                    let found = format!("a mapping of {}", map.keys().cloned().collect::<Vec<_>>().join(", "));
                    Err(invalid("splits", &found, "a split, or a mapping with `calibration`"))
                }
            },
        }
    }
}

pub(crate) fn invalid(argument: &str, found: &str, expected: &str) -> crate::Error {
    let [argument, found, expected] = [argument, found, expected].map(str::to_owned);
    ErrorKind::InvalidArgument { argument, found, expected }.into()
}

fn known(what: &'static str, name: &str, names: &[&str]) -> Result<()> {
    if names.contains(&name) {
        return Ok(());
    }
    let known = names.iter().map(|&name| name.to_owned()).collect();
    Err(ErrorKind::UnknownName { what, name: name.to_owned(), known }.into())
}
