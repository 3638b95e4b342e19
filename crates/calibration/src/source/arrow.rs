//! Arrow IPC files and streams, as the `datasets` library saves them.

use std::{
    collections::HashMap,
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use arrow_array::{Array, RecordBatch, cast::AsArray, types};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, DataType};
use serde_json::{Map, Value};

use super::{Row, Source, lines::open_regular};
use crate::{Error, ErrorKind, Place, Result, tokenizer::guarded};

/// More expected rows than this are not held.
const MAX_HELD_ROWS: usize = 4096;
/// Deeper nesting of lists and structs is refused.
const MAX_DEPTH: usize = 32;

type Batches = Box<dyn Iterator<Item = std::result::Result<RecordBatch, ArrowError>> + Send>;

/// An Arrow file; rows become JSON objects, columns of types that JSON lacks are left out.
pub struct Arrow {
    path: PathBuf,
    /// Index of the first row of each batch that was passed, and of the first after them.
    starts: Vec<usize>,
    complete: bool,
    cursor: Option<Cursor>,
    /// Rows that were announced and decoded on the way to others.
    held: HashMap<usize, Row>,
}

/// Where decoding stands: batches come one after the other.
struct Cursor {
    batches: Batches,
    /// Index of `batch` among all batches.
    index: usize,
    batch: RecordBatch,
}

impl Arrow {
    /// Opens the file; nothing is decoded yet.
    ///
    /// # Errors
    /// [`ErrorKind::Absent`] or [`ErrorKind::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        open_regular(path)?;
        let (cursor, held) = (None, HashMap::new());
        Ok(Self { path: path.to_owned(), starts: vec![0], complete: false, cursor, held })
    }

    fn batches(&self) -> Result<Batches> {
        let mut file = open_regular(&self.path)?;
        let mut magic = [0; 6];
        let is_file = file.read_exact(&mut magic).is_ok() && &magic == b"ARROW1";
        file.seek(SeekFrom::Start(0)).map_err(|e| Error::io("seeking", &self.path, e))?;
        let file = BufReader::with_capacity(1 << 20, file);
        self.decode(|| match is_file {
            true => Ok(Box::new(FileReader::try_new(file, None)?) as Batches),
            false => Ok(Box::new(StreamReader::try_new(file, None)?) as Batches),
        })
    }

    /// Moves to the next batch, from the start of the file if there is no cursor; false at the end.
    fn advance(&mut self) -> Result<bool> {
        let (mut batches, index) = match self.cursor.take() {
            Some(cursor) => (cursor.batches, cursor.index + 1),
            None => (self.batches()?, 0),
        };
        // A reader that fails is dropped: where it stands is not known.
        let next = self.decode(|| Ok((batches.next().transpose()?, batches)))?;
        let (Some(batch), batches) = next else {
            self.complete = true;
            return Ok(false);
        };
        if index + 1 == self.starts.len() {
            self.starts.push(self.starts[index] + batch.num_rows());
        }
        self.cursor = Some(Cursor { batches, index, batch });
        Ok(true)
    }

    fn decode_row(&mut self, index: usize) -> Result<Option<Row>> {
        loop {
            // The batch of the row, if it was passed before.
            let passed = self.starts.partition_point(|&start| start <= index) - 1;
            let is_known = passed + 1 < self.starts.len();
            match &self.cursor {
                Some(cursor) if is_known && cursor.index == passed => {
                    let row = index - self.starts[passed];
                    return self.decode(|| row_of(&cursor.batch, row)).map(Some);
                }
                // Batches come in order only: one that lies behind needs a new start.
                Some(cursor) if is_known && cursor.index > passed => self.cursor = None,
                _ if !is_known && self.complete => return Ok(None),
                _ => {
                    self.advance()?;
                }
            }
        }
    }

    /// Runs the library, whose panics on crafted files are errors here.
    fn decode<T>(&self, run: impl FnOnce() -> std::result::Result<T, ArrowError>) -> Result<T> {
        let reason = match guarded(run) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error.to_string(),
            Err(said) => format!("the content breaks the Arrow library: {said}"),
        };
        Err(Error::from(ErrorKind::Malformed { format: "Arrow", reason }).in_file(&self.path))
    }
}

