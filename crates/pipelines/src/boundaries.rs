//! What flows between subgraphs: values by name for each batch, on disk where memory has no room.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Write},
    path::PathBuf,
};

use indexmap::{IndexMap, IndexSet};
use tempfile::TempPath;
use tensor::{Budget, DType, Tensor};

use crate::error::{ErrorKind, Result};

/// Batches before one that may have the same value; they differ in length.
const LOOKED_BACK: usize = 16;

/// Where values go that exceed a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spill {
    /// Bytes that values may hold in memory.
    pub limit_bytes: u64,
    /// An existing folder for the others.
    pub folder: PathBuf,
}

/// The live values of all batches.
pub(crate) struct Boundaries {
    batches: Vec<HashMap<String, Value>>,
    spill: Option<Spill>,
    in_memory_bytes: u64,
}

enum Value {
    Memory(Tensor),
    /// That of an earlier batch, which counts it.
    Shared(Tensor),
    Disk {
        file: TempPath,
        dtype: DType,
        shape: Vec<usize>,
    },
}

impl Boundaries {
    pub(crate) fn new(n_batches: usize, spill: Option<Spill>) -> Self {
        let batches = (0..n_batches).map(|_| HashMap::new()).collect();
        Self { batches, spill, in_memory_bytes: 0 }
    }

    /// The same values once more, of which each of both keeps half as many in memory.
    pub(crate) fn twin(&mut self, budget: &Budget) -> Result<Self> {
        if let Some(spill) = &mut self.spill {
            spill.limit_bytes /= 2;
        }
        let mut twin = Self::new(self.batches.len(), self.spill.clone());
        for (idx, batch) in self.batches.iter().enumerate() {
            let load = |(name, value): (&String, &Value)| Ok((name.clone(), value.load(budget)?));
            let values = batch.iter().map(load).collect::<Result<_>>()?;
            twin.update(idx, &IndexSet::new(), values, budget)?;
        }
        Ok(twin)
    }

    /// The values of a batch that have one of these names.
    pub(crate) fn fetch(
        &self,
        batch: usize,
        names: &IndexSet<String>,
        budget: &Budget,
    ) -> Result<HashMap<String, Tensor>> {
        let mut fetched = HashMap::with_capacity(names.len());
        for name in names {
            let Some(value) = self.batches[batch].get(name) else { continue };
            fetched.insert(name.clone(), value.load(budget)?);
        }
        Ok(fetched)
    }

    /// Drops the values that nobody takes any more, and adds new ones.
    pub(crate) fn update(
        &mut self,
        batch: usize,
        consumed: &IndexSet<String>,
        added: IndexMap<String, Tensor>,
        budget: &Budget,
    ) -> Result<()> {
        for name in consumed {
            if let Some(Value::Memory(tensor)) = self.batches[batch].remove(name) {
                self.in_memory_bytes = self.in_memory_bytes.saturating_sub(bytes_of(&tensor));
            }
        }
        for (name, tensor) in added {
            let value = match self.known(batch, &name, &tensor)? {
                Some(known) => Value::Shared(known),
                None => self.store(tensor, budget)?,
            };
            self.batches[batch].insert(name, value);
        }
        Ok(())
    }

    /// The same value of a batch shortly before: tables of positions, say, do not depend on what a batch holds.
    fn known(&self, batch: usize, name: &str, tensor: &Tensor) -> Result<Option<Tensor>> {
        for earlier in self.batches[batch.saturating_sub(LOOKED_BACK)..batch].iter().rev() {
            let Some(Value::Memory(known) | Value::Shared(known)) = earlier.get(name) else { continue };
            if known.shape() == tensor.shape() && known.dtype() == tensor.dtype() && tensor.is_dense() {
                return Ok((known.as_bytes()? == tensor.as_bytes()?).then(|| known.clone()));
            }
        }
        Ok(None)
    }

