//! What a oneshot run did.

use std::path::PathBuf;

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::Value;

use crate::model_free::RunStatus;

/// What a oneshot run did, as `report.json` has it.
#[derive(Clone, Debug, Serialize)]
pub struct OneshotReport {
    /// `done`, or `already_done` where an equal run had finished before.
    pub status: RunStatus,
    /// The output directory.
    pub output: PathBuf,
    /// The recipe's modifiers in order.
    pub modifiers: Vec<String>,
    /// The pipeline.
    pub pipeline: &'static str,
    /// Where waves begin.
    pub partition: &'static str,
    /// The type computed in.
    pub dtype: String,
    /// Rows of calibration data.
    pub n_samples: usize,
    /// Tokens of calibration data.
    pub n_tokens: usize,
    /// Every module whose weight is compressed.
    pub quantized: Vec<QuantizedWeight>,
    /// Dense tensors that were written anew.
    pub rewritten: Vec<String>,
    /// Modules that a transform writes to: they are no approximation of the source's.
    pub transformed: Vec<String>,
    /// What modifiers say, wave by wave.
    pub modules: Vec<Value>,
    /// Tensors copied bit for bit.
    pub n_copied_tensors: usize,
    /// What a person should know.
    pub warnings: Vec<String>,
    /// Bytes of the source's tensors.
    pub input_bytes: u64,
    /// Bytes of the output's tensors.
    pub output_bytes: u64,
    /// Units that an interrupted run had finished before.
    pub n_resumed: usize,
    /// Seconds of each phase.
    pub phases: IndexMap<&'static str, f64>,
    /// Seconds of reading, computing and writing.
    pub seconds: f64,
    /// Most bytes of large buffers at once, statistics of modifiers left out.
    pub peak_bytes: u64,
    /// Worker threads.
    pub threads: usize,
    /// What decided the bytes; an equal run recognizes the output by it.
    pub fingerprints: Value,
}

/// A module whose weight is compressed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizedWeight {
    /// Its name.
    pub module: String,
    /// Its layout on disk.
    pub format: &'static str,
    /// Rows and columns.
    pub shape: [usize; 2],
}

impl OneshotReport {
    /// A few lines for a person.
    pub fn summary(&self) -> String {
        let output = self.output.display();
        if self.status == RunStatus::AlreadyDone {
            return format!("{output}: an equal run has finished already; nothing was done");
        }
        let mut lines = vec![format!(
            "{output}: {} modules quantized by {}, {} tensors copied",
            self.quantized.len(),
            self.modifiers.join(", "),
            self.n_copied_tensors
        )];
        if self.n_samples > 0 {
            lines.push(format!("  data     {} samples, {} tokens", self.n_samples, self.n_tokens));
        }
        let ratio = self.input_bytes as f64 / self.output_bytes.max(1) as f64;
        let sizes = (bytesize::ByteSize(self.input_bytes), bytesize::ByteSize(self.output_bytes));
        lines.push(format!("  size     {} -> {} ({ratio:.2}x smaller)", sizes.0, sizes.1));
        let phases: Vec<String> = self.phases.iter().map(|(name, seconds)| format!("{name} {seconds:.2}")).collect();
        lines.push(format!("  time     {:.2} s on {} threads: {}", self.seconds, self.threads, phases.join(", ")));
        if self.n_resumed > 0 {
            lines.push(format!("  resumed  {} units were finished before", self.n_resumed));
        }
        lines.push(format!("  report   {}", self.output.join("report.json").display()));
        lines.join("\n")
    }
}
