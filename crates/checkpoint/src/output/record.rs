//! What an output is made from, as the work directory and the finished report remember it.

use std::{fs, path::Path};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    OutputPlan,
    disk::Disk,
    layout::{LaidShard, Layout},
};
use crate::{
    error::{ErrorKind, Result},
    json,
};

/// The plan of an unfinished output.
pub(super) const PLAN: &str = "plan.json";
/// The journal of an unfinished output.
pub(super) const JOURNAL: &str = "journal.jsonl";

/// Largest report that is read: it has an entry for every module, experts included.
const MAX_REPORT_BYTES: u64 = 256 << 20;

/// The content of `plan.json`, and the value of `fingerprints` in a finished output's `report.json`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanRecord {
    format: u32,
    fingerprints: IndexMap<String, String>,
}

impl PlanRecord {
    pub(super) fn of(plan: &OutputPlan, layout: &Layout) -> Self {
        let mut fingerprints = plan.fingerprints.clone();
        fingerprints.insert("layout".to_owned(), layout.fingerprint());
        Self { format: 1, fingerprints }
    }

    pub(super) fn value(&self) -> Value {
        // A map of strings is always JSON.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Compares with the record of an unfinished run; without one, leaves this one.
    pub(super) fn settle(&self, disk: &Disk, work: &Path) -> Result<()> {
        let path = work.join(PLAN);
        if !path.exists() {
            // A journal without its plan says nothing about this run.
            disk.remove_file(&work.join(JOURNAL))?;
            for folder in ["shards", "scratch"] {
                disk.remove_dir_all(&work.join(folder))?;
            }
            disk.write_whole(&work.join("plan.new"), &path, &json::pretty_json(&self.value()))?;
            return disk.sync_dir(work);
        }
        let value = json::read_json(&path, "the plan of the unfinished output", json::MAX_CONFIG_BYTES)?;
        let found: Self = serde_json::from_value(value).map_err(|_| {
            let differing = vec!["the tool".to_owned()];
            ErrorKind::FingerprintChanged { differing }.at(&path)
        })?;
        let names = self.fingerprints.keys().chain(found.fingerprints.keys());
        let mut differing: Vec<String> =
            names.filter(|it| self.fingerprints.get(*it) != found.fingerprints.get(*it)).cloned().collect();
        if found.format != self.format {
            differing.push("the format of the plan".to_owned());
        }
        differing.sort();
        differing.dedup();
        if differing.is_empty() { Ok(()) } else { Err(ErrorKind::FingerprintChanged { differing }.at(&path)) }
    }

    /// Whether the directory is a finished output of this very plan.
    pub(super) fn is_finished(&self, out: &Path, layout: &Layout) -> bool {
        let read = |name| json::read_json(&out.join(name), "the report", MAX_REPORT_BYTES);
        let same = read("report.json").is_ok_and(|it| it.get("fingerprints") == Some(&self.value()));
        let whole = |it: &LaidShard| {
            fs::symlink_metadata(out.join(&it.file_name))
                .is_ok_and(|meta| meta.is_file() && meta.len() == it.file_bytes)
        };
        same && out.join("config.json").is_file() && layout.shards.iter().all(whole)
    }
}
