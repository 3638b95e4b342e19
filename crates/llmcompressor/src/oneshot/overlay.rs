//! What one modifier has changed and a later one will change again: kept on disk, read in the place of the source.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use compressed_tensors::DType;
use models::{BoxedError, ParameterInfo, Weights};

use crate::error::{ErrorKind, Result};

/// A checkpoint of which some tensors were changed.
pub(super) struct Overlay {
    weights: Arc<dyn Weights>,
    changed: Mutex<HashMap<String, Changed>>,
}

/// A tensor that was changed.
#[derive(Clone)]
struct Changed {
    path: PathBuf,
    dtype: DType,
    shape: Vec<usize>,
}

impl Overlay {
    /// The checkpoint as it is.
    pub(super) fn new(weights: Arc<dyn Weights>) -> Self {
        Self { weights, changed: Mutex::default() }
    }

    /// Puts bytes in the place of a parameter's tensor, in a file of `folder`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(super) fn put(&self, parameter: &ParameterInfo, dtype: DType, bytes: &[u8], folder: &Path) -> Result<()> {
        let mut changed = self.lock();
        let path = folder.join(format!("changed-{}", changed.len()));
        let fresh = Changed { path, dtype, shape: parameter.shape.clone() };
        let path = &changed.entry(parameter.name.clone()).or_insert(fresh).path;
        std::fs::write(path, bytes).map_err(|source| ErrorKind::Activations { path: path.clone(), source })?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Changed>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Weights for Overlay {
    fn spec(&self, name: &str) -> Option<(DType, Vec<usize>)> {
        // Of a parameter that was part of a larger tensor the source knows nothing.
        self.weights.spec(name).or_else(|| self.lock().get(name).map(|it| (it.dtype, it.shape.clone())))
    }

    fn read_into(&self, name: &str, offset_bytes: u64, out: &mut [u8]) -> std::result::Result<(), BoxedError> {
        let Some(Changed { path, .. }) = self.lock().get(name).cloned() else {
            return self.weights.read_into(name, offset_bytes, out);
        };
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset_bytes))?;
        Ok(file.read_exact(out)?)
    }
}