impl Source for Arrow {
    fn path(&self) -> &Path {
        &self.path
    }

    fn row(&mut self, index: usize) -> Result<Option<Row>> {
        match self.held.get(&index) {
            Some(row) => Ok(Some(row.clone())),
            None => self.decode_row(index),
        }
    }

    fn count(&mut self) -> Result<usize> {
        while !self.complete {
            self.advance()?;
        }
        Ok(self.starts.last().copied().unwrap_or(0))
    }

    fn place(&self, index: usize) -> Place {
        Place { path: self.path.clone(), line: Some(index as u64 + 1) }
    }

    /// Decodes the rows in file order and holds them: batches come in order only.
    fn expect_rows(&mut self, rows: &[usize]) -> Result<()> {
        if rows.len() > MAX_HELD_ROWS {
            return Ok(());
        }
        let mut rows = rows.to_vec();
        rows.sort_unstable();
        for index in rows {
            // A row that cannot be decoded is reported when it is asked for.
            if let Ok(Some(row)) = self.decode_row(index) {
                self.held.insert(index, row);
            }
        }
        Ok(())
    }
}

fn row_of(batch: &RecordBatch, row: usize) -> std::result::Result<Row, ArrowError> {
    let mut out = Row::new();
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        if let Some(value) = value_of(column.as_ref(), row, 0)? {
            out.insert(field.name().clone(), value);
        }
    }
    Ok(out)
}

/// The value of a row, or `None` for a type that JSON lacks.
fn value_of(array: &dyn Array, row: usize, depth: usize) -> std::result::Result<Option<Value>, ArrowError> {
    macro_rules! primitive {
        ($kind:ident) => {
            Value::from(array.as_primitive::<types::$kind>().value(row))
        };
    }
    if depth > MAX_DEPTH {
        return Err(ArrowError::InvalidArgumentError(format!("nested deeper than {MAX_DEPTH}")));
    }
    if array.is_null(row) {
        return Ok(Some(Value::Null));
    }
    let list = |items: arrow_array::ArrayRef| {
        let values = (0..items.len()).map(|i| Ok(value_of(items.as_ref(), i, depth + 1)?.unwrap_or(Value::Null)));
        values.collect::<std::result::Result<Vec<_>, ArrowError>>().map(Value::Array)
    };
    Ok(Some(match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => Value::from(array.as_boolean().value(row)),
        DataType::Int8 => primitive!(Int8Type),
        DataType::Int16 => primitive!(Int16Type),
        DataType::Int32 => primitive!(Int32Type),
        DataType::Int64 => primitive!(Int64Type),
        DataType::UInt8 => primitive!(UInt8Type),
        DataType::UInt16 => primitive!(UInt16Type),
        DataType::UInt32 => primitive!(UInt32Type),
        DataType::UInt64 => primitive!(UInt64Type),
        DataType::Float32 => primitive!(Float32Type),
        DataType::Float64 => primitive!(Float64Type),
        DataType::Utf8 => Value::from(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => Value::from(array.as_string::<i64>().value(row)),
        DataType::Utf8View => Value::from(array.as_string_view().value(row)),
        DataType::List(_) => list(array.as_list::<i32>().value(row))?,
        DataType::LargeList(_) => list(array.as_list::<i64>().value(row))?,
        DataType::FixedSizeList(..) => list(array.as_fixed_size_list().value(row))?,
        DataType::Struct(fields) => {
            let mut out = Map::new();
            for (field, column) in fields.iter().zip(array.as_struct().columns()) {
                if let Some(value) = value_of(column.as_ref(), row, depth + 1)? {
                    out.insert(field.name().clone(), value);
                }
            }
            Value::Object(out)
        }
        _ => return Ok(None),
    }))
}
