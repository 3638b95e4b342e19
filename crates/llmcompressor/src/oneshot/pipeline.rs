//! The pipeline that a run takes.

use std::sync::Arc;

use lifecycle::CompressionLifecycle;
use models::Model;
use pipelines::{
    Basic, DataFree, Independent, Needs, Partition, Passes, Sequential, Spill, Times,
    choice::{PipelineKind, choose_pipeline},
};
use tensor::{Engine, Routing};

use super::{ExpertCalibration, OneshotOptions, commit::OutputCommitter, data::Data};
use crate::error::{ErrorKind, Result};

/// The pipeline that the options name, else the one that the modifiers need; and what to warn of.
///
/// # Errors
/// `Option` for an unknown name.
pub(super) fn choose(
    options: &OneshotOptions,
    lifecycle: &CompressionLifecycle,
) -> Result<(PipelineKind, Option<String>)> {
    let needs = lifecycle.modifiers().iter().map(|it| it.modifier().needs_data());
    let choice = choose_pipeline(needs, options.pipeline.as_deref()).map_err(|error| ErrorKind::Option {
        option: "--pipeline",
        found: error.name,
        expected: "basic, sequential, datafree, independent or layer_sequential".to_owned(),
    })?;
    let overruled = choice.overruled.map(|it| {
        format!(
            "pipeline {} is taken as asked; the modifiers of the recipe call for {}",
            choice.pipeline.name(),
            it.name()
        )
    });
    Ok((choice.pipeline, overruled))
}

/// Whether a run reads data.
pub(super) fn reads_data(kind: PipelineKind, lifecycle: &CompressionLifecycle) -> bool {
    match kind {
        PipelineKind::DataFree => false,
        PipelineKind::Independent => lifecycle.modifiers().iter().any(|it| it.modifier().needs_data()),
        _ => true,
    }
}

/// Where waves begin: one pipeline has the reference's layers, whatever the options say.
pub(super) fn partition(kind: PipelineKind, options: &OneshotOptions) -> Partition {
    if kind == PipelineKind::LayerSequential { Partition::Compat } else { options.partition }
}

/// A pipeline, ready to run.
pub(super) enum Run {
    Basic(Basic),
    Sequential(Sequential),
    DataFree(DataFree),
    Independent(Independent),
}

impl Run {
    pub(super) fn new(kind: PipelineKind, options: &OneshotOptions, model: &Arc<Model>, engine: &Engine) -> Self {
        let sequential = Sequential {
            model: Arc::clone(model),
            engine: engine.clone(),
            partition: partition(kind, options),
            routing: match options.expert_calibration() {
                ExpertCalibration::All => Routing::All,
                ExpertCalibration::Routed | ExpertCalibration::RoutedThenFallback { .. } => Routing::Chosen,
            },
            window: options.batch_window.max(1),
            spill: None,
            passes: Passes::Own,
        };
        match kind {
            PipelineKind::Basic => Self::Basic(Basic { sequential }),
            PipelineKind::Sequential => Self::Sequential(sequential),
            PipelineKind::DataFree => Self::DataFree(DataFree { model: Arc::clone(model) }),
            PipelineKind::Independent => Self::Independent(Independent { sequential }),
            PipelineKind::LayerSequential => Self::Sequential(Sequential { passes: Passes::Joint, ..sequential }),
        }
    }

    /// The least memory that it takes.
    pub(super) fn needs(&self, lifecycle: &mut CompressionLifecycle, data: Option<&Data>) -> Result<Needs> {
        let (batch_tokens, all_tokens) = data.map_or((0, 0), |it| (it.batch_tokens, it.n_tokens as u64));
        Ok(match self {
            Self::Basic(it) => it.needs(lifecycle, batch_tokens, all_tokens)?,
            Self::Sequential(it) => it.needs(lifecycle, batch_tokens, all_tokens)?,
            Self::DataFree(it) => it.needs(lifecycle)?,
            Self::Independent(it) => it.needs(lifecycle, batch_tokens, all_tokens)?,
        })
    }

    /// Runs it; activations that exceed a limit go where `spill` says.
    pub(super) fn execute(
        self,
        lifecycle: &mut CompressionLifecycle,
        data: Option<Data>,
        spill: Option<Spill>,
        committer: &mut OutputCommitter<'_>,
    ) -> Result<Times> {
        let batches = data.map_or_else(Vec::new, |it| it.batches);
        match self {
            Self::Basic(it) => {
                Basic { sequential: Sequential { spill, ..it.sequential } }.run(lifecycle, batches, committer)
            }
            Self::Sequential(it) => Sequential { spill, ..it }.run(lifecycle, batches, committer),
            Self::DataFree(it) => it.run(lifecycle, committer),
            Self::Independent(it) => {
                Independent { sequential: Sequential { spill, ..it.sequential } }.run(lifecycle, &batches, committer)
            }
        }
    }
}
