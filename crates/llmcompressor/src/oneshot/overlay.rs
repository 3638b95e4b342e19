//! What one modifier has changed and a later one will change again: kept on disk, read in the place of the source.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use compressed_tensors::DType;
use models::{BoxedError, Weights};

use crate::error::{ErrorKind, Result};

/// A checkpoint of which some tensors were changed.
pub(super) struct Overlay {
    weights: Arc<dyn Weights>,
    changed: Mutex<HashMap<String, PathBuf>>,
}

impl Overlay {
    /// The checkpoint as it is.
    pub(super) fn new(weights: Arc<dyn Weights>) -> Self {
        Self { weights, changed: Mutex::default() }
    }

    /// Puts bytes in the place of a tensor, in a file of `folder`.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(super) fn put(&self, tensor: &str, bytes: &[u8], folder: &Path) -> Result<()> {
        let mut changed = self.lock();
        let path = folder.join(format!("changed-{}", changed.len()));
        let path = changed.entry(tensor.to_owned()).or_insert(path);
        std::fs::write(&*path, bytes).map_err(|source| ErrorKind::Activations { path: path.clone(), source })?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, PathBuf>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Weights for Overlay {
    fn spec(&self, name: &str) -> Option<(DType, Vec<usize>)> {
        self.weights.spec(name)
    }

    fn read_into(&self, name: &str, offset_bytes: u64, out: &mut [u8]) -> std::result::Result<(), BoxedError> {
        let Some(path) = self.lock().get(name).cloned() else {
            return self.weights.read_into(name, offset_bytes, out);
        };
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset_bytes))?;
        Ok(file.read_exact(out)?)
    }
}
