//! The writer of an output: opening or resuming, writing by tensor, committing by unit.

use std::{
    collections::{BTreeSet, HashSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use indexmap::IndexMap;
use serde_json::Value;

use super::{
    Existing, OutputPlan, WORK_DIR,
    clearing::Clearing,
    disk::{Disk, as_cannot_create},
    guard::{self, Found},
    journal::{DoneUnit, Journal, UnitCommit},
    layout::{Layout, ShardPlan, Slot, TensorSpec, contract},
    lock::Lock,
    progress::TensorState,
    record::{JOURNAL, PLAN, PlanRecord},
    shard_files::{self, OpenShard, ShardFiles},
    unit_files::{self, UnitFile},
};
use crate::{
    error::{ErrorKind, Result},
    regular,
};

/// Bytes kept free for the journal and the directory itself.
const SLACK_BYTES: u64 = 1 << 20;

/// An output that is being written.
///
/// Writes and commits take `&self` and may come from many threads; dropping the writer leaves a resumable state.
#[derive(Debug)]
pub struct Writer {
    pub(super) out: PathBuf,
    pub(super) work: PathBuf,
    pub(super) disk: Disk,
    pub(super) layout: Layout,
    pub(super) shard_files: ShardFiles,
    tensors: Vec<Mutex<TensorState>>,
    journal: Mutex<Journal>,
    unit_files: Mutex<IndexMap<String, UnitFile>>,
    record: PlanRecord,
    resumed: Resumed,
    _lock: Lock,
}

/// What became of opening an output.
#[derive(Debug)]
pub enum Opened {
    /// There is work to do.
    Work(Box<Writer>),
    /// The same plan was finished before.
    AlreadyDone,
}

/// What an unfinished output held.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resumed {
    /// The committed units whose bytes are whole, in the order of their commits.
    pub done: Vec<DoneUnit>,
    /// Units that were committed and damaged since; they are to be done again.
    pub damaged: Vec<String>,
}

impl Writer {
    /// Opens an output: afresh, or where a run of the same plan stopped.
    ///
    /// Everything is checked before anything is written: place, links, other runs, fingerprints, space.
    ///
    /// # Errors
    /// `OutputExists`, `OutputIsInput`, `FingerprintChanged` and `Unsafe` (refused); `CannotCreate`, `NoSpace`
    /// and `Locked` (cannot create); `Io`; `Contract` for a plan that contradicts itself.
    pub fn open_or_resume(plan: &OutputPlan) -> Result<Opened> {
        Self::open_on(plan, Disk::default())
    }

    pub(super) fn open_on(plan: &OutputPlan, disk: Disk) -> Result<Opened> {
        let layout = Layout::of(&plan.shards)?;
        let record = PlanRecord::of(plan, &layout);
        let found = guard::look(&plan.dir).map_err(as_cannot_create)?;
        guard::check_apart(&plan.dir, &plan.inputs).map_err(as_cannot_create)?;
        let finished = record.is_finished(&plan.dir, &layout);
        let overwrite = plan.existing == Existing::Overwrite;
        let has_plan = plan.dir.join(WORK_DIR).join(PLAN).exists();
        match found {
            Found::Files(_) if !overwrite && finished => return Ok(Opened::AlreadyDone),
            Found::Files(found) if !overwrite => return Err(ErrorKind::OutputExists { found }.at(&plan.dir)),
            Found::Work(found) if !overwrite && !finished && !found.is_empty() && !has_plan => {
                return Err(ErrorKind::OutputExists { found }.at(&plan.dir));
            }
            _ => {}
        }
        let shard_files = ShardFiles::new(plan.dir.join(WORK_DIR).join("shards"), plan.dir.clone());
        let clearing = if overwrite { Some(Clearing::of(&plan.dir, &layout)?) } else { None };
        let (needs, freed) = match &clearing {
            Some(clearing) => (layout.shards.iter().map(|it| it.file_bytes).sum(), clearing.freed_bytes()),
            None => (shard_files.missing_bytes(&layout.shards), 0),
        };
        guard::check_space(&plan.dir, needs.saturating_add(plan.extra_bytes).saturating_add(SLACK_BYTES), freed)?;
        Self::set_up(plan, disk, layout, record, shard_files, clearing, finished).map_err(as_cannot_create)
    }

    fn set_up(
        plan: &OutputPlan,
        disk: Disk,
        layout: Layout,
        record: PlanRecord,
        shard_files: ShardFiles,
        clearing: Option<Clearing>,
        finished: bool,
    ) -> Result<Opened> {
        let work = plan.dir.join(WORK_DIR);
        disk.create_dir_all(&work)?;
        let lock = Lock::take(&disk, &work.join("lock"))?;
        if let Some(clearing) = &clearing {
            clearing.run(&disk)?;
        } else if finished {
            // The earlier run died between its last file and the removal of its work directory.
            disk.remove_dir_all(&work)?;
            return Ok(Opened::AlreadyDone);
        }
        record.settle(&disk, &work)?;
        // Until the new config is written there must be none.
        disk.remove_file(&plan.dir.join("config.json"))?;
        disk.remove_dir_all(&work.join("temp"))?;
        disk.create_dir_all(&work.join("temp"))?;
        disk.create_dir_all(&work.join("shards"))?;
        shard_files.prepare(&disk, &layout.shards)?;
        let journal = Journal::open(&disk, work.join(JOURNAL))?;
        disk.sync_dir(&work)?;
        disk.sync_dir(&plan.dir)?;
        let tensors = layout.slots.iter().map(|_| Mutex::default()).collect();
        let mut writer = Self {
            out: plan.dir.clone(),
            work,
            disk,
            layout,
            shard_files,
            tensors,
            journal: Mutex::new(journal),
            unit_files: Mutex::default(),
            record,
            resumed: Resumed::default(),
            _lock: lock,
        };
        writer.recover()?;
        Ok(Opened::Work(Box::new(writer)))
    }

    /// Re-hashes what the journal names, forgets damaged units, and removes files that no unit owns.
    fn recover(&mut self) -> Result<()> {
        let mut journal = lock(&self.journal);
        let (mut whole, mut damaged) = (HashSet::new(), Vec::new());
        for unit in journal.done.values() {
            match self.check_unit(unit)? {
                Some(files) => {
                    lock(&self.unit_files).extend(files);
                    unit.tensors.keys().for_each(|it| *lock(self.state(it)) = TensorState::Committed);
                    whole.insert(unit.name.clone());
                }
                None => damaged.push(unit.name.clone()),
            }
        }
        if !damaged.is_empty() {
            journal.retain(&self.disk, &self.temp("journal"), |it| whole.contains(&it.name))?;
        }
        let done = journal.done.values().cloned().collect();
        drop(journal);
        self.resumed = Resumed { done, damaged };
        if self.resumed != Resumed::default() {
            let Resumed { done, damaged } = &self.resumed;
            tracing::info!(out = %self.out.display(), done = done.len(), damaged = damaged.len(), "resuming");
        }
        Ok(())
    }

    /// The files of a unit whose every byte has the journalled hash; `None` for a damaged one.
    fn check_unit(&self, unit: &DoneUnit) -> Result<Option<Vec<(String, UnitFile)>>> {
        for (name, hash) in &unit.tensors {
            let Some(slot) = self.layout.by_name.get(name).map(|it| &self.layout.slots[*it]) else { return Ok(None) };
            let mut hasher = blake3::Hasher::new();
            let shard = self.shard(slot.shard_idx)?;
            shard_files::hash_range(&shard.file, slot.range.start, slot.range.end, &mut hasher)
                .map_err(|e| e.at(&shard.path).tensor(name))?;
            if hasher.finalize().to_hex().as_str() != hash {
                return Ok(None);
            }
        }
        let mut files = Vec::with_capacity(unit.files.len());
        for (file_name, hash) in &unit.files {
            match unit_files::read(&self.shard_files.path(file_name)) {
                Ok(file) if &file.hash == hash => files.push((file_name.clone(), file)),
                Ok(_) => return Ok(None),
                Err(e) if matches!(e.kind(), ErrorKind::Io { .. }) => return Err(e),
                Err(_) => return Ok(None),
            }
        }
        Ok(Some(files))
    }

    /// What was found when the output was opened.
    pub fn resumed(&self) -> &Resumed {
        &self.resumed
    }

    /// The value that a finished output's `report.json` must hold under `fingerprints`, so that the same command
    /// is recognized as done.
    pub fn fingerprint_record(&self) -> Value {
        self.record.value()
    }

    /// Gives the run up: nothing of it is left, not even an output directory that holds nothing else.
    ///
    /// # Errors
    /// `Io`; the run can then be resumed or overwritten.
    pub fn abandon(self) -> Result<()> {
        // Without its plan the work directory is no run to resume, should the removal be cut short.
        self.disk.remove_file(&self.work.join(PLAN))?;
        self.disk.remove_dir_all(&self.work)?;
        // Fails where the directory holds other files, which is when it must stay.
        let _ = std::fs::remove_dir(&self.out);
        Ok(())
    }

    /// A folder for work files of the caller, such as saved boundaries; it goes when the output is finished.
    ///
    /// # Errors
    /// `Io`.
    pub fn scratch_dir(&self) -> Result<PathBuf> {
        let dir = self.work.join("scratch");
        self.disk.create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Writes bytes of a planned tensor from `offset_bytes` on.
    ///
    /// # Errors
    /// `Contract` for a tensor that is not planned or is committed, and for a range that leaves it; `Io`.
    pub fn write_at(&self, tensor: &str, offset_bytes: u64, bytes: &[u8]) -> Result<()> {
        let slot = self.slot(tensor)?;
        if offset_bytes.checked_add(bytes.len() as u64).is_none_or(|it| it > slot.n_bytes()) {
            let reason = format!("{} bytes at {offset_bytes} leave a tensor of {}", bytes.len(), slot.n_bytes());
            return Err(contract(reason).tensor(tensor));
        }
        let state = self.state(tensor);
        if matches!(*lock(state), TensorState::Committed) {
            return Err(contract("the tensor is committed already".to_owned()).tensor(tensor));
        }
        let shard = self.shard(slot.shard_idx)?;
        let at = slot.range.start + offset_bytes;
        self.disk.write_at(&shard.file, &shard.path, bytes, at).map_err(|e| e.tensor(tensor))?;
        let mut state = lock(state);
        if !matches!(*state, TensorState::Written(_)) {
            *state = TensorState::Written(Box::default());
        }
        if let TensorState::Written(progress) = &mut *state {
            progress.record(offset_bytes, bytes);
        }
        Ok(())
    }

    /// Reads bytes of a planned tensor back, from `offset_bytes` on.
    ///
    /// # Errors
    /// As [`Writer::write_at`].
    pub fn read_into(&self, tensor: &str, offset_bytes: u64, out: &mut [u8]) -> Result<()> {
        let slot = self.slot(tensor)?;
        if offset_bytes.checked_add(out.len() as u64).is_none_or(|it| it > slot.n_bytes()) {
            let reason = format!("{} bytes at {offset_bytes} leave a tensor of {}", out.len(), slot.n_bytes());
            return Err(contract(reason).tensor(tensor));
        }
        let shard = self.shard(slot.shard_idx)?;
        regular::read_exact_at(&shard.file, out, slot.range.start + offset_bytes)
            .map_err(|e| e.at(&shard.path).tensor(tensor))
    }

    /// Writes a whole safetensors file for a unit whose sizes could not be planned; it counts once a commit
    /// names it.
    ///
    /// # Errors
    /// `Contract` for a name that the plan or an earlier unit has, and for data of another length than the shape
    /// says; `Io`.
    pub fn write_unit_file(
        &self,
        file_name: &str,
        metadata: &IndexMap<String, String>,
        tensors: &[(&TensorSpec, &[u8])],
    ) -> Result<()> {
        let planned = self.layout.shards.iter().any(|it| it.file_name == file_name);
        let committed = lock(&self.journal).done.values().any(|it| it.files.contains_key(file_name));
        if planned || committed {
            return Err(contract(format!("the file name {file_name} is taken")));
        }
        if let Some((spec, _)) = tensors.iter().find(|it| self.layout.by_name.contains_key(&it.0.name)) {
            return Err(contract("the tensor is planned in a shard".to_owned()).tensor(&spec.name));
        }
        let specs = tensors.iter().map(|it| it.0.clone()).collect();
        let plan = ShardPlan { file_name: file_name.to_owned(), tensors: specs, metadata: metadata.clone() };
        let path = self.work.join("shards").join(file_name);
        let file = unit_files::write(&self.disk, &self.temp(file_name), &path, &plan, tensors)?;
        self.disk.sync_dir(&self.work.join("shards"))?;
        lock(&self.unit_files).insert(file_name.to_owned(), file);
        Ok(())
    }

    /// Commits units: their bytes reach the disk first, then their journal lines. After the return a kill
    /// loses none of them; a kill before loses at most these.
    ///
    /// # Errors
    /// `Contract` for a unit that was committed before, or whose tensors are not wholly written; `Io`.
    pub fn commit(&self, units: &[UnitCommit]) -> Result<()> {
        let mut names = HashSet::new();
        let mut touched = BTreeSet::new();
        let mut lines = Vec::with_capacity(units.len());
        for unit in units {
            if lock(&self.journal).done.contains_key(&unit.name) || !names.insert(&unit.name) {
                return Err(contract(format!("the unit {} is committed twice", unit.name)));
            }
            let mut line = DoneUnit {
                name: unit.name.clone(),
                tensors: IndexMap::new(),
                files: IndexMap::new(),
                snapshot: unit.snapshot.clone(),
            };
            for tensor in &unit.tensors {
                let slot = self.slot(tensor)?;
                touched.insert(slot.shard_idx);
                line.tensors.insert(tensor.clone(), self.hash_written(slot)?);
            }
            for file_name in &unit.files {
                let Some(hash) = lock(&self.unit_files).get(file_name).map(|it| it.hash.clone()) else {
                    return Err(contract(format!("the file {file_name} of unit {} is not written", unit.name)));
                };
                line.files.insert(file_name.clone(), hash);
            }
            lines.push(line);
        }
        for shard_idx in touched {
            let shard = self.shard(shard_idx)?;
            self.disk.sync(&shard.file, &shard.path)?;
        }
        lock(&self.journal).append(&self.disk, lines)?;
        for tensor in units.iter().flat_map(|it| &it.tensors) {
            *lock(self.state(tensor)) = TensorState::Committed;
        }
        Ok(())
    }

    /// The hash of a tensor that must be wholly written; what was not hashed on the way is read back.
    fn hash_written(&self, slot: &Slot) -> Result<String> {
        let mut state = lock(self.state(&slot.name));
        let n_bytes = slot.n_bytes();
        if n_bytes == 0 {
            return Ok(blake3::Hasher::new().finalize().to_hex().to_string());
        }
        let fault = |reason: &str| Err(contract(reason.to_owned()).tensor(&slot.name));
        let progress = match &mut *state {
            TensorState::Untouched => return fault("nothing of the tensor is written"),
            TensorState::Committed => return fault("the tensor is committed already"),
            TensorState::Written(progress) => progress,
        };
        if !progress.covers(n_bytes) {
            return fault("the tensor is not wholly written");
        }
        let shard = self.shard(slot.shard_idx)?;
        let from = slot.range.start + progress.hashed_bytes;
        shard_files::hash_range(&shard.file, from, slot.range.end, &mut progress.hasher)
            .map_err(|e| e.at(&shard.path).tensor(&slot.name))?;
        progress.hashed_bytes = n_bytes;
        Ok(progress.hasher.finalize().to_hex().to_string())
    }

    /// The planned tensors that no unit has committed.
    pub fn uncommitted(&self) -> Vec<&str> {
        let is_open = |it: &&Slot| it.n_bytes() > 0 && !matches!(*lock(self.state(&it.name)), TensorState::Committed);
        self.layout.slots.iter().filter(is_open).map(|it| it.name.as_str()).collect()
    }

    /// Files of committed units with their tensors.
    pub(super) fn committed_files(&self) -> Vec<(String, UnitFile)> {
        let journal = lock(&self.journal);
        let files = lock(&self.unit_files);
        let names = journal.done.values().flat_map(|it| it.files.keys());
        names.filter_map(|it| files.get(it).map(|file| (it.clone(), file.clone()))).collect()
    }

    /// A name for a file that is being written.
    pub(super) fn temp(&self, name: &str) -> PathBuf {
        self.work.join("temp").join(name.replace('/', "_"))
    }

    fn shard(&self, shard_idx: usize) -> Result<Arc<OpenShard>> {
        self.shard_files.get(&self.disk, shard_idx, &self.layout.shards[shard_idx])
    }

    fn slot(&self, tensor: &str) -> Result<&Slot> {
        let idx = self.layout.by_name.get(tensor);
        idx.map(|it| &self.layout.slots[*it])
            .ok_or_else(|| contract("the tensor is not planned".to_owned()).tensor(tensor))
    }

    fn state(&self, tensor: &str) -> &Mutex<TensorState> {
        // Every caller has looked the name up, or checked it against the layout.
        &self.tensors[self.layout.by_name[tensor]]
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
