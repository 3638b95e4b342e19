//! Rows of a data set, read one at a time from local files.

#[cfg(feature = "parquet")]
mod arrow;
mod csv;
mod folder;
mod json_array;
mod jsonl;
mod lines;
mod memory;
mod open;
#[cfg(feature = "parquet")]
mod parquet;
mod split;
mod text;

use std::path::Path;

use crate::Result;

#[cfg(feature = "parquet")]
pub use arrow::Arrow;
pub use csv::Csv;
pub use folder::{FileGroup, custom_files, rename_splits, split_files};
pub use json_array::JsonArray;
pub use jsonl::Jsonl;
pub use memory::Rows;
pub use open::{Joined, open, open_groups, open_split};
#[cfg(feature = "parquet")]
pub use parquet::Parquet;
pub use split::{Sliced, Split, split_name};
pub use text::Text;

pub(crate) use lines::open_regular;

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

    /// File and line of row `index` (or its row number where the format has no lines), once it has been reached.
    fn place(&self, index: usize) -> crate::Place;

    /// Says which rows will be asked for, so that a source that decodes forward can do it in one pass.
    ///
    /// # Errors
    /// I/O errors and malformed content, with file and line.
    fn expect_rows(&mut self, _rows: &[usize]) -> Result<()> {
        Ok(())
    }
}
