//! A weight written as a plain tensor, whatever way it is stored.

use checkpoint::TensorSpec;

use super::{PlannedTensor, Unit, Worker};
use crate::{
    catalog::{Matrix, StoredModule},
    error::Result,
};

/// Writes one module's weight densely.
pub(crate) struct DensifyModule {
    matrix: Matrix,
    output: [PlannedTensor; 1],
}

impl DensifyModule {
    /// Writes `<module>.weight`.
    pub(crate) fn new(module: &StoredModule) -> Self {
        let matrix = module.matrix.clone();
        let spec = TensorSpec {
            name: format!("{}.weight", module.name),
            dtype: matrix.dtype,
            shape: vec![matrix.rows, matrix.cols],
        };
        Self { output: [PlannedTensor { spec, shard_idx: matrix.tensor().shard_idx }], matrix }
    }
}

impl Unit for DensifyModule {
    fn name(&self) -> &str {
        &self.output[0].spec.name
    }

    fn outputs(&self) -> &[PlannedTensor] {
        &self.output
    }

    fn input_bytes(&self) -> u64 {
        self.matrix.dense_bytes()
    }

    fn least_bytes(&self) -> u64 {
        let rows = self.matrix.row_quantum().min(self.matrix.rows);
        self.matrix.row_bytes() as u64 * rows as u64 + self.matrix.scratch_bytes(rows)
    }

    fn run(&self, worker: &Worker<'_>) -> Result<()> {
        let matrix = &self.matrix;
        worker.for_each_slab(matrix.rows, matrix.row_bytes(), matrix.row_quantum(), |rows| {
            worker.buffers.with(|slab| {
                let at = (rows.start * matrix.row_bytes()) as u64;
                matrix.read_rows(worker.source, rows, slab)?;
                worker.writer.write_at(self.name(), at, slab)?;
                worker.progress.advance(slab.len() as u64);
                Ok(())
            })
        })
    }
}
