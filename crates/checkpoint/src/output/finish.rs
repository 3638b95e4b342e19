//! The end of an output: shards get their names, side files and index follow, the config comes last.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Component, Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::{
    disk::Disk,
    layout::{Slot, contract},
    writer::Writer,
};
use crate::{
    error::{ErrorKind, Result},
    json::pretty_json,
    regular,
    source::Companion,
};

/// The files beside the shards.
#[derive(Clone, Debug, Default)]
pub struct Finish {
    /// Files of the source; those that are marked as copied are, unless a generated file has their name.
    pub companions: Vec<Companion>,
    /// Files made by the run, such as `recipe.yaml` and `report.json`.
    pub generated: Vec<Generated>,
    /// Whether there is an index.
    pub index: IndexRule,
    /// The text of `config.json`; none where the source has none.
    pub config: Option<Vec<u8>>,
}

/// A file made by the run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// Its name below the output directory, `/` between parts.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// When an index is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IndexRule {
    /// Where there is more than one shard, as `model.safetensors.index.json`.
    #[default]
    WhenSharded,
    /// In every case, under this name.
    Always(String),
}

/// A finished output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// The names of all files, sorted.
    pub files: Vec<String>,
    /// Bytes of all tensors.
    pub total_size: u64,
    /// The shard of each tensor.
    pub weight_map: BTreeMap<String, String>,
}

/// Replaces side files of a finished output, each as a whole: a kill leaves the old or the new one.
///
/// # Errors
/// `Io`.
pub fn replace_generated(dir: &Path, files: &[Generated]) -> Result<()> {
    let disk = Disk::default();
    for Generated { name, bytes } in files {
        disk.write_whole(&dir.join(format!(".{name}.new")), &dir.join(name), bytes)?;
    }
    disk.sync_dir(dir)
}

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";

impl Writer {
    /// Finishes the output. The work directory goes, and the lock with it.
    ///
    /// # Errors
    /// `Contract` where tensors are not committed or a generated name leaves the directory, `Io`; the same
    /// command then finishes what is left.
    pub fn finish(self, finish: &Finish) -> Result<Finished> {
        self.finish_in_place(finish)
    }

    /// [`Writer::finish`] of a writer that is still looked at afterwards.
    pub(super) fn finish_in_place(&self, finish: &Finish) -> Result<Finished> {
        if let Some(first) = self.uncommitted().first() {
            let reason = format!("{} planned tensors are not committed", self.uncommitted().len());
            return Err(contract(reason).tensor(*first));
        }
        let mut finished = self.summary();
        for file_name in self.shard_names() {
            let (from, to) = (self.shard_files.path(&file_name), self.out.join(&file_name));
            if from != to {
                self.disk.rename(&from, &to)?;
            }
            finished.files.push(file_name);
        }
        self.disk.sync_dir(&self.out)?;
        self.write_side_files(finish, &mut finished)?;
        if let Some(config) = &finish.config {
            self.disk.write_whole(&self.temp(CONFIG), &self.out.join(CONFIG), config)?;
            self.disk.sync_dir(&self.out)?;
            finished.files.push(CONFIG.to_owned());
        }
        self.disk.remove_file(&self.work.join("plan.json"))?;
        self.disk.remove_dir_all(&self.work)?;
        self.disk.sync_dir(&self.out)?;
        finished.files.sort();
        Ok(finished)
    }

    fn shard_names(&self) -> Vec<String> {
        let planned = self.layout.shards.iter().map(|it| it.file_name.clone());
        planned.chain(self.committed_files().into_iter().map(|it| it.0)).collect()
    }

    fn summary(&self) -> Finished {
        let slots = &self.layout.slots;
        let shard_of = |it: &Slot| self.layout.shards[it.shard_idx].file_name.clone();
        let mut weight_map: BTreeMap<_, _> = slots.iter().map(|it| (it.name.clone(), shard_of(it))).collect();
        let mut total_size: u64 = slots.iter().map(Slot::n_bytes).sum();
        for (file_name, file) in self.committed_files() {
            total_size += file.data_bytes;
            weight_map.extend(file.tensors.into_iter().map(|it| (it, file_name.clone())));
        }
        Finished { files: Vec::new(), total_size, weight_map }
    }

    fn write_side_files(&self, finish: &Finish, finished: &mut Finished) -> Result<()> {
        let index = match &finish.index {
            IndexRule::Always(name) => Some(name.as_str()),
            IndexRule::WhenSharded => (finished.files.len() > 1).then_some(INDEX),
        };
        let index = index.map(|name| Generated { name: name.to_owned(), bytes: finished.index_text() });
        let generated: Vec<&Generated> = finish.generated.iter().chain(&index).collect();
        let taken: HashSet<&str> = generated.iter().map(|it| it.name.as_str()).chain([CONFIG]).collect();
        for companion in &finish.companions {
            if companion.treatment.is_copied() && !taken.contains(companion.name.as_str()) {
                let path = self.side_path(&companion.name)?;
                let (mut file, _) = regular::open(&companion.path, "a file beside the weights")?;
                self.disk.stream_whole(&self.temp(&companion.name), &path, &mut file)?;
                finished.files.push(companion.name.clone());
            }
        }
        for it in generated {
            self.disk.write_whole(&self.temp(&it.name), &self.side_path(&it.name)?, &it.bytes)?;
            finished.files.push(it.name.clone());
        }
        let folders: HashSet<&Path> = finished.files.iter().flat_map(|it| Path::new(it).ancestors().skip(1)).collect();
        let mut folders: Vec<&Path> = folders.into_iter().collect();
        folders.sort();
        folders.into_iter().rev().try_for_each(|it| self.disk.sync_dir(&self.out.join(it)))
    }

    /// The place of a side file, its folders created; a name that leaves the output and a link are refused.
    fn side_path(&self, name: &str) -> Result<PathBuf> {
        let refuse = |reason| ErrorKind::Unsafe { name: name.to_owned(), reason }.at(&self.out);
        if name.is_empty() || Path::new(name).components().any(|it| !matches!(it, Component::Normal(_))) {
            return Err(refuse("the file name leaves the directory"));
        }
        let mut folder = self.out.clone();
        for part in Path::new(name).parent().into_iter().flat_map(Path::components) {
            folder.push(part);
            if fs::symlink_metadata(&folder).is_ok_and(|it| it.is_symlink()) {
                return Err(refuse("nothing is written through a link"));
            }
            self.disk.create_dir_all(&folder)?;
        }
        Ok(self.out.join(name))
    }
}

impl Finished {
    /// The text of the index: sorted names, two spaces a level.
    fn index_text(&self) -> Vec<u8> {
        let weight_map: Map<String, Value> = self.weight_map.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
        pretty_json(&json!({"metadata": {"total_size": self.total_size}, "weight_map": weight_map}))
    }
}
