//! A JSON file that is one array of rows, or of token rows.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    Row, Source,
    lines::{MAX_LINE_BYTES, open_regular},
};
use crate::{Error, ErrorKind, Place, Result};

/// A file `[{..}, {..}]`, or `[[1, 2], [3]]` where each list is a row with the column `input_ids`.
///
/// Positions of the elements are found once; elements are parsed when they are read.
pub struct JsonArray {
    path: PathBuf,
    file: File,
    /// Offset and bytes of each element.
    elements: Vec<(u64, u64)>,
}

impl JsonArray {
    /// Opens the file and finds its elements.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] unless the file is one array.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        let elements = Scan::default().run(path, BufReader::with_capacity(64 << 10, &file))?;
        Ok(Self { path: path.to_owned(), file, elements })
    }

    fn malformed(&self, index: usize, reason: String) -> Error {
        Error::from(ErrorKind::Malformed { format: "JSON", reason }).at(self.place(index))
    }
}

impl Source for JsonArray {
    fn path(&self) -> &Path {
        &self.path
    }

    fn row(&mut self, index: usize) -> Result<Option<Row>> {
        let Some(&(offset, n_bytes)) = self.elements.get(index) else { return Ok(None) };
        if n_bytes > MAX_LINE_BYTES {
            let (found, limit) = (format!("{n_bytes} bytes"), format!("{MAX_LINE_BYTES} bytes"));
            return Err(Error::from(ErrorKind::TooLarge { what: "row", found, limit }).at(self.place(index)));
        }
        let mut text = Vec::new();
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| (&mut self.file).take(n_bytes).read_to_end(&mut text))
            .map_err(|e| Error::io("reading", &self.path, e))?;
        match serde_json::from_slice(&text) {
            Ok(Value::Object(row)) => Ok(Some(row)),
            Ok(ids @ Value::Array(_)) => Ok(Some(Row::from_iter([("input_ids".to_owned(), ids)]))),
            Ok(_) => Err(self.malformed(index, "expected an object or a list of token ids per row".to_owned())),
            Err(e) => Err(self.malformed(index, e.to_string())),
        }
    }

    fn count(&mut self) -> Result<usize> {
        Ok(self.elements.len())
    }

    fn place(&self, index: usize) -> Place {
        Place { path: self.path.clone(), line: Some(index as u64 + 1) }
    }
}

/// Finds where the elements of the outer array start and end, by brackets and quotes alone.
#[derive(Default)]
struct Scan {
    elements: Vec<(u64, u64)>,
    depth: u64,
    in_string: bool,
    escaped: bool,
    /// Start of the element that is being read, and the end of its last byte that is no space.
    element: Option<(u64, u64)>,
    closed: bool,
}

impl Scan {
    fn run(mut self, path: &Path, mut reader: impl BufRead) -> Result<Vec<(u64, u64)>> {
        let mut offset = 0;
        loop {
            let bytes = reader.fill_buf().map_err(|e| Error::io("reading", path, e))?;
            if bytes.is_empty() {
                break;
            }
            for &byte in bytes {
                if let Err(reason) = self.byte(byte, offset) {
                    let kind = ErrorKind::Malformed { format: "JSON", reason: format!("{reason} at byte {offset}") };
                    return Err(Error::from(kind).in_file(path));
                }
                offset += 1;
            }
            let n_bytes = bytes.len();
            reader.consume(n_bytes);
        }
        if !self.closed {
            let reason = "the array is not closed, the file may be cut".to_owned();
            return Err(Error::from(ErrorKind::Malformed { format: "JSON", reason }).in_file(path));
        }
        Ok(self.elements)
    }

    fn byte(&mut self, byte: u8, offset: u64) -> std::result::Result<(), &'static str> {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            self.extend(offset);
            return Ok(());
        }
        if byte.is_ascii_whitespace() || (offset < 3 && b"\xef\xbb\xbf".contains(&byte)) {
            return Ok(());
        }
        if self.closed {
            return Err("content after the array");
        }
        match (self.depth, byte) {
            (0, b'[') => self.depth = 1,
            (0, _) => return Err("expected an array of rows"),
            (1, b',') => self.finish()?,
            (1, b']') => {
                if self.element.is_some() || !self.elements.is_empty() {
                    self.finish()?;
                }
                self.closed = true;
            }
            (_, b'[' | b'{') => {
                self.extend(offset);
                self.depth += 1;
            }
            (_, b']' | b'}') => {
                self.extend(offset);
                self.depth = self.depth.checked_sub(1).filter(|&depth| depth > 0).ok_or("a bracket too many")?;
            }
            _ => {
                self.in_string = byte == b'"';
                self.extend(offset);
            }
        }
        Ok(())
    }

    fn extend(&mut self, offset: u64) {
        self.element.get_or_insert((offset, offset)).1 = offset + 1;
    }

    fn finish(&mut self) -> std::result::Result<(), &'static str> {
        let (start, end) = self.element.take().ok_or("an element is missing")?;
        self.elements.push((start, end - start));
        Ok(())
    }
}
