//! A weight written as a plain tensor, whatever way it is stored.

use checkpoint::TensorSpec;
use compressed_tensors::{
    DType,
    numbers::{read_f32, write_f32},
};

use super::{PlannedTensor, Unit, Worker};
use crate::{
    catalog::{Matrix, StoredModule},
    error::{InContext, Result},
};

/// Writes one module's weight densely.
pub(crate) struct DensifyModule {
    matrix: Matrix,
    output: [PlannedTensor; 1],
}

impl DensifyModule {
    /// Writes `<module>.weight`, as `dtype` where given.
    pub(crate) fn new(module: &StoredModule, dtype: Option<DType>) -> Self {
        let matrix = module.matrix.clone();
        let spec = TensorSpec {
            name: format!("{}.weight", module.name),
            dtype: dtype.unwrap_or(matrix.dtype),
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
        // Where the type changes, an f32 of each value and the result.
        self.matrix.least_bytes() + (rows * self.matrix.cols * 12) as u64
    }

    fn run(&self, worker: &Worker<'_>) -> Result<()> {
        let matrix = &self.matrix;
        let spec = &self.output[0].spec;
        worker.slabs.for_each(matrix.rows, matrix.row_bytes(), matrix.row_quantum(), |rows| {
            worker.slabs.buffers.with(|slab| {
                let n_values = rows.len() * matrix.cols;
                let first = rows.start * matrix.cols;
                matrix.read_rows(worker.source, rows, slab)?;
                worker.slabs.progress.advance(slab.len() as u64);
                if spec.dtype != matrix.dtype {
                    *slab = cast(slab, matrix.dtype, spec.dtype, n_values).context(&spec.name)?;
                }
                let at = spec.dtype.byte_len(first).unwrap_or(0) as u64;
                worker.writer.write_at(&spec.name, at, slab)?;
                Ok(())
            })
        })
    }
}

/// The same values in another type, rounded to nearest even.
fn cast(bytes: &[u8], from: DType, to: DType, n_values: usize) -> compressed_tensors::Result<Vec<u8>> {
    let mut values = vec![0.0; n_values];
    read_f32(from, bytes, &mut values)?;
    let mut out = vec![0; to.byte_len(n_values).unwrap_or(0)];
    write_f32(to, &values, &mut out)?;
    Ok(out)
}
