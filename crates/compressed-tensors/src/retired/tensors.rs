//! Reading the tensors of a sparse module: presence, dtype, shape and length are checked once here.

use super::bitmask::Dimensions;
use crate::{Array, DType, Error, ErrorKind, ModuleTensors, Result};

/// Extents of a dense tensor.
pub(super) struct Extents {
    pub(super) n_rows: usize,
    pub(super) n_cols: usize,
    pub(super) element_bytes: usize,
}

/// Checks that the bytes are those of the shape.
pub(super) fn matrix_of(array: &Array, name: &str, dimensions: Dimensions) -> Result<Extents> {
    let fault = |expected: String| {
        Error::from(ErrorKind::Shape { tensor: name.to_owned(), found: array.shape.clone(), expected })
    };
    let element_bytes = array.dtype.byte_len(1).ok_or_else(|| {
        Error::from(ErrorKind::DType {
            tensor: name.to_owned(),
            found: array.dtype,
            expected: "elements of whole bytes".to_owned(),
        })
    })?;
    let n_elements = array.shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
    if n_elements.and_then(|n| n.checked_mul(element_bytes)) != Some(array.data.len()) {
        return Err(fault(format!("the shape of {} bytes", array.data.len())));
    }
    match (dimensions, array.shape.as_slice()) {
        (_, &[n_rows, n_cols]) => Ok(Extents { n_rows, n_cols, element_bytes }),
        (Dimensions::Any, _) => Ok(Extents { n_rows: 1, n_cols: array.elements(), element_bytes }),
        (Dimensions::Two, _) => Err(fault("two dimensions".to_owned())),
    }
}

/// Whether an element is neither +0 nor -0.
pub(super) fn is_nonzero(dtype: DType, element: &[u8]) -> bool {
    let has_sign_bit =
        matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64 | DType::F8E4M3 | DType::F8E5M2);
    match element.split_last() {
        Some((last, rest)) => {
            let magnitude = if has_sign_bit { last & 0x7f } else { *last };
            magnitude != 0 || rest.iter().any(|it| *it != 0)
        }
        None => false,
    }
}

/// The tensor of this name.
pub(super) fn tensor<'a>(module: &'a ModuleTensors, name: &str) -> Result<&'a Array> {
    module.get(name).ok_or_else(|| Error::from(ErrorKind::MissingTensor { tensor: name.to_owned() }))
}

/// The tensor of this name, of one dtype and of the length that its shape says.
pub(super) fn typed<'a>(module: &'a ModuleTensors, name: &str, dtype: DType) -> Result<&'a Array> {
    let array = tensor(module, name)?;
    if array.dtype != dtype {
        let expected = dtype.to_string();
        return Err(Error::from(ErrorKind::DType { tensor: name.to_owned(), found: array.dtype, expected }));
    }
    matrix_of(array, name, Dimensions::Any)?;
    Ok(array)
}

/// Values of a tensor of 64-bit integers.
pub(super) fn i64s(module: &ModuleTensors, name: &str) -> Result<Vec<i64>> {
    let array = typed(module, name, DType::I64)?;
    Ok(array.data.as_chunks().0.iter().map(|it| i64::from_le_bytes(*it)).collect())
}

/// The (rows, columns) that a tensor `shape` of two values holds.
pub(super) fn stored_shape(module: &ModuleTensors) -> Result<[usize; 2]> {
    let values = i64s(module, "shape")?;
    let sizes: Option<Vec<usize>> = values.iter().map(|it| usize::try_from(*it).ok()).collect();
    match sizes.as_deref() {
        Some(&[n_rows, n_cols]) if n_rows.checked_mul(n_cols).is_some() => Ok([n_rows, n_cols]),
        _ => Err(Error::from(ErrorKind::InvalidField {
            field: "shape".to_owned(),
            found: format!("{values:?}"),
            expected: "the rows and columns of a matrix".to_owned(),
        })),
    }
}

/// A tensor of 64-bit integers.
pub(super) fn i64_array(shape: Vec<usize>, values: impl IntoIterator<Item = usize>) -> Array {
    let data = values.into_iter().flat_map(|it| (it as i64).to_le_bytes()).collect();
    Array { dtype: DType::I64, shape, data }
}
