//! Files beside the weights: which of them an output takes along.

use std::path::PathBuf;

use super::{
    index::{is_foreign_weights, is_index, is_safetensors},
    listing::Listing,
};
use crate::error::Result;

/// A file of the model directory that is neither shard, index nor config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Companion {
    /// Its name below the directory, `/` between parts.
    pub name: String,
    /// Where its bytes are, links resolved; for a file that is left, the place in the directory.
    pub path: PathBuf,
    /// What happens to it.
    pub treatment: Treatment,
}

/// What happens to a companion file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Treatment {
    /// Copied byte for byte.
    Copy,
    /// Python code: copied byte for byte, never run.
    CopyCode,
    /// Weights that are no part of the checkpoint, or in a form that is never opened: left.
    OtherWeights,
    /// No kind of file that a model needs, or not a regular file: left.
    Left,
}

impl Treatment {
    /// Whether the output gets the file.
    pub fn is_copied(self) -> bool {
        matches!(self, Self::Copy | Self::CopyCode)
    }
}

/// Endings of the files that tokenizers, templates, processors and licences come in.
const COPIED_ENDINGS: &[&str] =
    &[".json", ".jsonl", ".jinja", ".model", ".txt", ".tiktoken", ".vocab", ".bpe", ".spm", ".md", ".yaml", ".yml"];
/// Beginnings of file names that are copied whatever their ending.
const COPIED_BEGINNINGS: &[&str] = &["tokenizer", "vocab", "merges", "license", "notice", "copying"];

pub(super) fn list(listing: &Listing) -> Result<Vec<Companion>> {
    let mut out = Vec::new();
    for name in &listing.names {
        if name == "config.json" || (is_index(name) || is_safetensors(name)) && !name.contains('/') {
            continue;
        }
        let treatment = treatment_of(name);
        let path = if treatment.is_copied() { listing.resolve(name)? } else { listing.dir.join(name) };
        out.push(Companion { name: name.clone(), path, treatment });
    }
    let linked = listing.linked_dirs.iter().map(|name| Companion {
        name: name.clone(),
        path: listing.dir.join(name),
        treatment: Treatment::Left,
    });
    out.extend(linked);
    out.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(out)
}

/// What happens to a file of this name that is neither shard, index nor config.
pub(crate) fn treatment_of(name: &str) -> Treatment {
    let file = name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase();
    if is_safetensors(&file) || is_foreign_weights(&file) {
        Treatment::OtherWeights
    } else if file.ends_with(".index.json") {
        // An index of weights that are not copied would name absent files.
        Treatment::OtherWeights
    } else if file.ends_with(".py") {
        Treatment::CopyCode
    } else if COPIED_ENDINGS.iter().any(|it| file.ends_with(it))
        || COPIED_BEGINNINGS.iter().any(|it| file.starts_with(it))
    {
        Treatment::Copy
    } else {
        Treatment::Left
    }
}
