//! JSON lines: one object per line.

use std::path::Path;

use super::{Row, Source, lines::Lines};
use crate::{Error, ErrorKind, Place, Result};

/// A file with one JSON object per line; blank lines are skipped.
pub struct Jsonl {
    lines: Lines,
}

impl Jsonl {
    /// Opens the file; nothing is read yet.
    ///
    /// # Errors
    /// [`ErrorKind::Absent`] or [`ErrorKind::Io`] if it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { lines: Lines::open(path)? })
    }
}

impl Source for Jsonl {
    fn path(&self) -> &Path {
        self.lines.path()
    }

    fn row(&mut self, index: usize) -> Result<Option<Row>> {
        let Some(line) = self.lines.get(index)? else { return Ok(None) };
        let parsed = serde_json::from_str::<Row>(line).map_err(|e| {
            let reason = if e.is_data() { format!("expected an object per line, {e}") } else { e.to_string() };
            Error::from(ErrorKind::Malformed { format: "JSON", reason })
        });
        parsed.map(Some).map_err(|e| e.at(self.place(index)))
    }

    fn count(&mut self) -> Result<usize> {
        self.lines.count()
    }

    fn place(&self, index: usize) -> Place {
        self.lines.place(index)
    }
}
