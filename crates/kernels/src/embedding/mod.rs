//! Rows of a table, gathered by index.

pub mod reference;

use crate::Result;
use crate::error::{Error, ErrorKind, check_len};

/// `out[i] = table[ids[i]]`: table (V, width), out (len of ids, width).
///
/// An id beyond the table is [`Index`](ErrorKind::Index), found before anything is written.
pub fn gather<T: Copy + Send + Sync>(ids: &[u32], table: &[T], width: usize, out: &mut [T]) -> Result<()> {
    let rows = crate::rows::check_rows("embedding: table", table.len(), width)?;
    check_len("embedding: out", out.len(), &[ids.len(), width])?;
    if let Some(position) = ids.iter().position(|&id| id as usize >= rows) {
        let kind = ErrorKind::Index { found: ids[position] as usize, position, bound: rows };
        return Err(Error::new("embedding: ids", kind));
    }
    reference::gather(ids, table, width, out);
    Ok(())
}
