//! One stored value: in memory, or in a file of its own.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Write},
    path::Path,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tempfile::TempPath;

use super::CachedValue;
use crate::{Error, Result};

/// A stored value.
pub(super) struct Slot<V> {
    n_bytes: u64,
    kept: Kept<V>,
}

enum Kept<V> {
    Memory(Arc<V>),
    /// The file goes when the slot does; a copy that somebody still holds is not read again.
    Disk {
        file: TempPath,
        held: Mutex<Weak<V>>,
    },
}

impl<V: CachedValue> Slot<V> {
    pub(super) fn in_memory(value: &Arc<V>) -> Self {
        Self { n_bytes: value.n_bytes(), kept: Kept::Memory(Arc::clone(value)) }
    }

    pub(super) fn on_disk(value: &Arc<V>, folder: &Path) -> Result<Self> {
        let failed = |e| Error::io("spilling activations", folder, e);
        let file = tempfile::Builder::new().prefix("activation-").tempfile_in(folder).map_err(failed)?;
        let (file, path) = file.into_parts();
        let mut out = BufWriter::with_capacity(1 << 20, file);
        value.write(&mut out).and_then(|()| out.flush()).map_err(|e| Error::io("spilling activations", &path, e))?;
        let held = Mutex::new(Arc::downgrade(value));
        Ok(Self { n_bytes: value.n_bytes(), kept: Kept::Disk { file: path, held } })
    }

    pub(super) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    pub(super) fn is_on_disk(&self) -> bool {
        matches!(self.kept, Kept::Disk { .. })
    }

    pub(super) fn load(&self) -> Result<Arc<V>> {
        match &self.kept {
            Kept::Memory(value) => Ok(Arc::clone(value)),
            Kept::Disk { file, held } => {
                // A poisoned lock still guards a plain pointer, which is either good or dead.
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(value) = held.upgrade() {
                    return Ok(value);
                }
                let failed = |e| Error::io("reading spilled activations", file, e);
                let mut input = BufReader::with_capacity(1 << 20, File::open(file).map_err(failed)?);
                let value = Arc::new(V::read(&mut input).map_err(failed)?);
                *held = Arc::downgrade(&value);
                Ok(value)
            }
        }
    }
}
