//! Weights of other formats, made dense a few output rows at a time by the chain of converters they need.

use std::{ops::Range, sync::Arc};

use checkpoint::{Source, TensorEntry};
use compressed_tensors::{
    Array, DType, ModuleTensors,
    converters::{Converter, TensorShape, TensorShapes},
};
use serde_json::Value;

use crate::error::{ErrorKind, InContext, Result};

/// Output rows that slabs of column-packed formats begin at multiples of: a whole number of words for every width.
const COLUMN_QUANTUM: usize = 32;
/// Output rows that a scale of FP8 blocks covers where the config does not say.
const DEFAULT_BLOCK_ROWS: usize = 128;

/// The converters that make a source of another format dense.
pub(crate) struct ForeignMethod {
    /// The source's `quant_method`.
    pub(crate) name: String,
    chain: Arc<[Box<dyn Converter>]>,
    outputs: Outputs,
    block_rows: usize,
}

impl std::fmt::Debug for ForeignMethod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ForeignMethod").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Where a format has the outputs of a linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outputs {
    /// In the first dimension.
    Rows,
    /// In the last dimension.
    Columns,
}

impl ForeignMethod {
    /// The method of a section of `config.json`, or nothing where no converter reads it.
    ///
    /// # Errors
    /// `Format` where the section does not fit its method.
    pub(super) fn of(config: &Value, section: &Value, method: &str, context: &str) -> Result<Option<Self>> {
        let outputs = match method {
            "fp8" | "modelopt" | "modelopt_fp4" => Outputs::Rows,
            "awq" | "gptq" => Outputs::Columns,
            _ => return Ok(None),
        };
        let chain = compressed_tensors::converters::dense_chain(config, dense_dtype(config)).context(context)?;
        let block = section.get("weight_block_size").and_then(|it| it.get(0)).and_then(Value::as_u64);
        let block_rows = block.and_then(|it| usize::try_from(it).ok()).filter(|it| *it > 0);
        Ok(Some(Self {
            name: method.to_owned(),
            chain: chain.into(),
            outputs,
            block_rows: block_rows.unwrap_or(DEFAULT_BLOCK_ROWS),
        }))
    }

    /// The weight of module `name` where its tensors need conversion, with the names of those that make it up.
    ///
    /// # Errors
    /// `Format` for tensors that do not make up a module.
    pub(super) fn weight(
        &self,
        name: &str,
        tensors: Vec<(String, TensorEntry)>,
    ) -> Result<Option<(ForeignWeight, Vec<String>)>> {
        let stored: TensorShapes = tensors
            .iter()
            .map(|(local, it)| (local.clone(), TensorShape { dtype: it.dtype, shape: it.shape.clone() }))
            .collect();
        let mut planned = stored.clone();
        for converter in &*self.chain {
            planned = converter.plan_module(name, &planned).context(format!("module `{name}`"))?;
        }
        let Some(TensorShape { dtype, shape }) = planned.get("weight") else { return Ok(None) };
        let &[rows, cols] = &shape[..] else { return Ok(None) };
        if stored.get("weight") == planned.get("weight") || !dtype.is_dense_float() {
            return Ok(None);
        }
        let dtype = *dtype;
        let parts: Vec<_> = tensors.into_iter().filter(|(local, _)| planned.get(local) != stored.get(local)).collect();
        let names = parts.iter().map(|(_, it)| it.name.clone()).collect();
        let cuts = parts.iter().map(|(_, it)| self.cut(&it.shape, rows)).collect();
        let quantum = match self.outputs {
            Outputs::Rows => self.block_rows,
            Outputs::Columns => COLUMN_QUANTUM,
        };
        let (module, chain) = (name.to_owned(), Arc::clone(&self.chain));
        Ok(Some((ForeignWeight { module, rows, cols, dtype, parts, cuts, quantum, chain }, names)))
    }

    /// How output rows cut a tensor of this shape.
    fn cut(&self, shape: &[usize], rows: usize) -> Cut {
        match (self.outputs, shape) {
            (Outputs::Rows, &[first, ..]) if first == rows => Cut::First { rows_each: 1 },
            (Outputs::Rows, &[first, _]) if first == rows.div_ceil(self.block_rows) => {
                Cut::First { rows_each: self.block_rows }
            }
            (Outputs::Columns, &[_, last]) if last > 0 && rows.is_multiple_of(last) => {
                Cut::Last { rows_each: rows / last }
            }
            (Outputs::Columns, &[_, last]) if rows > 0 && (last * 32).is_multiple_of(rows) => {
                // Words of widths that do not divide 32, such as 3 bits: cut at whole runs of 32 rows.
                Cut::Words { words_per_32_rows: last * 32 / rows }
            }
            _ => Cut::Whole,
        }
    }
}

