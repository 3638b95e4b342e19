//! Where a transform acts on a module, and the product with a weight, a bias or an activation.

use std::ops::Range;

use super::{config::TransformLocation, matrix::TransformMatrix, precision::Precision};
use crate::{Array, DType, Error, ErrorKind, ModuleTensors, Result};

/// Columns that are transformed together; a slab of them is what a product along rows needs in memory.
const SLAB_COLUMNS: usize = 64;

/// A module whose weight can take up a transform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightKind {
    /// `weight` (out, in), `bias` (out).
    Linear,
    /// `weight` (num_embeddings, embedding_dim).
    Embedding,
}

impl WeightKind {
    /// The width that a matrix at `location` acts on, given the shape of the weight.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] where the weight has not two dimensions.
    pub fn transformed_size(self, location: TransformLocation, shape: &[usize]) -> Result<usize> {
        let &[rows, cols] = shape else { return Err(not_two_dimensional(shape)) };
        let at_input = matches!(location, TransformLocation::Input | TransformLocation::WeightInput);
        Ok(match (self, at_input) {
            (Self::Linear, true) | (Self::Embedding, false) => cols,
            (Self::Linear, false) | (Self::Embedding, true) => rows,
        })
    }
}

/// Folds a matrix into `weight` (and `bias`) of a module; the dtypes stay.
///
/// | location | Linear | Embedding |
/// |---|---|---|
/// | `weight_input` | W M^T | M W |
/// | `weight_output` | M^T W, M^T b | W M |
///
/// A matrix smaller than the dimension acts block by block.
///
/// # Errors
/// [`ErrorKind::InvalidField`] for a location that is no weight's; a missing weight, a shape that the
/// matrix does not divide or a dtype that is not a dense float, under the tensor's name. The module is
/// unchanged then.
pub fn apply_to_weight(
    kind: WeightKind,
    location: TransformLocation,
    matrix: &TransformMatrix,
    module: &mut ModuleTensors,
) -> Result<()> {
    let with_bias = kind == WeightKind::Linear && location == TransformLocation::WeightOutput;
    let bias = match module.get("bias").filter(|_| with_bias) {
        Some(bias) => {
            let mut bias = bias.clone();
            multiply(&mut bias, "bias", matrix, Side::Rows)?;
            Some(bias)
        }
        None => None,
    };
    let (matrix, side) = match (kind, location) {
        (WeightKind::Linear, TransformLocation::WeightInput) => (&matrix.transpose(), Side::Rows),
        (WeightKind::Linear, TransformLocation::WeightOutput) => (matrix, Side::Columns),
        (WeightKind::Embedding, TransformLocation::WeightInput) => (&matrix.transpose(), Side::Columns),
        (WeightKind::Embedding, TransformLocation::WeightOutput) => (matrix, Side::Rows),
        (_, other) => {
            return Err(Error::from(ErrorKind::InvalidField {
                field: "location".to_owned(),
                found: other.as_str().to_owned(),
                expected: "`weight_input` or `weight_output`".to_owned(),
            }));
        }
    };
    let weight = module
        .get_mut("weight")
        .ok_or_else(|| Error::from(ErrorKind::MissingTensor { tensor: "weight".to_owned() }))?;
    if weight.shape.len() != 2 {
        return Err(not_two_dimensional(&weight.shape));
    }
    multiply(weight, "weight", matrix, side)?;
    if let Some(bias) = bias {
        module.insert("bias".to_owned(), bias);
    }
    Ok(())
}

/// Multiplies the last dimension of an activation (input, output, query or key) by the matrix.
///
/// # Errors
/// [`ErrorKind::Shape`] and [`ErrorKind::DType`] as for weights.
pub fn apply_to_activation(matrix: &TransformMatrix, activation: &mut Array) -> Result<()> {
    multiply(activation, "activation", matrix, Side::Rows)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Each run of `size` along the last dimension is a row.
    Rows,
    /// Each run of `size` down a column of the 2-D tensor is a row.
    Columns,
}

fn multiply(array: &mut Array, name: &str, matrix: &TransformMatrix, side: Side) -> Result<()> {
    let storage = storage_of(array, name)?;
    let (acted_on, n_cols) = match (side, array.shape.as_slice()) {
        (Side::Rows, [.., cols]) => (*cols, *cols),
        (Side::Columns, &[rows, cols]) => (rows, cols),
        (_, shape) => return Err(not_two_dimensional(shape)),
    };
    if !acted_on.is_multiple_of(matrix.size()) {
        return Err(Error::from(ErrorKind::Shape {
            tensor: name.to_owned(),
            found: array.shape.clone(),
            expected: format!("{acted_on} to be a multiple of the transform size {}", matrix.size()),
        }));
    }
    let width = storage.dtype().bits() / 8;
    match side {
        Side::Rows => {
            // Whole rows in slabs of a few megabytes, so that the f64 copy stays small.
            let n_rows_in_slab = ((1 << 19) / n_cols.max(1)).max(1);
            for bytes in array.data.chunks_mut((n_rows_in_slab * n_cols * width).max(1)) {
                let mut values = storage.read(bytes);
                matrix.multiply_rows(&mut values)?;
                bytes.copy_from_slice(&storage.to_array(Vec::new(), &values).data);
            }
        }
        Side::Columns => {
            for from in (0..n_cols).step_by(SLAB_COLUMNS) {
                multiply_columns(array, storage, matrix, from..n_cols.min(from + SLAB_COLUMNS))?;
            }
        }
    }
    Ok(())
}

fn multiply_columns(array: &mut Array, storage: Precision, matrix: &TransformMatrix, cols: Range<usize>) -> Result<()> {
    let (n_rows, n_cols) = (array.shape[0], array.shape[1]);
    let width = storage.dtype().bits() / 8;
    let span = |row: usize| (row * n_cols + cols.start) * width..(row * n_cols + cols.end) * width;
    let mut columns = vec![0.0; cols.len() * n_rows];
    for row in 0..n_rows {
        for (col, value) in storage.read(&array.data[span(row)]).into_iter().enumerate() {
            columns[col * n_rows + row] = value;
        }
    }
    matrix.multiply_rows(&mut columns)?;
    let mut values = vec![0.0; cols.len()];
    for row in 0..n_rows {
        for (col, value) in values.iter_mut().enumerate() {
            *value = columns[col * n_rows + row];
        }
        array.data[span(row)].copy_from_slice(&storage.to_array(Vec::new(), &values).data);
    }
    Ok(())
}

fn storage_of(array: &Array, name: &str) -> Result<Precision> {
    let storage = Precision::from_dtype(array.dtype).map_err(|_| {
        Error::from(ErrorKind::DType {
            tensor: name.to_owned(),
            found: array.dtype,
            expected: [DType::BF16, DType::F16, DType::F32, DType::F64].map(|it| it.to_string()).join(", "),
        })
    })?;
    let n_elements = array.shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
    if n_elements.and_then(|n| array.dtype.byte_len(n)) != Some(array.data.len()) {
        return Err(Error::from(ErrorKind::Shape {
            tensor: name.to_owned(),
            found: array.shape.clone(),
            expected: format!("the shape of {} bytes", array.data.len()),
        }));
    }
    Ok(storage)
}

fn not_two_dimensional(shape: &[usize]) -> Error {
    Error::from(ErrorKind::Shape {
        tensor: "weight".to_owned(),
        found: shape.to_vec(),
        expected: "two dimensions".to_owned(),
    })
}
