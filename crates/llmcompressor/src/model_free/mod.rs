//! Quantizes a checkpoint by the names and shapes of its tensors, without running the model.

mod compress;
mod config;
mod default_ignore;
mod fusion;
mod groups;
mod options;
mod plan;
mod remainder;
mod report;
mod search;
mod selection;
mod shapes;

pub use checkpoint::Existing;
pub use default_ignore::{DEFAULT_IGNORE, DefaultIgnore};
pub use fusion::FUSED_LINEARS;
pub(crate) use fusion::fused_groups;
pub use groups::read_config;
pub use options::{DefaultIgnores, ModelFreeOptions, SchemeSource, Tolerance};
pub use report::{LeftModule, ModelFreeReport, QuantizedModule, RunStatus};

use checkpoint::{Finish, Generated, IndexRule};

use crate::{
    Progress,
    error::Result,
    rewrite::{Facts, Rewrite, Rewritten, Settings},
    source::open_source,
};

/// Quantizes `options.model` into `options.output`.
///
/// Weights stream through bounded memory in slabs of rows.
/// An interrupted run is resumed by the same call and ends in the same bytes.
/// What is written depends on the source, the schemes and the choice of modules alone.
///
/// # Errors
/// Everything that headers and config can tell is refused before anything is written; see [`crate::ErrorKind`].
pub fn model_free_ptq(options: &ModelFreeOptions, progress: &dyn Progress) -> Result<ModelFreeReport> {
    let source = open_source(&options.model)?;
    let plan = plan::plan(&source, options)?;
    for warning in source.warnings().iter().chain(&plan.report.warnings) {
        progress.warn(warning);
    }
    let mut report = plan.report;
    let companions = config::companions(&source, options);
    let settings = Settings {
        activity: "compressing",
        output: options.output.clone(),
        threads: options.threads,
        max_memory_bytes: options.max_memory_bytes,
        max_shard_bytes: options.max_shard_bytes,
        existing: options.existing,
        fingerprints: plan.fingerprints,
        interrupt: options.interrupt.clone(),
    };
    let config = plan.config;
    let mut finished = report.clone();
    let finish = |facts: &Facts| -> Result<Finish> {
        record(&mut finished, facts);
        Ok(Finish {
            companions,
            generated: vec![Generated { name: "report.json".to_owned(), bytes: pretty(&finished) }],
            index: match source.index() {
                Some(index) => IndexRule::Always(index.file_name.clone()),
                None => IndexRule::Always("model.safetensors.index.json".to_owned()),
            },
            config: Some(config),
        })
    };
    match (Rewrite { source: &source, units: plan.units, settings }).run(finish, progress)? {
        Rewritten::Done => Ok(finished),
        Rewritten::AlreadyDone => {
            report.status = RunStatus::AlreadyDone;
            Ok(report)
        }
    }
}

fn record(report: &mut ModelFreeReport, facts: &Facts) {
    report.n_resumed = facts.n_resumed;
    report.output_bytes = facts.output_bytes;
    report.seconds = facts.seconds;
    report.threads = facts.threads;
    report.fingerprints = facts.fingerprints.clone();
}

fn pretty(report: &ModelFreeReport) -> Vec<u8> {
    serde_json::to_vec_pretty(report).unwrap_or_default()
}
