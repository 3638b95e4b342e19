//! Parquet files, decoded forward from the start of a row group.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use parquet::{
    errors::ParquetError,
    file::{
        reader::FileReader,
        serialized_reader::{ReadOptionsBuilder, SerializedFileReader},
    },
    record::reader::RowIter,
};
use serde_json::Value;

use super::{Row, Source, lines::open_regular};
use crate::{Error, ErrorKind, Place, Result, tokenizer::guarded};

/// More expected rows than this are not held.
const MAX_HELD_ROWS: usize = 4096;

/// A Parquet file; rows become JSON objects.
pub struct Parquet {
    path: PathBuf,
    /// Index of the first row of each group, and of the first after them.
    starts: Vec<usize>,
    cursor: Option<Cursor>,
    /// Rows that were announced and decoded on the way to others.
    held: HashMap<usize, Row>,
}

/// A group that is being decoded.
struct Cursor {
    group: usize,
    next_row: usize,
    rows: RowIter<'static>,
}

impl Parquet {
    /// Opens the file and reads its footer.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] for a footer that cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        let mut starts = vec![0];
        let counts = decode(path, None, || {
            let reader = SerializedFileReader::new(file)?;
            Ok(reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect::<Vec<i64>>())
        })?;
        for count in counts {
            let start = starts.last().copied().unwrap_or(0);
            let next = usize::try_from(count).ok().and_then(|count| usize::checked_add(start, count));
            starts.push(next.ok_or_else(|| malformed(path, None, "a row group has an impossible count".to_owned()))?);
        }
        Ok(Self { path: path.to_owned(), starts, cursor: None, held: HashMap::new() })
    }

    fn open_group(&self, group: usize) -> Result<Cursor> {
        let file = open_regular(&self.path)?;
        let rows = decode(&self.path, None, || {
            let only = ReadOptionsBuilder::new().with_predicate(Box::new(move |_, index| index == group)).build();
            let reader = SerializedFileReader::new_with_options(file, only)?;
            Ok(RowIter::from_file_into(Box::new(reader)))
        })?;
        Ok(Cursor { group, next_row: self.starts[group], rows })
    }

    fn decode_row(&mut self, index: usize) -> Result<Option<Row>> {
        let group = self.starts.partition_point(|&start| start <= index) - 1;
        if group + 1 >= self.starts.len() {
            return Ok(None);
        }
        let mut cursor = match self.cursor.take() {
            Some(cursor) if cursor.group == group && cursor.next_row <= index => cursor,
            _ => self.open_group(group)?,
        };
        let line = Some(index as u64 + 1);
        let found = decode(&self.path, line, || {
            // A cursor that fails is dropped: where it stands is not known.
            let row = cursor.rows.nth(index - cursor.next_row).transpose()?;
            Ok((cursor, row.map(|row| row.to_json_value())))
        })?;
        match found {
            (mut cursor, Some(Value::Object(row))) => {
                cursor.next_row = index + 1;
                self.cursor = Some(cursor);
                Ok(Some(row))
            }
            _ => Err(malformed(&self.path, line, "the group has fewer rows than the footer says".to_owned())),
        }
    }
}

impl Source for Parquet {
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
        Ok(self.starts.last().copied().unwrap_or(0))
    }

    fn place(&self, index: usize) -> Place {
        Place { path: self.path.clone(), line: Some(index as u64 + 1) }
    }

    /// Decodes the rows in file order and holds them: a group cannot be entered in its middle.
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

/// Runs the library, whose panics on crafted files are errors here.
fn decode<T>(path: &Path, line: Option<u64>, run: impl FnOnce() -> std::result::Result<T, ParquetError>) -> Result<T> {
    match guarded(run) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(malformed(path, line, error.to_string())),
        Err(said) => Err(malformed(path, line, format!("the content breaks the Parquet library: {said}"))),
    }
}

fn malformed(path: &Path, line: Option<u64>, reason: String) -> Error {
    let place = Place { path: path.to_owned(), line };
    Error::from(ErrorKind::Malformed { format: "Parquet", reason }).at(place)
}
