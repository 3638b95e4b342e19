//! Rows of a table, gathered by index.

pub mod reference;

use rayon::prelude::*;

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
    if width == 0 {
        return Ok(());
    }
    let lines = (crate::rows::TASK_ELEMENTS / width).max(1);
    let chunks = ids.par_chunks(lines).zip(out.par_chunks_mut(lines * width));
    chunks.for_each(|(ids, out)| reference::gather(ids, table, width, out));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_gathered_and_an_id_beyond_the_table_is_told_with_its_position() {
        let table: Vec<u16> = (0..12).collect();
        let mut out = [0; 9];
        gather(&[3, 0, 3], &table, 3, &mut out).unwrap();
        assert_eq!(out, [9, 10, 11, 0, 1, 2, 9, 10, 11]);
        let error = gather(&[0, 4, 1], &table, 3, &mut out).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Index { found: 4, position: 1, bound: 4 });
        assert_eq!(out[0], 9);
        assert_eq!(gather(&[0], &table, 5, &mut out[..5]).unwrap_err().place(), "embedding: table");
        gather(&[], &table, 3, &mut []).unwrap();
    }
}
