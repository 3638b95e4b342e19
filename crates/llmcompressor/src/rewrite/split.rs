//! A small tensor that several modules share, such as the biases of all experts, cut into one each.

use checkpoint::{TensorEntry, TensorSpec};
use compressed_tensors::experts::ExpertPart;

use super::{PlannedTensor, Unit, Worker};
use crate::error::{InContext, Result};

/// Cuts one tensor into parts.
pub(crate) struct SplitTensor {
    entry: TensorEntry,
    parts: Vec<ExpertPart>,
    outputs: Vec<PlannedTensor>,
}

impl SplitTensor {
    /// Cuts `entry` into `parts`.
    pub(crate) fn new(entry: &TensorEntry, parts: &[ExpertPart]) -> Self {
        let planned = |part: &ExpertPart| PlannedTensor {
            spec: TensorSpec { name: part.name.clone(), dtype: entry.dtype, shape: part.shape.clone() },
            shard_idx: entry.shard_idx,
        };
        Self { entry: entry.clone(), parts: parts.to_vec(), outputs: parts.iter().map(planned).collect() }
    }
}

impl Unit for SplitTensor {
    fn name(&self) -> &str {
        &self.entry.name
    }

    fn outputs(&self) -> &[PlannedTensor] {
        &self.outputs
    }

    fn input_bytes(&self) -> u64 {
        self.entry.n_bytes()
    }

    fn least_bytes(&self) -> u64 {
        2 * self.entry.n_bytes()
    }

    fn run(&self, worker: &Worker<'_>) -> Result<()> {
        worker.slabs.check_interrupt()?;
        let bytes = worker.source.read(&self.entry)?;
        for part in &self.parts {
            let data = part.extract(&bytes[part.source.clone()]).context(&self.entry.name)?;
            worker.writer.write_at(&part.name, 0, &data)?;
        }
        worker.slabs.progress.advance(self.entry.n_bytes());
        Ok(())
    }
}
