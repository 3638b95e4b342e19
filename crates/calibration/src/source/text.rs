//! Plain text: one sample per line.

use std::path::Path;

use serde_json::Value;

use super::{Row, Source, lines::Lines};
use crate::{Place, Result};

/// A text file whose non-blank lines are rows with the column `text`.
pub struct Text {
    lines: Lines,
}

impl Text {
    /// Opens the file; nothing is read yet.
    ///
    /// # Errors
    /// [`ErrorKind::Absent`](crate::ErrorKind::Absent) or [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { lines: Lines::open(path)? })
    }
}

impl Source for Text {
    fn path(&self) -> &Path {
        self.lines.path()
    }

    fn row(&mut self, index: usize) -> Result<Option<Row>> {
        let line = self.lines.get(index)?;
        Ok(line.map(|line| Row::from_iter([("text".to_owned(), Value::String(line.to_owned()))])))
    }

    fn count(&mut self) -> Result<usize> {
        self.lines.count()
    }

    fn place(&self, index: usize) -> Place {
        self.lines.place(index)
    }
}
