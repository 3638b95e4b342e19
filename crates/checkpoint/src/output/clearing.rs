//! Removal of an earlier output: known names only, and never through a link.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{WORK_DIR, disk::Disk, guard, layout::Layout};
use crate::{
    error::{Error, ErrorKind, Result},
    json,
    source::check_file_name,
};

/// Files that every output of ours may have beside its shards.
const OWN_FILES: &[&str] = &["config.json", "recipe.yaml", "report.json", "report.html"];

/// What an overwriting run removes, in this order.
pub(super) struct Clearing {
    out: PathBuf,
    names: Vec<String>,
}

impl Clearing {
    /// Lists what is to be removed; safetensors files that no index and no usual name explains are refused.
    pub(super) fn of(out: &Path, layout: &Layout) -> Result<Self> {
        let mut shards = BTreeSet::new();
        let mut indexes = Vec::new();
        let mut present = Vec::new();
        if out.is_dir() {
            for entry in fs::read_dir(out).map_err(|e| Error::io("list", out, e))? {
                let entry = entry.map_err(|e| Error::io("list", out, e))?;
                let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
                if name.ends_with(".safetensors.index.json") {
                    shards.extend(named_by(&entry.path()));
                    indexes.push(name);
                } else {
                    present.push(name);
                }
            }
        }
        let is_known = |name: &str| {
            shards.contains(name)
                || layout.shards.iter().any(|it| it.file_name == name)
                || name.starts_with("model") && name.ends_with(".safetensors")
        };
        let foreign: Vec<String> =
            present.iter().filter(|it| it.ends_with(".safetensors") && !is_known(it)).cloned().collect();
        if !foreign.is_empty() {
            return Err(ErrorKind::OutputExists { found: foreign }.at(out));
        }
        // The config goes first, so that what is left is at no time a model.
        let own = OWN_FILES.iter().filter(|it| present.iter().any(|name| name == *it)).map(|it| (*it).to_owned());
        let weights = present.iter().filter(|it| it.ends_with(".safetensors") && is_known(it)).cloned();
        let names = own.chain(indexes).chain(weights).collect();
        Ok(Self { out: out.to_owned(), names })
    }

    /// Bytes on the disk that the removal gives back.
    pub(super) fn freed_bytes(&self) -> u64 {
        let work = self.out.join(WORK_DIR).join("shards");
        let unfinished = fs::read_dir(work).into_iter().flatten().flatten().map(|it| it.path());
        self.names.iter().map(|it| self.out.join(it)).chain(unfinished).map(|it| guard::allocated_bytes(&it)).sum()
    }

    /// Removes the outputs; the plan of an unfinished run goes first, so that it is not resumed half-removed.
    pub(super) fn run(&self, disk: &Disk) -> Result<()> {
        let work = self.out.join(WORK_DIR);
        disk.remove_file(&work.join("plan.json"))?;
        for name in &self.names {
            let path = self.out.join(name);
            if fs::symlink_metadata(&path).is_ok_and(|it| it.is_dir()) {
                let reason = format!("a directory named {name} is in the way");
                return Err(ErrorKind::CannotCreate { reason }.at(path));
            }
            disk.remove_file(&path)?;
        }
        disk.remove_file(&work.join("journal.jsonl"))?;
        for folder in ["shards", "temp", "scratch"] {
            disk.remove_dir_all(&work.join(folder))?;
        }
        disk.sync_dir(&self.out)
    }
}

/// The plain file names in an index; one that cannot be read names nothing.
fn named_by(index: &Path) -> Vec<String> {
    let Ok(value) = json::read_json(index, "the index", json::MAX_INDEX_BYTES) else { return Vec::new() };
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else { return Vec::new() };
    map.values().filter_map(Value::as_str).filter(|it| check_file_name(it).is_ok()).map(str::to_owned).collect()
}
