//! Names of modules and tensors, and tensors checked once before their bytes are read.

use indexmap::IndexMap;
use serde_json::Value;

use super::{TensorShape, TensorShapes};
use crate::{Array, DType, Error, ErrorKind, ModuleTensors, Result, config::QuantizationConfig};

/// Splits a full name into module and local name; a name without a dot belongs to the model itself.
pub(super) fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or(("", name))
}

/// The full name of a module's tensor.
pub(super) fn join(module: &str, local: &str) -> String {
    if module.is_empty() { local.to_owned() } else { format!("{module}.{local}") }
}

/// Sorts full names into modules, in order of first appearance.
pub(super) fn by_module<T>(tensors: IndexMap<String, T>) -> IndexMap<String, IndexMap<String, T>> {
    let mut modules: IndexMap<String, IndexMap<String, T>> = IndexMap::new();
    for (name, tensor) in tensors {
        let (module, local) = split(&name);
        modules.entry(module.to_owned()).or_default().insert(local.to_owned(), tensor);
    }
    modules
}

/// The error at a module; the model itself has no name.
pub(super) fn placed(error: Error, module: &str) -> Error {
    if module.is_empty() { error } else { error.at(module) }
}

pub(super) fn missing(tensor: &str) -> Error {
    ErrorKind::MissingTensor { tensor: tensor.to_owned() }.into()
}

pub(super) fn left_over(tensor: &str, reason: &str) -> Error {
    ErrorKind::UnexpectedTensor { tensor: tensor.to_owned(), reason: reason.to_owned() }.into()
}

pub(super) fn bad_shape(tensor: &str, found: &[usize], expected: impl Into<String>) -> Error {
    ErrorKind::Shape { tensor: tensor.to_owned(), found: found.to_vec(), expected: expected.into() }.into()
}

pub(super) fn invalid(field: &str, found: impl ToString, expected: impl Into<String>) -> Error {
    ErrorKind::InvalidField { field: field.to_owned(), found: found.to_string(), expected: expected.into() }.into()
}

/// A tensor that must be there, with one of these dtypes and two dimensions.
pub(super) fn matrix(tensors: &TensorShapes, name: &str, dtypes: &[DType]) -> Result<[usize; 2]> {
    let tensor = tensors.get(name).ok_or_else(|| missing(name))?;
    check_dtype(name, tensor.dtype, dtypes)?;
    match tensor.shape.as_slice() {
        &[rows, cols] if rows > 0 && cols > 0 => Ok([rows, cols]),
        other => Err(bad_shape(name, other, "two dimensions, neither of them empty")),
    }
}

pub(super) fn check_dtype(name: &str, found: DType, dtypes: &[DType]) -> Result<()> {
    if dtypes.contains(&found) {
        return Ok(());
    }
    let expected = dtypes.iter().map(DType::to_string).collect::<Vec<_>>().join(" or ");
    Err(ErrorKind::DType { tensor: name.to_owned(), found, expected }.into())
}

pub(super) fn check_shape(tensors: &TensorShapes, name: &str, expected: &[usize]) -> Result<()> {
    match tensors.get(name) {
        Some(it) if it.shape == expected => Ok(()),
        Some(it) => Err(bad_shape(name, &it.shape, format!("{expected:?}"))),
        None => Err(missing(name)),
    }
}

/// Refuses tensors whose bytes are not those of their shape.
pub(super) fn check_lengths(tensors: &ModuleTensors) -> Result<()> {
    for (name, it) in tensors {
        let n_elements = it.shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
        if n_elements.and_then(|n| it.dtype.byte_len(n)) != Some(it.data.len()) {
            return Err(bad_shape(name, &it.shape, format!("the shape of {} bytes", it.data.len())));
        }
    }
    Ok(())
}

pub(super) fn take(tensors: &mut ModuleTensors, name: &str) -> Result<Array> {
    tensors.shift_remove(name).ok_or_else(|| missing(name))
}

pub(super) fn shape(dtype: DType, shape: &[usize]) -> TensorShape {
    TensorShape { dtype, shape: shape.to_vec() }
}

pub(super) fn words(array: &Array) -> Vec<i32> {
    array.data.as_chunks().0.iter().map(|it| i32::from_le_bytes(*it)).collect()
}

pub(super) fn i32_array(shape: &[usize], words: &[i32]) -> Array {
    let data = words.iter().flat_map(|it| it.to_le_bytes()).collect();
    Array { dtype: DType::I32, shape: shape.to_vec(), data }
}

/// The transpose of a matrix of whole-byte elements.
pub(super) fn transposed(array: &Array) -> Array {
    let (rows, cols) = (array.shape[0], array.shape[1]);
    let width = array.dtype.bits() / 8;
    let mut data = Vec::with_capacity(array.data.len());
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * width;
            data.extend_from_slice(&array.data[at..at + width]);
        }
    }
    Array { dtype: array.dtype, shape: vec![cols, rows], data }
}

/// A list of names in a source's config or in a converter's arguments.
pub(super) fn names(config: &Value, field: &str) -> Result<Option<Vec<String>>> {
    config.get(field).filter(|it| !it.is_null()).map(|it| crate::wire::strings(field, it)).transpose()
}

/// The targets that are meant where none are given.
pub(super) fn linears() -> Vec<String> {
    vec!["Linear".to_owned()]
}

/// What a converter adds to the quantization that is already there.
pub(super) fn merged(
    config: Option<QuantizationConfig>,
    new: QuantizationConfig,
) -> Result<Option<QuantizationConfig>> {
    match config {
        None => Ok(Some(new)),
        Some(mut config) => {
            config.merge(new)?;
            Ok(Some(config))
        }
    }
}

/// A pattern that matches every name which contains `text`, escaped as Python's `re.escape` does.
pub(super) fn containing(text: &str) -> String {
    let escaped: String = text
        .chars()
        .flat_map(|c| {
            let special = "()[]{}?*+-|^$\\.&~# \t\n\r\u{b}\u{c}".contains(c);
            special.then_some('\\').into_iter().chain([c])
        })
        .collect();
    format!("re:.*{escaped}.*")
}

/// The text of a pattern that [`containing`] made, an exact name as it is, and nothing for other patterns.
pub(super) fn contained(pattern: &str) -> Option<String> {
    let Some(regex) = pattern.strip_prefix("re:") else { return Some(pattern.to_owned()) };
    let escaped = regex.strip_prefix(".*")?.strip_suffix(".*")?;
    let mut text = String::new();
    let mut chars = escaped.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next()?),
            c if c.is_alphanumeric() || c == '_' => text.push(c),
            _ => return None,
        }
    }
    (containing(&text) == pattern).then_some(text)
}
