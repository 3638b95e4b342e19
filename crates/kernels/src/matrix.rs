//! Strided views of matrices, checked once so that kernels need not check again.

use rayon::prelude::*;

use crate::error::{Error, ErrorKind, Result};

/// A matrix in a slice: element (i, j) lies at `i * row_stride + j * col_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// A dense row-major matrix; `data` holds exactly `rows * cols` elements.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Result<Self> {
        crate::error::check_len("matrix: data", data.len(), &[rows, cols])?;
        Ok(Self { data, rows, cols, row_stride: cols, col_stride: 1 })
    }

    /// A row-major matrix whose rows start `row_stride` elements apart; `data` may be longer than needed.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
        check_span(data.len(), rows, cols, row_stride)?;
        Ok(Self { data, rows, cols, row_stride, col_stride: 1 })
    }

    /// The transpose, without a copy.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Rows and columns of a part that lies within the matrix.
    pub(crate) fn sub(self, row: usize, rows: usize, col: usize, cols: usize) -> Self {
        let data = self.data.get(row * self.row_stride + col * self.col_stride..).unwrap_or_default();
        Self { data, rows, cols, ..self }
    }

    pub(crate) fn data(&self) -> &'a [T] {
        self.data
    }

    pub(crate) fn row_stride(&self) -> usize {
        self.row_stride
    }

    pub(crate) fn col_stride(&self) -> usize {
        self.col_stride
    }
}

impl<T: Copy> Mat<'_, T> {
    pub(crate) fn at(&self, row: usize, col: usize) -> T {
        self.data[row * self.row_stride + col * self.col_stride]
    }
}

/// A matrix to write to: row-major, rows `row_stride` elements apart.
#[derive(Debug)]
pub struct MatMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a, T> MatMut<'a, T> {
    /// A dense row-major matrix; `data` holds exactly `rows * cols` elements.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Result<Self> {
        crate::error::check_len("matrix: data", data.len(), &[rows, cols])?;
        Ok(Self { data, rows, cols, row_stride: cols })
    }

    /// A row-major matrix whose rows start `row_stride >= cols` elements apart; `data` may be longer than needed.
    pub fn strided(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
        check_span(data.len(), rows, cols, row_stride)?;
        Ok(Self { data, rows, cols, row_stride })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn row_stride(&self) -> usize {
        self.row_stride
    }

    pub(crate) fn row_mut(&mut self, row: usize) -> &mut [T] {
        let start = row * self.row_stride;
        &mut self.data[start..start + self.cols]
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut T {
        self.data.as_mut_ptr()
    }

    pub(crate) fn reborrow(&mut self) -> MatMut<'_, T> {
        MatMut { data: self.data, ..*self }
    }

    /// A part that lies within the matrix.
    pub(crate) fn sub(&mut self, row: usize, rows: usize, col: usize, cols: usize) -> MatMut<'_, T> {
        let data = self.data.get_mut(row * self.row_stride + col..).unwrap_or_default();
        MatMut { data, rows, cols, row_stride: self.row_stride }
    }
}

impl<T: Send> MatMut<'_, T> {
    /// The rows, for threads to share.
    pub(crate) fn par_rows(&mut self) -> impl IndexedParallelIterator<Item = &mut [T]> {
        let cols = self.cols;
        // Chunks must not be empty; a matrix without columns has no row worth visiting.
        let rows = if cols == 0 { 0 } else { self.rows };
        self.data.par_chunks_mut(self.row_stride.max(1)).take(rows).map(move |row| &mut row[..cols])
    }
}

impl<T: crate::Element> MatMut<'_, T> {
    /// The same matrix where T is f32.
    pub(crate) fn as_f32(&mut self) -> Option<MatMut<'_, f32>> {
        let &mut Self { rows, cols, row_stride, .. } = self;
        T::f32_mut(self.data).map(|data| MatMut { data, rows, cols, row_stride })
    }
}

fn check_span(len: usize, rows: usize, cols: usize, row_stride: usize) -> Result<()> {
    if row_stride < cols {
        let expected = format!("at least the {cols} columns");
        return Err(Error::new("matrix: row stride", ErrorKind::Extent { found: row_stride, expected }));
    }
    let last = rows.saturating_sub(1).checked_mul(row_stride).and_then(|start| start.checked_add(cols));
    let expected = if rows == 0 { 0 } else { last.unwrap_or(usize::MAX) };
    if len < expected {
        return Err(Error::new("matrix: data", ErrorKind::Length { found: len, expected }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_too_short_for_its_shape_is_refused_with_both_numbers() {
        let error = Mat::new(&[0.0f32; 5], 2, 3).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Length { found: 5, expected: 6 });
        let error = Mat::strided(&[0.0f32; 9], 3, 2, 4).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Length { found: 9, expected: 10 });
        assert!(Mat::strided(&[0.0f32; 10], 3, 2, 4).is_ok());
        assert_eq!(MatMut::strided(&mut [0.0f32; 9], 3, 5, 4).unwrap_err().place(), "matrix: row stride");
        assert!(Mat::new(&[0u8; 4], usize::MAX, 2).is_err());
    }
}
