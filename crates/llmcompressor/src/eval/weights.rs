//! A checkpoint's weights as a model reads them: dense, whatever way they are stored.

use checkpoint::Source;
use compressed_tensors::DType;
use models::{BoxedError, Weights};

use crate::{
    catalog::{Catalog, StoredModule},
    error::Result,
};

/// Dense bytes that are made at once beside those that were asked for.
const SLAB_BYTES: usize = 8 << 20;

/// A checkpoint whose compressed weights appear as `<module>.weight`.
pub(crate) struct DenseWeights {
    source: Source,
    catalog: Catalog,
}

impl DenseWeights {
    /// The weights of `source`.
    ///
    /// # Errors
    /// That of the first compressed module that cannot be read.
    pub(crate) fn new(source: Source, mut catalog: Catalog) -> Result<Self> {
        match catalog.unreadable.pop() {
            Some((_, error)) => Err(error),
            None => Ok(Self { source, catalog }),
        }
    }

    /// The checkpoint.
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Its modules.
    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    fn module(&self, name: &str) -> Option<&StoredModule> {
        self.catalog.get(name.strip_suffix(".weight")?)
    }
}

impl Weights for DenseWeights {
    fn spec(&self, name: &str) -> Option<(DType, Vec<usize>)> {
        match self.module(name) {
            Some(it) => Some((it.matrix.dtype, vec![it.matrix.rows, it.matrix.cols])),
            None => self.source.get(name).map(|it| (it.dtype, it.shape.clone())),
        }
    }

    fn read_into(&self, name: &str, offset_bytes: u64, out: &mut [u8]) -> std::result::Result<(), BoxedError> {
        let Some(module) = self.module(name) else {
            return Ok(self.source.read_into(self.source.require(name)?, offset_bytes, out)?);
        };
        let matrix = &module.matrix;
        let (row_bytes, quantum) = (matrix.row_bytes().max(1), matrix.row_quantum().max(1));
        let start = usize::try_from(offset_bytes)?;
        let end = start.checked_add(out.len()).filter(|it| *it <= matrix.rows.saturating_mul(row_bytes));
        let end = end.ok_or("the tensor ends before these bytes")?;
        // The rows that hold the bytes, from a row that reading may begin at.
        let first = start / row_bytes / quantum * quantum;
        let last = end.div_ceil(row_bytes).next_multiple_of(quantum).min(matrix.rows);
        let step = (SLAB_BYTES / row_bytes / quantum).max(1) * quantum;
        let mut slab = Vec::new();
        for first in (first..last).step_by(step) {
            let rows = first..(first + step).min(last);
            let bytes = start.max(rows.start * row_bytes)..end.min(rows.end * row_bytes);
            matrix.read_rows(&self.source, rows, &mut slab)?;
            let of_slab = bytes.start - first * row_bytes..bytes.end - first * row_bytes;
            out[bytes.start - start..bytes.end - start].copy_from_slice(&slab[of_slab]);
        }
        Ok(())
    }
}
