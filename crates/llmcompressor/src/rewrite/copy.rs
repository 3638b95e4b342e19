//! A tensor that is taken over bit for bit.

use checkpoint::{TensorEntry, TensorSpec};

use super::{PlannedTensor, Unit, Worker};
use crate::error::Result;

/// Copies one tensor.
pub(crate) struct CopyTensor {
    entry: TensorEntry,
    output: [PlannedTensor; 1],
}

impl CopyTensor {
    /// Copies `entry` under its own name.
    pub(crate) fn new(entry: &TensorEntry) -> Self {
        let spec = TensorSpec { name: entry.name.clone(), dtype: entry.dtype, shape: entry.shape.clone() };
        Self { output: [PlannedTensor { spec, shard_idx: entry.shard_idx }], entry: entry.clone() }
    }
}

impl Unit for CopyTensor {
    fn name(&self) -> &str {
        &self.entry.name
    }

    fn outputs(&self) -> &[PlannedTensor] {
        &self.output
    }

    fn input_bytes(&self) -> u64 {
        self.entry.n_bytes()
    }

    fn least_bytes(&self) -> u64 {
        1
    }

    fn run(&self, worker: &Worker<'_>) -> Result<()> {
        worker.slabs.for_each(self.entry.n_bytes() as usize, 1, 1, |bytes| {
            worker.slabs.buffers.with(|buffer| {
                buffer.resize(bytes.len(), 0);
                worker.source.read_into(&self.entry, bytes.start as u64, buffer)?;
                worker.writer.write_at(&self.entry.name, bytes.start as u64, buffer)?;
                worker.slabs.progress.advance(buffer.len() as u64);
                Ok(())
            })
        })
    }
}
