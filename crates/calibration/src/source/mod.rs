//! Rows of a data set, read one at a time from local files.

mod jsonl;
mod lines;

use std::path::Path;

use crate::Result;

pub use jsonl::Jsonl;

/// One row: columns in file order.
pub type Row = serde_json::Map<String, serde_json::Value>;

/// Rows that can be read in any order, of which only positions are kept in memory.
pub trait Source: Send {
    /// The file or folder the rows come from; errors name it.
    fn path(&self) -> &Path;

    /// Reads row `index`, or `None` past the last row.
    ///
    /// A source whose length is not known yet reads no further than that row.
    ///
    /// # Errors
    /// I/O errors and malformed content, with file and line.
    fn row(&mut self, index: usize) -> Result<Option<Row>>;

    /// Number of rows; may read the whole file once.
    ///
    /// # Errors
    /// I/O errors and malformed content, with file and line.
    fn count(&mut self) -> Result<usize>;

    /// Line of row `index` (or its row number where the format has no lines), counted from 1, once it has been reached.
    fn line(&self, index: usize) -> u64;
}
