//! What `verify` found.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What `verify` found.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// Whether there is no fault.
    pub sound: bool,
    /// The checkpoint.
    pub output: PathBuf,
    /// What it was compared with.
    pub source: Option<String>,
    /// Tensors of the checkpoint.
    pub n_tensors: usize,
    /// Tensors equal to the source's, bit for bit.
    pub n_equal_tensors: usize,
    /// Compressed modules.
    pub n_compressed: usize,
    /// Everything wrong.
    pub faults: Vec<Fault>,
    /// What is likely wrong and does no harm.
    pub warnings: Vec<String>,
    /// Compressed modules against their source.
    pub modules: Vec<ModuleCheck>,
}

/// One thing wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What kind of fault.
    pub kind: FaultKind,
    /// The tensor, module or file.
    pub place: String,
    /// What was found and what was expected.
    pub text: String,
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// A compressed module cannot be read.
    Unreadable,
    /// A module that the config says is compressed is not.
    NotCompressed,
    /// A tensor that belongs to no module.
    Orphan,
    /// A shape or dtype that the scheme does not give.
    Layout,
    /// A scale that is zero, negative or not finite.
    Scale,
    /// Fused modules with different global scales.
    FusedScale,
    /// No engine can run it: activation groups that do not divide the inputs, a compressed embedding that is to be the head.
    Unservable,
    /// A tensor of the source that is gone.
    Dropped,
    /// A tensor that the source does not have.
    Extra,
    /// A tensor that should be the source's and is not.
    Changed,
    /// A weight that is no approximation of its source.
    Distance,
    /// A companion file that is missing or differs.
    Companion,
}

/// A compressed module against its source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleCheck {
    /// Its name.
    pub module: String,
    /// Its config group.
    pub scheme: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Signal to quantization noise in decibels: `10 log10(sum w^2 / sum (w - v)^2)`; `null` where they are equal.
    pub sqnr_db: Option<f64>,
    /// Largest absolute difference.
    pub max_error: f64,
}

impl Verdict {
    pub(super) fn new(output: PathBuf, source: Option<String>, n_tensors: usize) -> Self {
        Self {
            sound: true,
            output,
            source,
            n_tensors,
            n_equal_tensors: 0,
            n_compressed: 0,
            faults: Vec::new(),
            warnings: Vec::new(),
            modules: Vec::new(),
        }
    }

    pub(super) fn fault(&mut self, kind: FaultKind, place: impl Into<String>, text: impl Into<String>) {
        self.sound = false;
        self.faults.push(Fault { kind, place: place.into(), text: text.into() });
    }

    /// Whether there is no fault.
    pub fn is_sound(&self) -> bool {
        self.sound
    }

    /// The verdict, every fault, and the ten modules that are farthest from their source.
    pub fn summary(&self) -> String {
        self.text(10)
    }

    /// As [`summary`](Self::summary), with every module.
    pub fn details(&self) -> String {
        self.text(usize::MAX)
    }

    fn text(&self, n_modules: usize) -> String {
        let mut lines: Vec<String> = self.faults.iter().map(|it| format!("fault: {}: {}", it.place, it.text)).collect();
        lines.extend(self.warnings.iter().map(|it| format!("warning: {it}")));
        let mut modules: Vec<&ModuleCheck> = self.modules.iter().collect();
        let distance = |it: &ModuleCheck| it.sqnr_db.unwrap_or(f64::INFINITY);
        modules.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
        if !modules.is_empty() {
            let shown = modules.len().min(n_modules);
            let sum: f64 = modules.iter().filter_map(|it| it.sqnr_db).sum();
            let count = modules.iter().filter(|it| it.sqnr_db.is_some()).count().max(1);
            lines.push(format!(
                "weights against the source: mean SQNR {:.2} dB; the {shown} farthest:",
                sum / count as f64
            ));
            let width = modules[..shown].iter().map(|it| it.module.len()).max().unwrap_or(0);
            for it in &modules[..shown] {
                let sqnr = it.sqnr_db.map_or("equal".to_owned(), |db| format!("{db:.2} dB"));
                lines.push(format!("  {:width$}  {sqnr:>9}  max error {:.3e}  {}", it.module, it.max_error, it.scheme));
            }
        }
        let equal = match &self.source {
            Some(source) => format!(", {} equal to those of {source}", self.n_equal_tensors),
            None => String::new(),
        };
        let verdict = match self.faults.len() {
            0 => "sound".to_owned(),
            n => format!("NOT sound, {n} faults"),
        };
        lines.push(format!(
            "{}: {verdict} ({} tensors, {} compressed modules{equal})",
            self.output.display(),
            self.n_tensors,
            self.n_compressed
        ));
        lines.join("\n")
    }
}
