//! What a oneshot run did.

use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use compressed_tensors::{
    args::{Dynamic, QuantizationArgs},
    scheme::QuantizationScheme,
};
use indexmap::IndexMap;
use modifiers::quantization::ModuleRecord;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    error::{ErrorKind, Result},
    model_free::RunStatus,
    names::fold_names,
    verify::{Fault, Verdict},
};

/// Names shown of each kind of warning.
const NAMES_SHOWN: usize = 12;

/// What a oneshot run did, as `report.json` has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OneshotReport {
    /// `done`, or `already_done` where an equal run had finished before.
    pub status: RunStatus,
    /// The output directory.
    pub output: PathBuf,
    /// What it was made from.
    pub inputs: Inputs,
    /// The recipe's modifiers in order.
    pub modifiers: Vec<String>,
    /// The pipeline.
    pub pipeline: String,
    /// Where waves begin.
    pub partition: String,
    /// The type computed in.
    pub dtype: String,
    /// Rows of calibration data.
    pub n_samples: usize,
    /// Tokens of calibration data.
    pub n_tokens: usize,
    /// On which tokens experts were calibrated.
    pub experts: String,
    /// What the run was restricted to; none where it took up all that its recipe names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<ScopeReport>,
    /// Every module whose weight is compressed, those of an interrupted run included, and those that were taken over.
    pub modules: Vec<ModuleReport>,
    /// Dense tensors that were written anew.
    pub rewritten: Vec<String>,
    /// Tensors of the source that have another name in the output, and that name; of a weight that is compressed the one that it
    /// would have.
    #[serde(default)]
    pub renamed: IndexMap<String, String>,
    /// Modules that a transform writes to: they are no approximation of the source's.
    pub transformed: Vec<String>,
    /// What modifiers say beside, wave by wave: how channels were scaled.
    pub said: Vec<Value>,
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
    /// Passes of that run that modifiers heard: each over all data, through the modules of one wave.
    #[serde(default)]
    pub n_passes: usize,
    /// Seconds of each phase of the run that finished the output.
    pub phases: IndexMap<String, f64>,
    /// Seconds of reading, computing and writing.
    pub seconds: f64,
    /// Most bytes of large buffers at once, statistics of modifiers left out.
    pub peak_bytes: u64,
    /// Most bytes of the process in memory, where the system tells.
    pub peak_resident_bytes: Option<u64>,
    /// Worker threads.
    pub threads: usize,
    /// What was found wrong in the output, once it was verified.
    pub verification: Option<Verification>,
    /// What decided the bytes; an equal run recognizes the output by it.
    pub fingerprints: Value,
}

/// What a run was made from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// The model as given.
    pub model: String,
    /// Its shards with their bytes.
    pub shards: IndexMap<String, u64>,
    /// Hash of the headers, sizes and config of the model.
    pub source_hash: String,
    /// The data as given.
    pub data: Option<String>,
    /// Hash of all token ids and masks.
    pub data_hash: Option<String>,
    /// The recipe as it was resolved.
    pub recipe: String,
    /// Hash of the recipe.
    pub recipe_hash: String,
}

/// What a run was restricted to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScopeReport {
    /// The patterns that chose its modules.
    pub patterns: Vec<String>,
    /// The chosen modules that it compressed.
    pub compressed: Vec<String>,
    /// The finished output that all others were taken over from; none where they stayed as the source has them.
    pub from: Option<PathBuf>,
    /// Hash of the headers, sizes and config of that output.
    pub from_hash: Option<String>,
    /// Compressed modules that were taken over.
    pub n_kept: usize,
}

/// What `verify` said of the output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Whether there is no fault.
    pub sound: bool,
    /// Tensors of the output.
    pub n_tensors: usize,
    /// Tensors equal to the source's, bit for bit.
    pub n_equal_tensors: usize,
    /// Compressed modules.
    pub n_compressed: usize,
    /// Everything wrong.
    pub faults: Vec<Fault>,
}

impl From<Verdict> for Verification {
    fn from(it: Verdict) -> Self {
        let Verdict { sound, n_tensors, n_equal_tensors, n_compressed, faults, .. } = it;
        Self { sound, n_tensors, n_equal_tensors, n_compressed, faults }
    }
}

/// A module whose weight is compressed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleReport {
    /// What became of it; `module` is its name.
    #[serde(flatten)]
    pub record: ModuleRecord,
    /// Its scheme in short.
    pub scheme: String,
    /// Its layout on disk.
    pub format: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Bytes of the weight before.
    pub input_bytes: u64,
    /// Bytes of what it became, scales of activations included.
    pub output_bytes: u64,
}

