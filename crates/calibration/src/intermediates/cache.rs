//! Named entries per batch, each value kept once, within a memory budget.

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use indexmap::IndexMap;

use super::{
    CachedValue, Entry, Prefetch,
    slot::{Ledger, Slot},
};
use crate::{ErrorKind, Result};

/// Where values go that the budget has no room for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpillSettings {
    /// Bytes that values may hold in memory.
    pub budget_bytes: u64,
    /// An existing folder for the files of the others.
    pub folder: PathBuf,
}

/// Bytes a cache holds; a value shared by several entries counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheSize {
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Bytes of values that lie on disk.
    pub disk_bytes: u64,
}

/// What flows between subgraphs: for each batch, entries by name.
///
/// Values that exceed the budget go to disk when they are added and stay there.
/// Passes over the batches are cyclic, so that the values added first are the ones worth keeping in memory.
pub struct IntermediatesCache<V> {
    batches: Vec<Stored<V>>,
    ledger: Arc<Ledger<V>>,
    spill: Option<SpillSettings>,
}

impl<V: CachedValue> IntermediatesCache<V> {
    /// `n` batches without entries, all values in memory.
    pub fn empty(n: usize) -> Self {
        Self { batches: (0..n).map(|_| IndexMap::new()).collect(), ledger: Arc::default(), spill: None }
    }

    /// `n` batches without entries; values beyond the budget go to disk.
    pub fn with_spill(n: usize, spill: SpillSettings) -> Self {
        Self { spill: Some(spill), ..Self::empty(n) }
    }

    /// Number of batches.
    pub fn n_batches(&self) -> usize {
        self.batches.len()
    }

    /// Names of the entries of a batch.
    ///
    /// # Errors
    /// [`ErrorKind::MissingBatch`].
    pub fn names(&self, batch: usize) -> Result<Vec<&str>> {
        Ok(self.entries(batch)?.keys().map(String::as_str).collect())
    }

    /// Entries of a batch; of `names`, those that exist.
    ///
    /// # Errors
    /// [`ErrorKind::MissingBatch`], and I/O errors of values on disk.
    pub fn fetch(&self, batch: usize, names: Option<&[&str]>) -> Result<IndexMap<String, Entry<V>>> {
        load(&chosen(self.entries(batch)?, names))
    }

    /// Adds entries to a batch, in place of those of the same name.
    ///
    /// # Errors
    /// [`ErrorKind::MissingBatch`], and I/O errors of values that go to disk; the batch is then unchanged.
    pub fn update(&mut self, batch: usize, entries: IndexMap<String, Entry<V>>) -> Result<()> {
        self.entries(batch)?;
        let stored = self.store(&entries)?;
        self.batches[batch].extend(stored);
        Ok(())
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// I/O errors of values that go to disk; no batch is then added.
    pub fn append(&mut self, entries: IndexMap<String, Entry<V>>) -> Result<()> {
        let stored = self.store(&entries)?;
        self.batches.push(stored);
        Ok(())
    }

    /// Removes entries of a batch; `None` removes all.
    ///
    /// # Errors
    /// [`ErrorKind::MissingBatch`], and [`ErrorKind::MissingEntry`] for a name that does not exist; nothing is then
    /// removed.
    pub fn delete(&mut self, batch: usize, names: Option<&[&str]>) -> Result<()> {
        let entries = self.entries(batch)?;
        let Some(names) = names else {
            self.batches[batch].clear();
            return Ok(());
        };
        if let Some(name) = names.iter().find(|name| !entries.contains_key(**name)) {
            return Err(ErrorKind::MissingEntry {
                batch,
                batches: self.batches.len(),
                name: (*name).to_owned(),
                found: entries.keys().cloned().collect(),
            }
            .into());
        }
        self.batches[batch].retain(|name, _| !names.contains(&name.as_str()));
        Ok(())
    }

    /// Bytes of all values.
    pub fn size(&self) -> CacheSize {
        let mut seen = HashSet::new();
        let mut size = CacheSize::default();
        for entry in self.batches.iter().flat_map(IndexMap::values) {
            entry.visit(&mut |slot| {
                if seen.insert(Arc::as_ptr(slot)) {
                    match slot.is_on_disk() {
                        true => size.disk_bytes += slot.n_bytes(),
                        false => size.memory_bytes += slot.n_bytes(),
                    }
                }
            });
        }
        size
    }

    /// The entries of each batch in order.
    pub fn iter<'a>(
        &'a self,
        names: Option<&'a [&'a str]>,
    ) -> impl Iterator<Item = Result<IndexMap<String, Entry<V>>>> + 'a {
        self.batches.iter().map(move |entries| load(&chosen(entries, names)))
    }

    /// The entries of each batch in order, as they are now, read one batch ahead by a thread of its own.
    ///
    /// The cache may be changed meanwhile; what is deleted is freed once the pass has gone over it.
    pub fn iter_prefetch(&self, names: Option<&[&str]>) -> Prefetch<V> {
        Prefetch::start(self.batches.iter().map(|entries| chosen(entries, names)).collect())
    }

    fn entries(&self, batch: usize) -> Result<&Stored<V>> {
        self.batches.get(batch).ok_or_else(|| ErrorKind::MissingBatch { batch, batches: self.batches.len() }.into())
    }

    fn store(&self, entries: &IndexMap<String, Entry<V>>) -> Result<Stored<V>> {
        let mut slot = |value: &Arc<V>| self.slot(value);
        entries.iter().map(|(name, entry)| Ok((name.clone(), entry.map(&mut slot)?))).collect()
    }

    fn slot(&self, value: &Arc<V>) -> Result<Arc<Slot<V>>> {
        if let Some(slot) = self.ledger.slot(value) {
            return Ok(slot);
        }
        let needed = self.ledger.memory_bytes().saturating_add(value.n_bytes());
        match &self.spill {
            Some(spill) if needed > spill.budget_bytes => Slot::on_disk(value, &spill.folder, &self.ledger),
            _ => Ok(Slot::in_memory(value, &self.ledger)),
        }
    }
}

/// Entries as they are stored.
pub(super) type Stored<V> = IndexMap<String, Entry<Slot<V>>>;

fn chosen<V>(entries: &Stored<V>, names: Option<&[&str]>) -> Stored<V> {
    let is_wanted = |name: &str| names.is_none_or(|names| names.contains(&name));
    entries.iter().filter(|(name, _)| is_wanted(name)).map(|(name, entry)| (name.clone(), entry.clone())).collect()
}

pub(super) fn load<V: CachedValue>(entries: &Stored<V>) -> Result<IndexMap<String, Entry<V>>> {
    entries.iter().map(|(name, entry)| Ok((name.clone(), entry.map(&mut |slot| slot.load())?))).collect()
}
