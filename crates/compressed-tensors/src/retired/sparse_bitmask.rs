//! `sparse-bitmask`: the non-zero values of a matrix, and a bit for each element.

use super::{
    bitmask::{Dimensions, bitmask_array, unpack_bitmask},
    tensors::{i64_array, i64s, is_nonzero, matrix_of, stored_shape, tensor, typed},
};
use crate::{Array, DType, Error, ErrorKind, ModuleTensors, Result};

/// Compresses a matrix to `shape`, `compressed`, `bitmask` and `row_offsets`.
///
/// `compressed` holds the non-zero values row by row in the matrix's dtype, `row_offsets` where each row
/// begins among them. A negative zero is dropped and comes back as zero.
///
/// # Errors
/// [`ErrorKind::Shape`] and [`ErrorKind::DType`] for what is no matrix of whole-byte elements.
pub fn compress_sparse_bitmask(weight: &Array) -> Result<ModuleTensors> {
    let extents = matrix_of(weight, "weight", Dimensions::Two)?;
    let mut mask = Vec::with_capacity(weight.elements());
    let mut values = Vec::new();
    let mut offsets = Vec::with_capacity(extents.n_rows);
    for row in weight.data.chunks((extents.n_cols * extents.element_bytes).max(1)) {
        offsets.push(values.len() / extents.element_bytes);
        for element in row.chunks(extents.element_bytes) {
            let kept = is_nonzero(weight.dtype, element);
            mask.push(kept);
            if kept {
                values.extend_from_slice(element);
            }
        }
    }
    offsets.resize(extents.n_rows, 0);
    let compressed = Array { dtype: weight.dtype, shape: vec![values.len() / extents.element_bytes], data: values };
    Ok(ModuleTensors::from_iter([
        ("shape".to_owned(), i64_array(vec![2], [extents.n_rows, extents.n_cols])),
        ("compressed".to_owned(), compressed),
        ("bitmask".to_owned(), bitmask_array(&mask, extents.n_rows, extents.n_cols)?),
        ("row_offsets".to_owned(), i64_array(vec![extents.n_rows], offsets)),
    ]))
}

/// The inverse of [`compress_sparse_bitmask`].
///
/// # Errors
/// [`ErrorKind::MissingTensor`], [`ErrorKind::DType`], [`ErrorKind::Shape`] and
/// [`ErrorKind::InvalidField`] where the four tensors do not agree.
pub fn decompress_sparse_bitmask(module: &ModuleTensors) -> Result<Array> {
    let [n_rows, n_cols] = stored_shape(module)?;
    let mask = unpack_bitmask(&typed(module, "bitmask", DType::U8)?.data, n_rows, n_cols)?;
    let mut n_kept = 0;
    let offsets: Vec<i64> = (0..n_rows)
        .map(|row| {
            let begin = n_kept as i64;
            n_kept += mask[row * n_cols..(row + 1) * n_cols].iter().filter(|it| **it).count();
            begin
        })
        .collect();
    let found = i64s(module, "row_offsets")?;
    if found != offsets {
        let row = found.iter().zip(&offsets).position(|(a, b)| a != b);
        return Err(Error::from(ErrorKind::InvalidField {
            field: "row_offsets".to_owned(),
            found: row.map_or(format!("{} rows", found.len()), |row| format!("{} at row {row}", found[row])),
            expected: row.map_or(format!("{n_rows} rows"), |row| format!("{} as the bitmask says", offsets[row])),
        }));
    }
    expand(tensor(module, "compressed")?, &mask, [n_rows, n_cols])
}

/// Puts values where the mask is set.
pub(super) fn expand(compressed: &Array, mask: &[bool], shape: [usize; 2]) -> Result<Array> {
    let width = matrix_of(compressed, "compressed", Dimensions::Any)?.element_bytes;
    let n_kept = mask.iter().filter(|it| **it).count();
    if compressed.elements() != n_kept {
        return Err(Error::from(ErrorKind::Shape {
            tensor: "compressed".to_owned(),
            found: compressed.shape.clone(),
            expected: format!("{n_kept} values as the bitmask says"),
        }));
    }
    let mut data = Vec::with_capacity(mask.len() * width);
    let mut values = compressed.data.chunks(width);
    for kept in mask {
        match kept.then(|| values.next()).flatten() {
            Some(value) => data.extend_from_slice(value),
            None => data.resize(data.len() + width, 0),
        }
    }
    Ok(Array { dtype: compressed.dtype, shape: shape.to_vec(), data })
}
