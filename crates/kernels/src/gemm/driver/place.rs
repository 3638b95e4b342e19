//! Where a tile goes: into the result, or at an edge by way of a patch.

use super::{Region, Sum};
use crate::MatMut;
use crate::gemm::tile::{Lines, Tile, Write};

/// Elements of the largest tile of any kernel.
const MAX_TILE: usize = 14 * 32;

/// The result, shared by tasks that write disjoint tiles.
#[derive(Clone, Copy)]
pub(super) struct Shared<C>(Lines<*mut C>);

// SAFETY: tasks write disjoint tiles, and the borrow of the result outlives them.
unsafe impl<C> Sync for Shared<C> {}
// SAFETY: as above.
unsafe impl<C> Send for Shared<C> {}

/// Operands and place of a tile.
pub(super) struct At<'a, T> {
    /// The left operand, and how many elements lie from one step to the next.
    pub(super) a: (&'a [T], usize),
    /// The right operand, a panel.
    pub(super) b: &'a [T],
    pub(super) steps: usize,
    /// First row, and how many there are.
    pub(super) rows: (usize, usize),
    /// First column, and how many there are.
    pub(super) cols: (usize, usize),
}

impl<C: Sum> Shared<C> {
    pub(super) fn new(c: &mut MatMut<'_, C>) -> Self {
        Self(Lines::new(c.as_mut_ptr(), c.row_stride()))
    }

    /// Computes a tile; of one that is not wanted as a whole nothing else is touched.
    ///
    /// # Safety
    ///
    /// Rows and columns lie within the result, whose borrow lives, and nothing else reads or writes what is wanted of them; the
    /// processor has the tile's instructions.
    pub(super) unsafe fn tile<T>(self, tile: Tile<T, C>, at: At<'_, T>, region: Region, write: Write) {
        let At { a: (a, a_stride), b, steps, rows: (row, n_rows), cols: (col, n_cols) } = at;
        let (width, stride) = (tile.width, self.0.stride);
        // These bounds are those of the tile's pointers.
        let (a, b) = (&a[..(steps - 1) * a_stride + n_rows], &b[..steps * width]);
        let a = Lines::new(a.as_ptr(), a_stride);
        let to = self.0.start.wrapping_add(row * stride + col);
        if n_cols == width && region.holds((row, n_rows), (col, n_cols)) {
            // SAFETY: the operands cover all steps; the caller states the rest.
            return unsafe { (tile.run)(steps, a, b.as_ptr(), Lines::new(to, stride), n_rows, write) };
        }
        let mut patch = [C::default(); MAX_TILE];
        let wanted = |i: usize| region.columns(row + i, (col, n_cols));
        // SAFETY: the caller states that what is wanted lies within the result and that this task alone has it; the slices of two
        // calls do not live at the same time.
        let line = |i: usize| unsafe {
            std::slice::from_raw_parts_mut(to.wrapping_add(i * stride + wanted(i).start), wanted(i).len())
        };
        for i in 0..n_rows {
            patch[i * width..][wanted(i)].copy_from_slice(line(i));
        }
        // SAFETY: the operands cover all steps, and the patch holds the largest tile of every kernel.
        unsafe { (tile.run)(steps, a, b.as_ptr(), Lines::new(patch.as_mut_ptr(), width), n_rows, write) };
        for i in 0..n_rows {
            line(i).copy_from_slice(&patch[i * width..][wanted(i)]);
        }
    }
}

impl Shared<f64> {
    /// Computes a tile of f32 sums, and adds what is wanted of it.
    ///
    /// # Safety
    ///
    /// As of [`Shared::tile`].
    pub(super) unsafe fn add_tile<T>(self, tile: Tile<T, f32>, at: At<'_, T>, region: Region) {
        let (width, stride) = (tile.width, self.0.stride);
        let ((row, n_rows), (col, n_cols)) = (at.rows, at.cols);
        let mut patch = [0.0f32; MAX_TILE];
        let sums = Shared(Lines::new(patch.as_mut_ptr(), width));
        // SAFETY: the patch holds the largest tile of every kernel; the caller states that the processor has the instructions.
        unsafe { sums.tile(tile, At { rows: (0, n_rows), cols: (0, n_cols), ..at }, Region::All, Write::Store) };
        for i in 0..n_rows {
            let wanted = region.columns(row + i, (col, n_cols));
            let start = self.0.start.wrapping_add((row + i) * stride + col + wanted.start);
            // SAFETY: the caller states that what is wanted lies within the result and that this task alone has it; the slices of
            // two lines do not live at the same time.
            let line = unsafe { std::slice::from_raw_parts_mut(start, wanted.len()) };
            line.iter_mut().zip(&patch[i * width..][wanted]).for_each(|(to, sum)| *to += f64::from(*sum));
        }
    }
}
