//! What a product writes: which elements, and what becomes of those that are there.

use std::ops::Range;

use super::tile::Write;

/// Which elements of a square result are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// All.
    All,
    /// Those on the diagonal and above.
    Upper,
    /// Those on the diagonal and below.
    Lower,
}

impl Region {
    /// Whether any element of a tile is wanted.
    pub(super) fn meets(self, (row, rows): (usize, usize), (col, cols): (usize, usize)) -> bool {
        match self {
            Self::All => true,
            Self::Upper => col + cols > row,
            Self::Lower => row + rows > col,
        }
    }

    /// Whether all elements of a tile are wanted.
    pub(super) fn holds(self, (row, rows): (usize, usize), (col, cols): (usize, usize)) -> bool {
        match self {
            Self::All => true,
            Self::Upper => col + 1 >= row + rows,
            Self::Lower => row + 1 >= col + cols,
        }
    }

    /// Which of `cols` columns from `col` on are wanted of a row, counted from the first of them.
    pub(super) fn columns(self, row: usize, (col, cols): (usize, usize)) -> Range<usize> {
        match self {
            Self::All => 0..cols,
            Self::Upper => row.saturating_sub(col).min(cols)..cols,
            Self::Lower => 0..(row + 1).saturating_sub(col).min(cols),
        }
    }
}

/// How a product meets what `c` holds, and which part of it is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// What the first panel of k does; later panels add, or continue the chain where the first does.
    pub write: Write,
    /// Which elements are written.
    pub region: Region,
    /// Whether the product is subtracted.
    pub negate: bool,
}

impl Update {
    /// c = a @ b.
    pub const STORE: Self = Self { write: Write::Store, region: Region::All, negate: false };
}
