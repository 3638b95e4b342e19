//! From what a user calls a model to a directory: a path, the local Hugging Face cache, or a download into it.

#[cfg(feature = "hub")]
mod download;
mod environment;

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

pub use environment::HubEnvironment;

use crate::{
    error::{ErrorKind, Result},
    json,
};

/// Revision that is meant where none is named.
const MAIN: &str = "main";
/// Longest hub id.
const MAX_ID_CHARS: usize = 96;

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedModel {
    /// A directory to open.
    pub dir: PathBuf,
    /// How it was found.
    pub origin: Origin,
}

/// How a model was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The name is a path.
    Directory,
    /// The name is a hub id, and its files were in the local cache.
    Cache {
        /// Commit of the snapshot.
        commit: String,
    },
    /// The name is a hub id, and its files were downloaded into the local cache.
    Download {
        /// Commit of the snapshot.
        commit: String,
    },
}

/// Finds a model by path or hub id; a path that exists wins.
///
/// The cache is looked up as `models--ORG--NAME/refs/REVISION` and `snapshots/COMMIT`; a snapshot counts where all
/// its weights are there. What is not in the cache is downloaded, unless the environment is offline or this build
/// has no downloader (feature `hub`).
///
/// # Errors
/// `Absent` for a name that is neither, for a model that the hub lacks, and while offline; `Unsafe` for a revision
/// that leaves the cache; `Download`.
pub fn resolve_model(name: &str, revision: Option<&str>, environment: &HubEnvironment) -> Result<ResolvedModel> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(ResolvedModel { dir: path.to_owned(), origin: Origin::Directory });
    }
    if !is_hub_id(name) {
        let hint = "a model is a directory, or a hub id such as `org/name`";
        return Err(ErrorKind::Absent { what: "the model directory".to_owned(), hint }.at(path));
    }
    let revision = revision.unwrap_or(MAIN);
    check_relative(revision)?;
    let cached = environment.cache_dir().map(|it| it.join(format!("models--{}", name.replace('/', "--"))));
    if let Some(model_dir) = &cached
        && let Some((dir, commit)) = whole_snapshot(model_dir, revision)
    {
        return Ok(ResolvedModel { dir, origin: Origin::Cache { commit } });
    }
    let what = format!("the model `{name}` at revision `{revision}`");
    if environment.offline {
        let hint = "it is not in the local cache, and HF_HUB_OFFLINE is set";
        return Err(ErrorKind::Absent { what, hint }.at(cached.unwrap_or_default()));
    }
    match cached {
        Some(model_dir) => download(name, revision, &model_dir, environment),
        None => {
            let hint = "there is no cache directory: HOME, HF_HOME and HF_HUB_CACHE are all unset";
            Err(ErrorKind::Absent { what, hint }.into())
        }
    }
}

#[cfg(feature = "hub")]
fn download(name: &str, revision: &str, model_dir: &Path, environment: &HubEnvironment) -> Result<ResolvedModel> {
    let (dir, commit) = download::snapshot(name, revision, model_dir, environment)?;
    Ok(ResolvedModel { dir, origin: Origin::Download { commit } })
}

#[cfg(not(feature = "hub"))]
fn download(name: &str, _: &str, model_dir: &Path, _: &HubEnvironment) -> Result<ResolvedModel> {
    let reason = format!("`{name}` is not in the local cache, and this build has no downloader");
    Err(ErrorKind::Download { reason }.at(model_dir))
}

/// The directory and commit of a cached snapshot that has all its weights.
fn whole_snapshot(model_dir: &Path, revision: &str) -> Option<(PathBuf, String)> {
    let named = fs::read_to_string(model_dir.join("refs").join(revision)).ok();
    let commit = named.as_deref().map_or(revision, str::trim).to_owned();
    check_relative(&commit).ok()?;
    let dir = model_dir.join("snapshots").join(&commit);
    has_all_weights(&dir).then_some((dir, commit))
}

/// Whether every shard that an index names is there, or, without an index, any weights are.
fn has_all_weights(dir: &Path) -> bool {
    let names = || fs::read_dir(dir).into_iter().flatten().flatten().map(|it| it.file_name());
    let mut texts = names().filter_map(|it| it.into_string().ok());
    let index = dir.join("model.safetensors.index.json");
    if !index.exists() {
        // Weights of another form are for the reader to refuse, with its hint.
        return texts.any(|it| it.ends_with(".safetensors") || crate::source::is_foreign_weights(&it));
    }
    let Ok(value) = json::read_json(&index, "the index", json::MAX_INDEX_BYTES) else { return true };
    let shards = value.get("weight_map").and_then(serde_json::Value::as_object);
    shards.is_some_and(|it| it.values().all(|file| file.as_str().is_some_and(|it| dir.join(it).exists())))
}

/// `name` or `org/name` of letters, digits, `-`, `_` and `.`, as the hub accepts them.
fn is_hub_id(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|it| it.is_ascii_alphanumeric() || matches!(it, '-' | '_' | '.'))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
    };
    name.len() <= MAX_ID_CHARS
        && name.split('/').count() <= 2
        && name.split('/').all(is_part)
        && !name.contains("--")
        && !name.contains("..")
}

/// Refuses a name from outside that would leave the directory it is joined to.
fn check_relative(name: &str) -> Result<()> {
    let plain = Path::new(name).components().all(|it| matches!(it, Component::Normal(_)));
    if name.is_empty() || name.contains(['\\', '\0']) || !plain {
        return Err(ErrorKind::Unsafe { name: name.to_owned(), reason: "the name leaves the cache directory" }.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids_are_told_from_paths() {
        for name in ["gpt2", "org/name", "Qwen/Qwen2.5-0.5B", "a_b/c.d"] {
            assert!(is_hub_id(name), "{name}");
        }
        for name in ["", "/", "./x", "../x", "a/b/c", "a//b", "a b", "~/x", "-a/b", "a/b.", "a--b", "a..b", "C:\\x"] {
            assert!(!is_hub_id(name), "{name}");
        }
    }
}