    fn store(&mut self, tensor: Tensor, budget: &Budget) -> Result<Value> {
        let bytes = bytes_of(&tensor);
        let tensor = tensor.dense(budget)?;
        match &self.spill {
            Some(spill) if self.in_memory_bytes + bytes > spill.limit_bytes => {
                let fault = |source| ErrorKind::Spill { path: spill.folder.clone(), source };
                let file = tempfile::Builder::new().prefix("boundary-").tempfile_in(&spill.folder).map_err(fault)?;
                let (mut file, path) = file.into_parts();
                file.write_all(tensor.as_bytes()?).map_err(fault)?;
                Ok(Value::Disk { file: path, dtype: tensor.dtype(), shape: tensor.shape().to_vec() })
            }
            _ => {
                self.in_memory_bytes += bytes;
                Ok(Value::Memory(tensor))
            }
        }
    }
}

impl Value {
    fn load(&self, budget: &Budget) -> Result<Tensor> {
        match self {
            Self::Memory(tensor) | Self::Shared(tensor) => Ok(tensor.clone()),
            Self::Disk { file, dtype, shape } => Tensor::build_bytes(budget, *dtype, shape, |out| {
                let fault = |source| ErrorKind::Spill { path: file.to_path_buf(), source };
                File::open(file).and_then(|mut it| it.read_exact(out)).map_err(fault)?;
                Ok(())
            }),
        }
    }
}

fn bytes_of(tensor: &Tensor) -> u64 {
    (tensor.elements() * tensor.dtype().bits() / 8) as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn values_beyond_the_limit_come_back_from_disk_bit_for_bit() {
        let (dir, budget) = (tempfile::tempdir().unwrap(), Budget::unlimited());
        let spill = Spill { limit_bytes: 40, folder: dir.path().to_owned() };
        let mut boundaries = Boundaries::new(2, Some(spill));
        for batch in 0..2 {
            let tensor = budget.tensor((0..6).map(|it| (it * (batch + 1)) as f32).collect(), &[2, 3]).unwrap();
            let added = IndexMap::from([("x".to_owned(), tensor)]);
            boundaries.update(batch, &IndexSet::new(), added, &budget).unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let names = IndexSet::from(["x".to_owned(), "unknown".to_owned()]);
        let second = boundaries.fetch(1, &names, &budget).unwrap();
        assert_eq!(second["x"].as_slice::<f32>().unwrap(), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        boundaries.update(1, &names, IndexMap::new(), &budget).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(boundaries.fetch(1, &names, &budget).unwrap().is_empty());
    }

    #[test]
    fn what_batches_have_in_common_is_held_once() {
        let budget = Budget::unlimited();
        let mut boundaries = Boundaries::new(4, None);
        let table = |len: usize| (0..len).map(|it| it as f32).collect::<Vec<f32>>();
        for (batch, (value, len)) in
            [(1.0f32, 40_000), (2.0, 30_000), (3.0, 40_000), (4.0, 40_000)].into_iter().enumerate()
        {
            let own = budget.tensor(vec![value; 50_000], &[50_000]).unwrap();
            let table = budget.tensor(table(len), &[len]).unwrap();
            let added = IndexMap::from([("own".to_owned(), own), ("table".to_owned(), table)]);
            boundaries.update(batch, &IndexSet::new(), added, &budget).unwrap();
        }
        assert_eq!(boundaries.in_memory_bytes, 4 * (4 * 50_000 + 40_000 + 30_000));
        let names = IndexSet::from(["own".to_owned(), "table".to_owned()]);
        // The first batch does not need them any more.
        boundaries.update(0, &names, IndexMap::new(), &budget).unwrap();
        let fetched: Vec<_> = (1..4).map(|it| boundaries.fetch(it, &names, &budget).unwrap()).collect();
        assert!(fetched[1]["table"].is_same(&fetched[2]["table"]));
        assert_eq!(fetched[2]["table"].as_slice::<f32>().unwrap(), table(40_000));
        assert_eq!(fetched[0]["table"].as_slice::<f32>().unwrap(), table(30_000));
        assert!(fetched.iter().zip(2..).all(|(it, own)| it["own"].as_slice::<f32>().unwrap()[0] == own as f32));
    }
}