/// What of a stored tensor belongs to a range of output rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Entries of the first dimension, each for so many rows.
    First { rows_each: usize },
    /// Entries of the last dimension, each for so many rows.
    Last { rows_each: usize },
    /// Entries of the last dimension, so many for 32 rows.
    Words { words_per_32_rows: usize },
    /// All of it.
    Whole,
}

/// A weight of another format.
pub(crate) struct ForeignWeight {
    module: String,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) dtype: DType,
    parts: Vec<(String, TensorEntry)>,
    cuts: Vec<Cut>,
    pub(super) quantum: usize,
    chain: Arc<[Box<dyn Converter>]>,
}

impl std::fmt::Debug for ForeignWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ForeignWeight").field("module", &self.module).finish_non_exhaustive()
    }
}

impl ForeignWeight {
    /// The tensor that a fault should be reported for.
    pub(super) fn tensor(&self) -> &TensorEntry {
        &self.parts[0].1
    }

    /// Bytes that converting `rows` rows takes beside the dense rows.
    pub(super) fn scratch_bytes(&self, rows: usize) -> u64 {
        // Codes, unpacked, transposed and packed again, and an f32 of each value while it is dequantized.
        (rows * self.cols * 12) as u64
    }

    /// Reads `rows` as dense little-endian bytes.
    ///
    /// # Errors
    /// Faults of reading; `Format` for tensors that do not fit one another.
    pub(super) fn read_rows(&self, source: &Source, rows: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        let mut tensors = ModuleTensors::new();
        for ((local, entry), cut) in self.parts.iter().zip(&self.cuts) {
            tensors.insert(local.clone(), read_cut(source, entry, *cut, &rows)?);
        }
        for converter in &*self.chain {
            tensors = converter.process_module(&self.module, tensors).context(format!("module `{}`", self.module))?;
        }
        let weight = tensors.swap_remove("weight").filter(|it| it.shape == [rows.len(), self.cols]);
        let Some(weight) = weight else {
            let reason = format!("rows {rows:?} of it do not convert to rows");
            return Err(ErrorKind::Unexplained { module: self.module.clone(), reason }.into());
        };
        *out = weight.data;
        Ok(())
    }
}

/// The part of a tensor that `rows` need, as a tensor of its own.
fn read_cut(source: &Source, entry: &TensorEntry, cut: Cut, rows: &Range<usize>) -> Result<Array> {
    let width = entry.dtype.byte_len(1).unwrap_or(1);
    let mut shape = entry.shape.clone();
    let columns = match cut {
        Cut::Whole => {
            return Ok(Array { dtype: entry.dtype, shape, data: source.read(entry)? });
        }
        Cut::First { rows_each } => {
            let entries = rows.start / rows_each..rows.end.div_ceil(rows_each);
            let each = shape[1..].iter().product::<usize>() * width;
            let mut data = vec![0; entries.len() * each];
            source.read_into(entry, (entries.start * each) as u64, &mut data)?;
            shape[0] = entries.len();
            return Ok(Array { dtype: entry.dtype, shape, data });
        }
        Cut::Last { rows_each } => rows.start / rows_each..rows.end.div_ceil(rows_each),
        Cut::Words { words_per_32_rows } => {
            rows.start * words_per_32_rows / 32..(rows.end * words_per_32_rows).div_ceil(32)
        }
    };
    let line = shape[1] * width;
    let mut data = vec![0; shape[0] * columns.len() * width];
    for (idx, part) in data.chunks_exact_mut((columns.len() * width).max(1)).enumerate() {
        source.read_into(entry, (idx * line + columns.start * width) as u64, part)?;
    }
    shape[1] = columns.len();
    Ok(Array { dtype: entry.dtype, shape, data })
}

/// The type that the model computes in.
fn dense_dtype(config: &Value) -> DType {
    let of = |value: &Value| {
        let name = value.get("dtype").or_else(|| value.get("torch_dtype"))?.as_str()?;
        DType::from_torch_name(name).filter(|it| it.is_dense_float())
    };
    of(config).or_else(|| of(config.get("text_config")?)).unwrap_or(DType::BF16)
}
