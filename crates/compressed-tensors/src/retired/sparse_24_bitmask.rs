//! `sparse-24-bitmask`: two values of every four, and a bit for each element.

use super::{
    bitmask::{Dimensions, bitmask_array, unpack_bitmask},
    sparse_bitmask::expand,
    tensors::{i64_array, matrix_of, stored_shape, tensor, typed},
};
use crate::{Array, DType, Error, ErrorKind, ModuleTensors, Result, numbers::read_f32};

/// Which two of four consecutive elements are kept: the two largest magnitudes, NaN above all.
///
/// Ties are resolved as by the partial sort of the reference's C++ library, which matters only where
/// fewer than two elements are non-zero: a quad of zeros keeps elements 2 and 3.
pub fn top_two_of_four(magnitudes: [f32; 4]) -> [bool; 4] {
    let before = |a: usize, b: usize| {
        let (a, b) = (magnitudes[a], magnitudes[b]);
        (a.is_nan() && !b.is_nan()) || a > b
    };
    // One step of quickselect for rank 1 of 4, then an insertion sort of the side that holds the rank.
    let mut order = [0, 1, 2, 3];
    let median = match (before(1, 2), before(2, 3), before(1, 3)) {
        (true, true, _) | (false, false, false) => 2,
        (true, false, true) | (false, true, false) => 3,
        (true, false, false) | (false, _, true) => 1,
    };
    order.swap(0, median);
    let pivot = order[0];
    let (mut low, mut high) = (1, 4);
    let cut = loop {
        while before(order[low], pivot) {
            low += 1;
        }
        high -= 1;
        while before(pivot, order[high]) {
            high -= 1;
        }
        if low >= high {
            break low;
        }
        order.swap(low, high);
        low += 1;
    };
    let (from, to) = if cut <= 1 { (cut, 4) } else { (0, cut) };
    for i in from + 1..to {
        let mut k = i;
        while k > from && before(order[k], order[k - 1]) {
            order.swap(k, k - 1);
            k -= 1;
        }
    }
    let mut kept = [false; 4];
    kept[order[0]] = true;
    kept[order[1]] = true;
    kept
}

/// Compresses a matrix to `shape` (2, 1), `compressed` (rows, columns / 2) and `bitmask`.
///
/// The other two elements of every quad are lost, so that only 2:4-sparse input comes back as it was.
/// Of e4m3 elements the codes are compared, as the reference does; negative ones are misordered then.
///
/// # Errors
/// [`ErrorKind::Shape`] for what is no matrix with even columns and whole quads, [`ErrorKind::DType`] for
/// elements that are no numbers.
pub fn compress_sparse_24_bitmask(weight: &Array) -> Result<ModuleTensors> {
    let extents = matrix_of(weight, "weight", Dimensions::Two)?;
    if !weight.elements().is_multiple_of(4) || !extents.n_cols.is_multiple_of(2) {
        return Err(Error::from(ErrorKind::Shape {
            tensor: "weight".to_owned(),
            found: weight.shape.clone(),
            expected: "a multiple of 4 elements in rows of an even length".to_owned(),
        }));
    }
    let mask = mask_of(weight)?;
    let width = extents.element_bytes;
    let kept = weight.data.chunks(width).zip(&mask).filter(|(_, kept)| **kept);
    let data = kept.flat_map(|(element, _)| element.iter().copied()).collect();
    Ok(ModuleTensors::from_iter([
        ("shape".to_owned(), i64_array(vec![2, 1], [extents.n_rows, extents.n_cols])),
        ("compressed".to_owned(), Array { dtype: weight.dtype, shape: vec![extents.n_rows, extents.n_cols / 2], data }),
        ("bitmask".to_owned(), bitmask_array(&mask, extents.n_rows, extents.n_cols)?),
    ]))
}

/// The inverse of [`compress_sparse_24_bitmask`].
///
/// # Errors
/// [`ErrorKind::MissingTensor`], [`ErrorKind::DType`], [`ErrorKind::Shape`] and
/// [`ErrorKind::InvalidField`] where the three tensors do not agree.
pub fn decompress_sparse_24_bitmask(module: &ModuleTensors) -> Result<Array> {
    let [n_rows, n_cols] = stored_shape(module)?;
    let mask = unpack_bitmask(&typed(module, "bitmask", DType::U8)?.data, n_rows, n_cols)?;
    expand(tensor(module, "compressed")?, &mask, [n_rows, n_cols])
}

/// The mask over all quads of a tensor that [`matrix_of`] has checked.
fn mask_of(weight: &Array) -> Result<Vec<bool>> {
    let mut magnitudes = vec![0.0; weight.elements()];
    match weight.dtype {
        DType::I8 | DType::F8E4M3 => {
            for (magnitude, byte) in magnitudes.iter_mut().zip(&weight.data) {
                *magnitude = f32::from((*byte as i8).wrapping_abs());
            }
        }
        DType::BF16 | DType::F16 | DType::F32 => {
            read_f32(weight.dtype, &weight.data, &mut magnitudes)?;
            magnitudes.iter_mut().for_each(|it| *it = it.abs());
        }
        found => {
            let expected = "BF16, F16, F32, F8_E4M3 or I8".to_owned();
            return Err(Error::from(ErrorKind::DType { tensor: "weight".to_owned(), found, expected }));
        }
    }
    Ok(magnitudes.as_chunks().0.iter().flat_map(|quad| top_two_of_four(*quad)).collect())
}
