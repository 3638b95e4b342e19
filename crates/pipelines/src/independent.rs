//! The independent pipeline: each modifier alone, one after the other, over the whole model.

use std::sync::Arc;

use lifecycle::CompressionLifecycle;

use crate::{CalibrationBatch, Committer, DataFree, Needs, Sequential, Times, choice::PipelineKind, error::Result};

/// A run of every modifier by the pipeline that it asks for itself.
///
/// Each sees the model as those before it have left it, and all data that there is; none hears the events of another.
#[derive(Clone)]
pub struct Independent {
    /// How modifiers run that need data.
    pub sequential: Sequential,
}

impl Independent {
    fn data_free(&self) -> DataFree {
        DataFree { model: Arc::clone(&self.sequential.model) }
    }

    /// Runs one modifier after the other.
    ///
    /// # Errors
    /// What the model, the modifiers and the committer refuse.
    pub fn run<C: Committer>(
        &self,
        lifecycle: &mut CompressionLifecycle,
        batches: &[CalibrationBatch],
        committer: &mut C,
    ) -> Result<Times, C::Error> {
        let mut times = Times::default();
        for idx in 0..lifecycle.modifiers().len() {
            committer.turn(idx, lifecycle)?;
            lifecycle.set_focus(Some(idx));
            let ran = match kind_of(lifecycle, idx) {
                PipelineKind::DataFree => self.data_free().run(lifecycle, committer),
                _ => self.sequential.run(lifecycle, batches.to_vec(), committer),
            };
            lifecycle.set_focus(None);
            times += ran?;
        }
        Ok(times)
    }

    /// What the runs take, each by itself.
    ///
    /// # Errors
    /// As those of [`Sequential::needs`] and [`DataFree::needs`].
    pub fn needs(&self, lifecycle: &mut CompressionLifecycle, batch_tokens: u64, all_tokens: u64) -> Result<Needs> {
        let mut all = Needs::default();
        for idx in 0..lifecycle.modifiers().len() {
            lifecycle.set_focus(Some(idx));
            let needs = match kind_of(lifecycle, idx) {
                PipelineKind::DataFree => self.data_free().needs(lifecycle),
                _ => self.sequential.needs(lifecycle, batch_tokens, all_tokens),
            };
            lifecycle.set_focus(None);
            all.waves.extend(needs?.waves);
        }
        Ok(all)
    }
}

/// What one modifier asks for.
fn kind_of(lifecycle: &CompressionLifecycle, idx: usize) -> PipelineKind {
    PipelineKind::infer([lifecycle.modifiers()[idx].modifier().needs_data()])
}
