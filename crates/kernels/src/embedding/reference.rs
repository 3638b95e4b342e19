//! The gather in a plain loop.

/// Row after row; ids are below the number of rows.
pub fn gather<T: Copy>(ids: &[u32], table: &[T], width: usize, out: &mut [T]) {
    for (&id, out) in ids.iter().zip(out.chunks_exact_mut(width.max(1))) {
        out.copy_from_slice(&table[id as usize * width..][..width]);
    }
}
