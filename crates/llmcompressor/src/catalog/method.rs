//! How a source says it is quantized, and which tensors make up a module under that method.

use checkpoint::{Source, TensorEntry};

use super::Matrix;
use crate::error::Result;

/// How the weights of a source are stored.
#[derive(Debug)]
pub(crate) enum Method {
    /// As plain tensors.
    Dense,
}

impl Method {
    /// Reads the source's config.
    pub(crate) fn of(_source: &Source) -> Result<Self> {
        Ok(Self::Dense)
    }

    /// Name, matrix and tensors of the module whose weight `entry` is the first tensor of.
    pub(crate) fn module_of(
        &self,
        _source: &Source,
        entry: &TensorEntry,
    ) -> Result<Option<(String, Matrix, Vec<String>)>> {
        let Some(name) = entry.name.strip_suffix(".weight") else { return Ok(None) };
        if !entry.dtype.is_dense_float() {
            return Ok(None);
        }
        Ok(Matrix::dense(entry).map(|matrix| (name.to_owned(), matrix, vec![entry.name.clone()])))
    }
}