/// A scheme in a few words: `int4 g128`, `float8 channel, inputs float8 token dynamic`.
pub(super) fn scheme_text(scheme: &QuantizationScheme) -> String {
    let one = |args: &QuantizationArgs| {
        let mut text = format!("{}{}", args.r#type.name(), args.num_bits);
        match (args.group_size, args.block_structure) {
            (Some(size), _) if size > 0 => text.push_str(&format!(" g{size}")),
            (_, Some([height, width])) => text.push_str(&format!(" {height}x{width}")),
            _ => text.push_str(&format!(" {}", args.strategy.name())),
        }
        if !args.symmetric {
            text.push_str(" asym");
        }
        if args.dynamic != Dynamic::No {
            text.push_str(" dynamic");
        }
        text
    };
    let parts =
        [("", &scheme.weights), ("inputs ", &scheme.input_activations), ("outputs ", &scheme.output_activations)];
    let parts: Vec<String> =
        parts.iter().filter_map(|(name, args)| Some(format!("{name}{}", one(args.as_ref()?)))).collect();
    parts.join(", ")
}

/// What a person should know of what became of modules.
pub(super) fn module_warnings(modules: &[ModuleReport]) -> Vec<String> {
    let mut kinds: IndexMap<String, Vec<&str>> = IndexMap::new();
    for ModuleReport { record, .. } in modules {
        let mut add = |text: String| kinds.entry(text).or_default().push(&record.module);
        match (&record.fallback, record.attempts) {
            (Some(reason), _) => add(format!("rounded to nearest instead ({reason})")),
            (None, Some(attempts)) if attempts > 1 => {
                let frac = record.dampening_frac.unwrap_or_default();
                add(format!("the damping was raised to {frac:.3} of the mean diagonal"));
            }
            _ => {}
        }
        if record.dead_columns.is_some_and(|it| it > 0) {
            add("some input channels are always 0 on this data, and their weights became 0".to_owned());
        }
    }
    let one = |(text, names): (String, Vec<&str>)| {
        let n_modules = names.len();
        let folded = fold_names(names);
        let rest = folded.len().saturating_sub(NAMES_SHOWN);
        let mut shown = folded.into_iter().take(NAMES_SHOWN).collect::<Vec<_>>().join(", ");
        if rest > 0 {
            shown.push_str(&format!(" and {rest} more names"));
        }
        format!("{n_modules} modules: {text}: {shown}")
    };
    kinds.into_iter().map(one).collect()
}

/// Most bytes of this process in memory so far.
pub(super) fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

impl OneshotReport {
    /// The report of an output of `oneshot`.
    ///
    /// # Errors
    /// A report that is absent or of another command.
    pub fn of(output: &Path) -> Result<Self> {
        let path = output.join("report.json");
        let bytes = std::fs::read(&path).map_err(|source| ErrorKind::File { path: path.clone(), source })?;
        serde_json::from_slice(&bytes).map_err(|error| {
            ErrorKind::Parse { path, reason: format!("it is no report of `llmcompressor oneshot`: {error}") }.into()
        })
    }

    /// Whether the output was verified and found wrong.
    pub fn is_faulty(&self) -> bool {
        self.verification.as_ref().is_some_and(|it| !it.sound)
    }

    /// The text of `report.json`.
    pub(super) fn json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// A few lines for a person.
    pub fn summary(&self) -> String {
        let output = self.output.display();
        let faults = self.verification.iter().flat_map(|it| &it.faults);
        let mut lines: Vec<String> = faults.map(|it| format!("fault: {}: {}", it.place, it.text)).collect();
        if self.status == RunStatus::AlreadyDone {
            lines.push(format!("{output}: an equal run has finished already; nothing was done"));
            return lines.join("\n");
        }
        lines.push(format!(
            "{output}: {} modules quantized by {}, {} tensors copied",
            self.modules.len(),
            self.modifiers.join(", "),
            self.n_copied_tensors
        ));
        if self.n_samples > 0 {
            lines.push(format!("  data     {} samples, {} tokens", self.n_samples, self.n_tokens));
        }
        if let Some(it) = &self.scope {
            let others = match &it.from {
                Some(from) => format!("{} taken over from {}", it.n_kept, from.display()),
                None => "all others as they were".to_owned(),
            };
            lines.push(format!("  scope    {} compressed modules were chosen, {others}", it.compressed.len()));
        }
        let ratio = self.input_bytes as f64 / self.output_bytes.max(1) as f64;
        let sizes = (ByteSize(self.input_bytes), ByteSize(self.output_bytes));
        lines.push(format!("  size     {} -> {} ({ratio:.2}x smaller)", sizes.0, sizes.1));
        let phases: Vec<String> = self.phases.iter().map(|(name, seconds)| format!("{name} {seconds:.2}")).collect();
        lines.push(format!("  time     {:.2} s on {} threads: {}", self.seconds, self.threads, phases.join(", ")));
        if self.n_resumed > 0 {
            lines.push(format!("  resumed  {} units were finished before", self.n_resumed));
        }
        if let Some(it) = &self.verification {
            let verdict = match it.faults.len() {
                0 => format!("sound, {} tensors equal to the source's", it.n_equal_tensors),
                n => format!("NOT sound, {n} faults"),
            };
            lines.push(format!("  verified {verdict}"));
        }
        lines.push(format!("  report   {}", self.output.join("report.html").display()));
        lines.join("\n")
    }
}
