//! A stored weight seen as a dense matrix that is read in slabs of rows.

use std::ops::Range;

use checkpoint::{Source, TensorEntry};
use compressed_tensors::{DType, experts::ExpertPart};

use crate::error::{InContext, Result};

/// A weight `(O, N)` as a dense matrix, whatever way it is stored.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    /// Output rows.
    pub(crate) rows: usize,
    /// Input columns.
    pub(crate) cols: usize,
    /// Element type once dense.
    pub(crate) dtype: DType,
    storage: Storage,
}

#[derive(Clone, Debug)]
enum Storage {
    /// Rows that lie one after the other from `first_byte` of the tensor's data on.
    Rows { tensor: TensorEntry, first_byte: u64 },
    /// One expert of a fused tensor that lies transposed or interleaved.
    Gathered { tensor: TensorEntry, part: ExpertPart },
}

impl Matrix {
    /// A plain tensor with two dimensions; `None` for any other shape.
    pub(crate) fn dense(tensor: &TensorEntry) -> Option<Self> {
        let &[rows, cols] = &*tensor.shape else { return None };
        let storage = Storage::Rows { tensor: tensor.clone(), first_byte: 0 };
        Some(Self { rows, cols, dtype: tensor.dtype, storage })
    }

    /// One expert of a fused tensor.
    pub(crate) fn expert(tensor: &TensorEntry, part: ExpertPart) -> Self {
        let (rows, cols) = (part.shape[0], part.shape[1]);
        let tensor = tensor.clone();
        let dtype = tensor.dtype;
        let storage = match part.is_contiguous() {
            true => Storage::Rows { first_byte: part.source.start as u64, tensor },
            false => Storage::Gathered { tensor, part },
        };
        Self { rows, cols, dtype, storage }
    }

    /// Bytes of one dense row.
    pub(crate) fn row_bytes(&self) -> usize {
        self.dtype.byte_len(self.cols).unwrap_or(0)
    }

    /// Bytes of the dense matrix.
    pub(crate) fn dense_bytes(&self) -> u64 {
        self.row_bytes() as u64 * self.rows as u64
    }

    /// The stored tensor that a fault should be reported for.
    pub(crate) fn tensor(&self) -> &TensorEntry {
        match &self.storage {
            Storage::Rows { tensor, .. } | Storage::Gathered { tensor, .. } => tensor,
        }
    }

    /// Rows that a slab starts at multiples of.
    pub(crate) fn row_quantum(&self) -> usize {
        match &self.storage {
            Storage::Rows { .. } => 1,
            Storage::Gathered { .. } => self.rows.max(1),
        }
    }

    /// Bytes beside the slab itself that reading `rows` rows takes.
    pub(crate) fn scratch_bytes(&self, _rows: usize) -> u64 {
        match &self.storage {
            Storage::Rows { .. } => 0,
            Storage::Gathered { part, .. } => part.source.len() as u64,
        }
    }

    /// Reads `rows` as dense little-endian bytes into `out`, which is resized.
    pub(crate) fn read_rows(&self, source: &Source, rows: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        let row_bytes = self.row_bytes();
        match &self.storage {
            Storage::Rows { tensor, first_byte } => {
                out.resize(rows.len() * row_bytes, 0);
                source.read_into(tensor, first_byte + (rows.start * row_bytes) as u64, out)?;
            }
            Storage::Gathered { tensor, part } => {
                let mut lying = vec![0; part.source.len()];
                source.read_into(tensor, part.source.start as u64, &mut lying)?;
                let whole = part.extract(&lying).context(&tensor.name)?;
                out.clear();
                out.extend_from_slice(&whole[rows.start * row_bytes..rows.end * row_bytes]);
            }
        }
        Ok(())
    }
}
