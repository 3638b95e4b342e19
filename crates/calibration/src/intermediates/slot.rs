//! One stored value: in memory, or in a file of its own.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufReader, BufWriter, Write},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use tempfile::TempPath;

use super::CachedValue;
use crate::{Error, Result};

/// A stored value.
pub(super) struct Slot<V> {
    n_bytes: u64,
    kept: Kept<V>,
    ledger: Arc<Ledger<V>>,
}

enum Kept<V> {
    Memory(Arc<V>),
    /// The file goes when the slot does; a copy that somebody still holds is not read again.
    Disk {
        file: TempPath,
        held: Mutex<Weak<V>>,
    },
}

/// What all slots of a cache share: their bytes in memory, and which value lies in which slot.
pub(super) struct Ledger<V> {
    memory_bytes: AtomicU64,
    /// The slot of each value that is alive, by the value's address; an entry proves nothing until the slot agrees.
    slots: Mutex<HashMap<usize, Weak<Slot<V>>>>,
}

impl<V> Default for Ledger<V> {
    fn default() -> Self {
        Self { memory_bytes: AtomicU64::new(0), slots: Mutex::new(HashMap::new()) }
    }
}

impl<V> Ledger<V> {
    /// Bytes of all values in memory.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes.load(Ordering::Relaxed)
    }

    /// The slot that holds this very value.
    pub(super) fn slot(&self, value: &Arc<V>) -> Option<Arc<Slot<V>>> {
        let slot = lock(&self.slots).get(&address(value))?.upgrade()?;
        slot.holds(value).then_some(slot)
    }

    fn register(&self, value: &Arc<V>, slot: &Arc<Slot<V>>) {
        lock(&self.slots).insert(address(value), Arc::downgrade(slot));
    }
}

impl<V: CachedValue> Slot<V> {
    pub(super) fn in_memory(value: &Arc<V>, ledger: &Arc<Ledger<V>>) -> Arc<Self> {
        let n_bytes = value.n_bytes();
        ledger.memory_bytes.fetch_add(n_bytes, Ordering::Relaxed);
        let slot = Arc::new(Self { n_bytes, kept: Kept::Memory(Arc::clone(value)), ledger: Arc::clone(ledger) });
        ledger.register(value, &slot);
        slot
    }

    pub(super) fn on_disk(value: &Arc<V>, folder: &Path, ledger: &Arc<Ledger<V>>) -> Result<Arc<Self>> {
        let failed = |e| Error::io("spilling activations", folder, e);
        let file = tempfile::Builder::new().prefix("activation-").tempfile_in(folder).map_err(failed)?;
        let (file, path) = file.into_parts();
        let mut out = BufWriter::with_capacity(1 << 20, file);
        value.write(&mut out).and_then(|()| out.flush()).map_err(|e| Error::io("spilling activations", &path, e))?;
        let kept = Kept::Disk { file: path, held: Mutex::new(Arc::downgrade(value)) };
        let slot = Arc::new(Self { n_bytes: value.n_bytes(), kept, ledger: Arc::clone(ledger) });
        ledger.register(value, &slot);
        Ok(slot)
    }

    pub(super) fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    pub(super) fn is_on_disk(&self) -> bool {
        matches!(self.kept, Kept::Disk { .. })
    }

    pub(super) fn load(self: &Arc<Self>) -> Result<Arc<V>> {
        let (file, held) = match &self.kept {
            Kept::Memory(value) => return Ok(Arc::clone(value)),
            Kept::Disk { file, held } => (file, held),
        };
        let value = {
            let mut held = lock(held);
            if let Some(value) = held.upgrade() {
                return Ok(value);
            }
            let failed = |e| Error::io("reading spilled activations", file, e);
            let mut input = BufReader::with_capacity(1 << 20, File::open(file).map_err(failed)?);
            let value = Arc::new(V::read(&mut input).map_err(failed)?);
            *held = Arc::downgrade(&value);
            value
        };
        self.ledger.register(&value, self);
        Ok(value)
    }
}

impl<V> Slot<V> {
    fn holds(&self, value: &Arc<V>) -> bool {
        match &self.kept {
            Kept::Memory(kept) => Arc::ptr_eq(kept, value),
            Kept::Disk { held, .. } => lock(held).upgrade().is_some_and(|held| Arc::ptr_eq(&held, value)),
        }
    }
}

impl<V> Drop for Slot<V> {
    fn drop(&mut self) {
        let address = match &self.kept {
            Kept::Memory(value) => {
                self.ledger.memory_bytes.fetch_sub(self.n_bytes, Ordering::Relaxed);
                address(value)
            }
            Kept::Disk { held, .. } => lock(held).as_ptr().addr(),
        };
        let mut slots = lock(&self.ledger.slots);
        if slots.get(&address).is_some_and(|slot| std::ptr::eq(slot.as_ptr(), self)) {
            slots.remove(&address);
        }
    }
}

fn address<V>(value: &Arc<V>) -> usize {
    Arc::as_ptr(value).addr()
}

/// What these locks guard is whole after every statement, also where a thread that held one panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
