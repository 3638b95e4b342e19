//! CSV and TSV with a header line.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use csv::{ByteRecord, Position, Reader, ReaderBuilder};
use serde_json::Value;

use super::{Row, Source, lines::open_regular};
use crate::{Error, ErrorKind, Place, Result};

/// The longest record that is read.
const MAX_RECORD_BYTES: u64 = 64 << 20;

/// A comma- or tab-separated file; every value is a string.
pub struct Csv {
    path: PathBuf,
    reader: Reader<BufReader<File>>,
    columns: Vec<String>,
    found: Vec<Position>,
    next: Position,
    complete: bool,
    record: ByteRecord,
}

impl Csv {
    /// Opens the file and reads its header; `.tsv` files are separated by tabs.
    ///
    /// # Errors
    /// [`ErrorKind::Absent`], [`ErrorKind::Io`], and [`ErrorKind::Malformed`] for a header with a column twice.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = BufReader::new(open_regular(path)?);
        // The csv crate would make a byte order mark part of the first column's name after a seek.
        let mut head = [0; 3];
        let marked = file.read_exact(&mut head).is_ok() && head == *b"\xef\xbb\xbf";
        if !marked {
            file.seek(SeekFrom::Start(0)).map_err(|e| Error::io("seeking", path, e))?;
        }
        let delimiter = if path.extension().is_some_and(|extension| extension == "tsv") { b'\t' } else { b',' };
        let mut reader = ReaderBuilder::new().delimiter(delimiter).has_headers(false).flexible(true).from_reader(file);
        let mut header = ByteRecord::new();
        reader.read_byte_record(&mut header).map_err(|e| malformed(path, 1, &e))?;
        let columns = header.iter().map(|name| text(name, path, 1)).collect::<Result<Vec<String>>>()?;
        if let Some(twice) = columns.iter().enumerate().find(|(i, name)| columns[..*i].contains(name)) {
            let reason = format!("column `{}` appears twice in the header", twice.1.escape_debug());
            return Err(Error::from(ErrorKind::Malformed { format: "CSV", reason }).at(place(path, 1)));
        }
        let mut next = reader.position().clone();
        if marked {
            next.set_byte(next.byte() + 3);
        }
        reader.seek(next.clone()).map_err(|e| malformed(path, 1, &e))?;
        Ok(Self {
            path: path.to_owned(),
            reader,
            columns,
            found: Vec::new(),
            next,
            complete: false,
            record: ByteRecord::new(),
        })
    }

    fn find_next(&mut self) -> Result<()> {
        let start = self.next.clone();
        let Some(record_start) = self.read(&start)? else {
            self.complete = true;
            return Ok(());
        };
        let end = self.reader.position().clone();
        if self.at_end(&end)? {
            self.check_quotes(&record_start, &end)?;
        }
        self.next = end;
        self.found.push(record_start);
        Ok(())
    }

    /// Reads the record that starts at or after `position` and returns where it starts.
    fn read(&mut self, position: &Position) -> Result<Option<Position>> {
        self.reader.seek(position.clone()).map_err(|e| malformed(&self.path, position.line(), &e))?;
        let more = self.reader.read_byte_record(&mut self.record);
        if !more.map_err(|e| malformed(&self.path, position.line(), &e))? {
            return Ok(None);
        }
        let start = self.record.position().cloned().unwrap_or_else(|| position.clone());
        Ok(Some(start))
    }

    fn at_end(&self, end: &Position) -> Result<bool> {
        let size = self.reader.get_ref().get_ref().metadata().map_err(|e| Error::io("reading", &self.path, e))?.len();
        Ok(end.byte() >= size)
    }

    /// A quote that nothing closes swallows the rest of the file, and only the last record can show it.
    fn check_quotes(&self, start: &Position, end: &Position) -> Result<()> {
        let mut file = open_regular(&self.path)?;
        file.seek(SeekFrom::Start(start.byte())).map_err(|e| Error::io("seeking", &self.path, e))?;
        let mut raw = Vec::new();
        let n_bytes = end.byte().saturating_sub(start.byte());
        file.take(n_bytes).read_to_end(&mut raw).map_err(|e| Error::io("reading", &self.path, e))?;
        let n_quotes = raw.iter().filter(|&&byte| byte == b'"').count();
        let opens = raw.first() == Some(&b'"') || raw.windows(2).any(|pair| matches!(pair, [b',' | b'\t', b'"']));
        if n_quotes % 2 == 1 && opens {
            let reason = "a quoted field is never closed".to_owned();
            return Err(Error::from(ErrorKind::Malformed { format: "CSV", reason }).at(place(&self.path, start.line())));
        }
        Ok(())
    }
}

impl Source for Csv {
    fn path(&self) -> &Path {
        &self.path
    }

    fn row(&mut self, index: usize) -> Result<Option<Row>> {
        while self.found.len() <= index && !self.complete {
            self.find_next()?;
        }
        let Some(position) = self.found.get(index).cloned() else { return Ok(None) };
        let Some(start) = self.read(&position)? else { return Ok(None) };
        let n_bytes = self.reader.position().byte().saturating_sub(start.byte());
        if n_bytes > MAX_RECORD_BYTES {
            let (found, limit) = (format!("{n_bytes} bytes"), format!("{MAX_RECORD_BYTES} bytes"));
            let kind = ErrorKind::TooLarge { what: "CSV record", found, limit };
            return Err(Error::from(kind).at(place(&self.path, start.line())));
        }
        if self.record.len() != self.columns.len() {
            let reason = format!("{} fields, the header has {}", self.record.len(), self.columns.len());
            return Err(Error::from(ErrorKind::Malformed { format: "CSV", reason }).at(place(&self.path, start.line())));
        }
        let mut row = Row::new();
        for (column, field) in self.columns.iter().zip(&self.record) {
            row.insert(column.clone(), Value::String(text(field, &self.path, start.line())?));
        }
        Ok(Some(row))
    }

    fn count(&mut self) -> Result<usize> {
        while !self.complete {
            self.find_next()?;
        }
        Ok(self.found.len())
    }

    fn place(&self, index: usize) -> Place {
        place(&self.path, self.found.get(index).unwrap_or(&self.next).line())
    }
}

fn place(path: &Path, line: u64) -> Place {
    Place { path: path.to_owned(), line: Some(line) }
}

fn malformed(path: &Path, line: u64, error: &csv::Error) -> Error {
    let line = error.position().map_or(line, Position::line);
    Error::from(ErrorKind::Malformed { format: "CSV", reason: error.to_string() }).at(place(path, line))
}

fn text(field: &[u8], path: &Path, line: u64) -> Result<String> {
    String::from_utf8(field.to_vec()).map_err(|_| {
        let reason = "a field is not UTF-8".to_owned();
        Error::from(ErrorKind::Malformed { format: "CSV", reason }).at(place(path, line))
    })
}
