//! What a model-free run did.

use std::path::PathBuf;

use bytesize::ByteSize;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::names::fold_names;

/// What a model-free run did, as `report.json` has it.
#[derive(Clone, Debug, Serialize)]
pub struct ModelFreeReport {
    /// `done`, or `already_done` where an equal run had finished before.
    pub status: RunStatus,
    /// The output directory.
    pub output: PathBuf,
    /// Scheme by config group.
    pub schemes: IndexMap<String, serde_json::Value>,
    /// Every quantized module.
    pub quantized: Vec<QuantizedModule>,
    /// Every module with a matrix that stayed as it was.
    pub left: Vec<LeftModule>,
    /// Tensors copied bit for bit.
    pub n_copied_tensors: usize,
    /// Scales of activations of modules that have another scheme now.
    pub dropped: Vec<String>,
    /// Files taken along.
    pub companions: Vec<String>,
    /// Files of the source that were left.
    pub left_files: Vec<String>,
    /// What a person should know.
    pub warnings: Vec<String>,
    /// Bytes of the source's tensors.
    pub input_bytes: u64,
    /// Bytes of the output's tensors.
    pub output_bytes: u64,
    /// Units that an interrupted run had finished before.
    pub n_resumed: usize,
    /// Seconds of reading, computing and writing.
    pub seconds: f64,
    /// Worker threads.
    pub threads: usize,
    /// What decided the bytes; an equal run recognizes the output by it.
    pub fingerprints: serde_json::Value,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// It did its work.
    Done,
    /// An equal run had done it.
    AlreadyDone,
}

/// A module that was quantized.
#[derive(Clone, Debug, Serialize)]
pub struct QuantizedModule {
    /// Its name.
    pub module: String,
    /// The config group.
    pub scheme: String,
    /// Its layout on disk.
    pub format: &'static str,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Element type it had.
    pub dtype: String,
    /// Bytes per parameter times eight, scales included.
    pub bits_per_parameter: f64,
}

/// A module that stayed as it was.
#[derive(Clone, Debug, Serialize)]
pub struct LeftModule {
    /// Its name.
    pub module: String,
    /// Why.
    pub reason: String,
}

impl ModelFreeReport {
    /// A few lines for a person.
    pub fn summary(&self) -> String {
        let mut lines = Vec::new();
        let output = self.output.display();
        if self.status == RunStatus::AlreadyDone {
            lines.push(format!("{output}: an equal run has finished already; nothing was done"));
            return lines.join("\n");
        }
        let ratio = self.input_bytes as f64 / self.output_bytes.max(1) as f64;
        lines.push(format!(
            "{output}: {} modules quantized, {} left, {} tensors copied",
            self.quantized.len(),
            self.left.len(),
            self.n_copied_tensors
        ));
        lines.push(format!(
            "  size     {} -> {} ({ratio:.2}x smaller)",
            ByteSize(self.input_bytes),
            ByteSize(self.output_bytes)
        ));
        let rate = self.input_bytes as f64 / 1e9 / self.seconds.max(1e-9);
        lines.push(format!("  time     {:.2} s, {rate:.2} GB/s, {} threads", self.seconds, self.threads));
        if self.n_resumed > 0 {
            lines.push(format!("  resumed  {} units were finished before", self.n_resumed));
        }
        let mut reasons: IndexMap<&str, Vec<&str>> = IndexMap::new();
        for it in &self.left {
            reasons.entry(&it.reason).or_default().push(&it.module);
        }
        for (reason, modules) in reasons {
            lines.push(format!("  left     {}: {reason}", fold_names(modules).join(", ")));
        }
        lines.push(format!("  report   {}", self.output.join("report.json").display()));
        lines.join("\n")
    }
}
