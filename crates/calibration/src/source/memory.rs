//! Rows that are in memory already.

use std::path::{Path, PathBuf};

use super::{Row, Source};
use crate::{Place, Result};

/// Rows handed over by a caller.
pub struct Rows {
    rows: Vec<Row>,
    name: PathBuf,
}

impl Rows {
    /// Rows under a name that errors show.
    pub fn new(name: &str, rows: Vec<Row>) -> Self {
        Self { rows, name: PathBuf::from(name) }
    }
}

impl Source for Rows {
    fn path(&self) -> &Path {
        &self.name
    }

    fn row(&mut self, index: usize) -> Result<Option<Row>> {
        Ok(self.rows.get(index).cloned())
    }

    fn count(&mut self) -> Result<usize> {
        Ok(self.rows.len())
    }

    fn place(&self, index: usize) -> Place {
        Place { path: self.name.clone(), line: Some(index as u64 + 1) }
    }
}
