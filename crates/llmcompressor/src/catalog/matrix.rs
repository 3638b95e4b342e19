//! A stored weight seen as a dense matrix that is read in slabs of rows.

use std::{ops::Range, sync::Arc};

use checkpoint::{Source, TensorEntry};
use compressed_tensors::{
    DType,
    experts::ExpertPart,
    weight_decompressor::{StoredPart, StoredRows, WeightDecompressor},
};

use super::foreign::ForeignWeight;
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
    /// Codes and scales in a compressed-tensors layout.
    Compressed(Arc<Compressed>),
    /// Tensors of another format.
    Foreign(Arc<ForeignWeight>),
}

/// A compressed weight: what reads it, and where its tensors are.
#[derive(Debug)]
pub(crate) struct Compressed {
    decompressor: WeightDecompressor,
    codes: TensorEntry,
    scale: TensorEntry,
    zero_point: Option<TensorEntry>,
    global_scale: Option<f32>,
    g_idx: Option<Vec<i32>>,
}

impl Compressed {
    /// The weight of module `name`; the tensors that all rows share are read at once.
    ///
    /// # Errors
    /// Faults of reading.
    pub(crate) fn new(source: &Source, name: &str, decompressor: WeightDecompressor) -> Result<Self> {
        let tensor = |local: &str| source.get(&format!("{name}.{local}"));
        let codes = match tensor("weight_packed") {
            Some(it) => it,
            None => source.require(&format!("{name}.weight"))?,
        };
        let words = |local: &str| -> Result<Option<Vec<[u8; 4]>>> {
            let Some(entry) = tensor(local) else { return Ok(None) };
            Ok(Some(source.read(entry)?.chunks_exact(4).filter_map(|it| it.try_into().ok()).collect()))
        };
        let global_scale = words("weight_global_scale")?.and_then(|it| it.first().copied()).map(f32::from_le_bytes);
        let g_idx = words("weight_g_idx")?.map(|it| it.into_iter().map(i32::from_le_bytes).collect());
        Ok(Self {
            decompressor,
            codes: codes.clone(),
            scale: source.require(&format!("{name}.weight_scale"))?.clone(),
            zero_point: tensor("weight_zero_point").cloned(),
            global_scale,
            g_idx,
        })
    }

    fn read_rows(&self, source: &Source, rows: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        let read = |entry: &TensorEntry, part: StoredPart| -> Result<Vec<u8>> {
            let range = self.decompressor.input_range(part, rows.start, rows.len());
            let mut bytes = vec![0; range.len()];
            source.read_into(entry, range.start as u64, &mut bytes)?;
            Ok(bytes)
        };
        let zero_point = self.zero_point.as_ref().map(|it| read(it, StoredPart::ZeroPoint)).transpose()?;
        let stored = StoredRows {
            codes: &read(&self.codes, StoredPart::Codes)?,
            scale: &read(&self.scale, StoredPart::Scale)?,
            zero_point: zero_point.as_deref(),
            global_scale: self.global_scale,
            g_idx: self.g_idx.as_deref(),
        };
        let dtype = self.decompressor.dtype();
        self.decompressor.decompress_rows(rows.start, rows.len(), &stored, dtype, out).context(&self.codes.name)
    }
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

    /// A compressed weight.
    pub(crate) fn compressed(compressed: Compressed) -> Self {
        let [rows, cols] = compressed.decompressor.shape();
        let dtype = compressed.decompressor.dtype();
        Self { rows, cols, dtype, storage: Storage::Compressed(Arc::new(compressed)) }
    }

    /// A weight of another format.
    pub(crate) fn foreign(weight: ForeignWeight) -> Self {
        let (rows, cols, dtype) = (weight.rows, weight.cols, weight.dtype);
        Self { rows, cols, dtype, storage: Storage::Foreign(Arc::new(weight)) }
    }

    /// Whether it is stored in the layout of another format.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.storage, Storage::Foreign(_))
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
            Storage::Compressed(it) => &it.codes,
            Storage::Foreign(it) => it.tensor(),
        }
    }

    /// Rows that a slab starts at multiples of.
    pub(crate) fn row_quantum(&self) -> usize {
        match &self.storage {
            Storage::Rows { .. } | Storage::Gathered { .. } => 1,
            Storage::Compressed(it) => it.decompressor.row_quantum(),
            Storage::Foreign(it) => it.quantum,
        }
    }

    /// Bytes beside the slab itself that reading `rows` rows takes.
    pub(crate) fn scratch_bytes(&self, rows: usize) -> u64 {
        match &self.storage {
            Storage::Rows { .. } => 0,
            Storage::Gathered { part, .. } => part.spans(0..rows).map_or(0, |it| it.n_bytes() as u64),
            // Codes and scales take at most the dense row, and one row of f32 is worked on.
            Storage::Compressed(_) => (self.row_bytes() * (rows + 2)) as u64,
            Storage::Foreign(it) => it.scratch_bytes(rows),
        }
    }

    /// Least bytes of buffers that reading it in slabs takes.
    pub(crate) fn least_bytes(&self) -> u64 {
        let rows = self.row_quantum().min(self.rows);
        self.row_bytes() as u64 * rows as u64 + self.scratch_bytes(rows)
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
                let spans = part.spans(rows.clone()).context(&tensor.name)?;
                if rows.start == 0 {
                    // The spans of one slab touch a little of every page; all slabs together read it all.
                    source.will_read(tensor, part.source.start as u64, part.source.len() as u64)?;
                }
                let mut lying = vec![0; spans.n_bytes()];
                for (idx, span) in lying.chunks_exact_mut(spans.span_bytes.max(1)).enumerate() {
                    source.read_into(tensor, (spans.first_byte + idx * spans.stride_bytes) as u64, span)?;
                }
                part.extract_rows(rows, &lying, out).context(&tensor.name)?;
            }
            Storage::Compressed(it) => it.read_rows(source, rows, out)?,
            Storage::Foreign(it) => it.read_rows(source, rows, out)?,
        }
        Ok(())
    }
}
