//! Masks over the elements of a tensor: their bytes on disk, and n:m structure.

use super::tensors::{is_nonzero, matrix_of};
use crate::{Array, DType, Error, ErrorKind, Result};

/// Packs a mask of rows of `n_cols` elements: bit `c % 8` of byte `c / 8`, each row padded with zeros to
/// whole bytes.
///
/// # Errors
/// [`ErrorKind::Shape`] where `n_cols` does not divide the mask.
pub fn pack_bitmask(mask: &[bool], n_cols: usize) -> Result<Vec<u8>> {
    let fits = if n_cols == 0 { mask.is_empty() } else { mask.len().is_multiple_of(n_cols) };
    if !fits {
        return Err(Error::from(ErrorKind::Shape {
            tensor: "mask".to_owned(),
            found: vec![mask.len()],
            expected: format!("whole rows of {n_cols} elements"),
        }));
    }
    let rows = mask.chunks(n_cols.max(1));
    Ok(rows
        .flat_map(|row| row.chunks(8))
        .map(|bits| bits.iter().enumerate().fold(0, |byte, (idx, bit)| byte | u8::from(*bit) << idx))
        .collect())
}

/// The inverse of [`pack_bitmask`]; padding bits are not read.
///
/// # Errors
/// [`ErrorKind::Shape`] where `bytes` are not `n_rows` rows.
pub fn unpack_bitmask(bytes: &[u8], n_rows: usize, n_cols: usize) -> Result<Vec<bool>> {
    let n_row_bytes = n_cols.div_ceil(8);
    let n_elements = n_rows.checked_mul(n_cols);
    let (Some(n_elements), true) = (n_elements, n_rows.checked_mul(n_row_bytes) == Some(bytes.len())) else {
        return Err(Error::from(ErrorKind::Shape {
            tensor: "bitmask".to_owned(),
            found: vec![bytes.len()],
            expected: format!("{n_rows} rows of {n_row_bytes} bytes"),
        }));
    };
    let mut mask = Vec::with_capacity(n_elements);
    for row in bytes.chunks_exact(n_row_bytes.max(1)) {
        mask.extend((0..n_cols).map(|col| row[col / 8] >> (col % 8) & 1 == 1));
    }
    Ok(mask)
}

/// Whether each run of m consecutive elements, row-major, has at least n zeros, for a structure `n:m`.
///
/// # Errors
/// [`ErrorKind::InvalidField`] for a structure that is not two numbers, [`ErrorKind::Shape`] where m does
/// not divide the elements, [`ErrorKind::DType`] for elements that do not fill bytes.
pub fn follows_mask_structure(tensor: &Array, structure: &str) -> Result<bool> {
    let numbers = structure.split_once(':').and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
    let Some((n, m)) = numbers.filter(|(_, m): &(usize, usize)| *m > 0) else {
        return Err(Error::from(ErrorKind::InvalidField {
            field: "mask_structure".to_owned(),
            found: structure.to_owned(),
            expected: "two numbers `n:m`, m at least 1".to_owned(),
        }));
    };
    let width = matrix_of(tensor, "tensor", Dimensions::Any)?.element_bytes;
    if !tensor.elements().is_multiple_of(m) {
        return Err(Error::from(ErrorKind::Shape {
            tensor: "tensor".to_owned(),
            found: tensor.shape.clone(),
            expected: format!("a multiple of {m} elements"),
        }));
    }
    let zeros = |run: &[u8]| run.chunks(width).filter(|it| !is_nonzero(tensor.dtype, it)).count();
    Ok(tensor.data.chunks(m * width).all(|run| zeros(run) >= n))
}

/// How many dimensions a tensor may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Dimensions {
    Two,
    Any,
}

/// A mask as a tensor `bitmask` of (rows, bytes).
pub(super) fn bitmask_array(mask: &[bool], n_rows: usize, n_cols: usize) -> Result<Array> {
    let data = pack_bitmask(mask, n_cols)?;
    Ok(Array { dtype: DType::U8, shape: vec![n_rows, n_cols.div_ceil(8)], data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_to_whole_bytes() {
        let mask: Vec<bool> = (0..20).map(|i| i % 3 == 0).collect();
        let bytes = pack_bitmask(&mask, 10).unwrap();
        assert_eq!(bytes, [0b0100_1001, 0b10, 0b0010_0100, 0b1]);
        assert_eq!(unpack_bitmask(&bytes, 2, 10).unwrap(), mask);
        assert!(pack_bitmask(&mask, 9).is_err() && pack_bitmask(&mask, 0).is_err());
        assert!(unpack_bitmask(&bytes, 3, 10).is_err() && unpack_bitmask(&[], usize::MAX, 9).is_err());
    }

    #[test]
    fn structure_counts_zeros_of_either_sign() {
        let values = |v: [f32; 8]| Array {
            dtype: DType::F32,
            shape: vec![2, 4],
            data: v.iter().flat_map(|it| it.to_le_bytes()).collect(),
        };
        assert!(follows_mask_structure(&values([0.0, -0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 1.0]), "2:4").unwrap());
        let dense = values([0.0, 1.0, 1.0, 2.0, 0.0, 0.0, 0.0, 1.0]);
        assert!(!follows_mask_structure(&dense, "2:4").unwrap());
        assert!(follows_mask_structure(&dense, "0:1").unwrap());
        assert!(matches!(follows_mask_structure(&dense, "2:3").unwrap_err().kind(), ErrorKind::Shape { .. }));
        for bad in ["24", "2:0", "a:b", ""] {
            assert!(matches!(follows_mask_structure(&dense, bad).unwrap_err().kind(), ErrorKind::InvalidField { .. }));
        }
    }
}
