//! Where a data set lies on this machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Dataset;
use crate::{Error, ErrorKind, Result};

/// The folder of a data set below a hub cache: the snapshot that `refs/main` names, else the first one.
///
/// # Errors
/// [`ErrorKind::Unsupported`] with the places that were looked at, because nothing is downloaded here.
pub fn local_copy(dataset: &Dataset, hub_cache: Option<&Path>) -> Result<PathBuf> {
    let absent = |looked: String| {
        Err(Error::from(ErrorKind::Unsupported {
            what: format!("the data set `{}` without a local copy{looked}", dataset.name),
            hint: "name its file or folder in dataset_path".to_owned(),
        }))
    };
    let (Some(hub_id), Some(cache)) = (dataset.hub_id, hub_cache) else { return absent(String::new()) };
    let root = cache.join(format!("datasets--{}", hub_id.replace('/', "--")));
    let snapshots = root.join("snapshots");
    if let Ok(revision) = fs::read_to_string(root.join("refs").join("main")) {
        let revision = revision.trim();
        let is_name = !revision.is_empty() && revision.chars().all(|c| c.is_ascii_alphanumeric());
        if is_name && snapshots.join(revision).is_dir() {
            return Ok(snapshots.join(revision));
        }
    }
    let mut found: Vec<PathBuf> = match fs::read_dir(&snapshots) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect(),
        Err(_) => Vec::new(),
    };
    found.sort();
    match found.into_iter().next() {
        Some(snapshot) => Ok(snapshot),
        None => absent(format!(" (looked at {})", root.display())),
    }
}
