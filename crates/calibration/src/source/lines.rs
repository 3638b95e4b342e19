//! Positions of the non-blank lines of a text file, found as far as asked for.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use crate::{Error, ErrorKind, Place, Result};

/// The longest line that is read; a longer one is an error and is never held in memory.
pub(crate) const MAX_LINE_BYTES: u64 = 64 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Where a non-blank line is.
#[derive(Clone, Copy)]
struct Position {
    offset: u64,
    line: u64,
}

/// A text file addressed by non-blank line.
pub(crate) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    /// Offset at which `reader` stands.
    at: u64,
    found: Vec<Position>,
    /// Where the search for further lines goes on.
    next: Position,
    complete: bool,
    buffer: Vec<u8>,
}

impl Lines {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        Ok(Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(64 << 10, file),
            at: 0,
            found: Vec::new(),
            next: Position { offset: 0, line: 1 },
            complete: false,
            buffer: Vec::new(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Place of the `index`-th non-blank line, if it has been reached, else of the last line seen.
    pub(crate) fn place(&self, index: usize) -> Place {
        let line = self.found.get(index).map_or(self.next.line, |position| position.line);
        Place { path: self.path.clone(), line: Some(line) }
    }

    pub(crate) fn count(&mut self) -> Result<usize> {
        while !self.complete {
            self.find_next()?;
        }
        Ok(self.found.len())
    }

    /// The `index`-th non-blank line without its end, as text.
    pub(crate) fn get(&mut self, index: usize) -> Result<Option<&str>> {
        while self.found.len() <= index && !self.complete {
            self.find_next()?;
        }
        let Some(&position) = self.found.get(index) else { return Ok(None) };
        self.seek(position.offset)?;
        self.read_line(position)?;
        let line = content(&self.buffer, position.offset);
        match std::str::from_utf8(line) {
            Ok(text) => Ok(Some(text)),
            Err(e) => {
                let reason = format!("byte {} of the line is not UTF-8", e.valid_up_to() + 1);
                let kind = ErrorKind::Malformed { format: "text", reason };
                Err(Error::from(kind).at(self.at_line(position)))
            }
        }
    }

    /// Moves past one line, recording it unless it is blank.
    fn find_next(&mut self) -> Result<()> {
        let position = self.next;
        self.seek(position.offset)?;
        let n_bytes = self.read_line(position)?;
        if n_bytes == 0 {
            self.complete = true;
            return Ok(());
        }
        self.next = Position { offset: position.offset + n_bytes, line: position.line + 1 };
        if !content(&self.buffer, position.offset).iter().all(u8::is_ascii_whitespace) {
            self.found.push(position);
        }
        Ok(())
    }

    fn at_line(&self, position: Position) -> Place {
        Place { path: self.path.clone(), line: Some(position.line) }
    }

    fn seek(&mut self, offset: u64) -> Result<()> {
        if self.at != offset {
            self.reader.seek(SeekFrom::Start(offset)).map_err(|e| Error::io("seeking", &self.path, e))?;
            self.at = offset;
        }
        Ok(())
    }

    /// Reads the line at the reader's place into the buffer and returns its bytes, end included.
    fn read_line(&mut self, position: Position) -> Result<u64> {
        self.buffer.clear();
        let n_bytes = (&mut self.reader)
            .take(MAX_LINE_BYTES + 1)
            .read_until(b'\n', &mut self.buffer)
            .map_err(|e| Error::io("reading", &self.path, e))? as u64;
        self.at += n_bytes;
        if n_bytes > MAX_LINE_BYTES {
            let kind = ErrorKind::TooLarge {
                what: "line",
                found: format!("more than {MAX_LINE_BYTES} bytes"),
                limit: format!("{MAX_LINE_BYTES} bytes"),
            };
            return Err(Error::from(kind).at(self.at_line(position)));
        }
        Ok(n_bytes)
    }
}

/// The line without its end and, at the head of the file, without a byte order mark.
fn content(line: &[u8], offset: u64) -> &[u8] {
    let line = if offset == 0 { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line) } else { line };
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// Opens a file that can be read at any offset; a pipe or a device is refused before it can block.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io("opening", path, e))?;
    if !metadata.is_file() {
        let reason = "it is not a regular file".to_owned();
        return Err(Error::from(ErrorKind::Malformed { format: "data file", reason }).in_file(path));
    }
    File::open(path).map_err(|e| Error::io("opening", path, e))
}
