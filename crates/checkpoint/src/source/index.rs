//! Which shards belong to a checkpoint, and whether the index and the shards agree.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
};

use serde_json::Value;

use super::{
    IndexFacts, Shard, Source, TensorEntry,
    listing::{Listing, check_file_name},
};
use crate::{
    error::{Error, ErrorKind, Result},
    json,
    shown::shown_list,
};

const WHAT: &str = "the index";
const SUFFIX: &str = ".safetensors.index.json";
const STANDARD: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// The shards to read, in order.
pub(super) struct Chosen {
    pub(super) file_names: Vec<String>,
    pub(super) index: Option<Index>,
    pub(super) warnings: Vec<String>,
}

/// A parsed index whose file names are safe.
pub(super) struct Index {
    pub(super) facts: IndexFacts,
    path: PathBuf,
    weight_map: HashMap<String, String>,
}

/// Whether a file name is that of an index.
pub(crate) fn is_index(name: &str) -> bool {
    name.ends_with(SUFFIX)
}

/// Whether a file name is that of a shard.
pub(crate) fn is_safetensors(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// Whether a file holds weights in a form that is never opened.
pub(crate) fn is_foreign_weights(name: &str) -> bool {
    const ENDINGS: &[&str] =
        &[".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx", ".npz"];
    let lower = name.to_ascii_lowercase();
    ENDINGS.iter().any(|it| lower.ends_with(it))
}

/// Picks the index, else `model.safetensors`, else every safetensors file of the directory.
pub(super) fn choose_shards(listing: &Listing) -> Result<Chosen> {
    let present: Vec<String> = listing.top_level().filter(|it| is_safetensors(it)).cloned().collect();
    let indexes: Vec<&String> = listing.top_level().filter(|it| is_index(it)).collect();
    let index_name = match indexes[..] {
        [] => None,
        [one] => Some(one.as_str()),
        _ if listing.has(STANDARD) => Some(STANDARD),
        _ => {
            let reason = format!("{} of them, expected one, or one named {STANDARD}", indexes.len());
            return Err(ErrorKind::Syntax { what: WHAT, reason }.at(&listing.dir));
        }
    };
    let index = index_name.map(|it| read_index(listing, it)).transpose()?;
    let file_names = match &index {
        Some(index) => index.file_names(listing)?,
        None if present.iter().any(|it| it == SINGLE) => vec![SINGLE.to_owned()],
        None => present.clone(),
    };
    if file_names.is_empty() {
        return Err(no_weights(listing));
    }
    let left: Vec<String> = present.into_iter().filter(|it| !file_names.contains(it)).collect();
    let warnings = match &left[..] {
        [] => Vec::new(),
        _ => vec![format!("not read, since they are no part of the checkpoint: {}", shown_list(&left))],
    };
    Ok(Chosen { file_names, index, warnings })
}

fn no_weights(listing: &Listing) -> Error {
    let found: Vec<String> = listing.top_level().filter(|it| is_foreign_weights(it)).cloned().collect();
    let kind = if found.is_empty() {
        ErrorKind::Absent { what: "a safetensors file".to_owned(), hint: "expected model.safetensors or shards" }
    } else {
        ErrorKind::ForeignWeights { found }
    };
    kind.at(&listing.dir)
}

fn read_index(listing: &Listing, file_name: &str) -> Result<Index> {
    let path = listing.resolve(file_name)?;
    let malformed = |reason: String| ErrorKind::Syntax { what: WHAT, reason }.at(&path);
    let Value::Object(mut top) = json::read_json(&path, WHAT, json::MAX_INDEX_BYTES)? else {
        return Err(malformed("the top level is not an object".to_owned()));
    };
    let Some(Value::Object(map)) = top.remove("weight_map") else {
        return Err(malformed("`weight_map` is absent or not an object".to_owned()));
    };
    let metadata = match top.remove("metadata") {
        None | Some(Value::Null) => serde_json::Map::new(),
        Some(Value::Object(it)) => it,
        Some(_) => return Err(malformed("`metadata` is not an object".to_owned())),
    };
    let mut weight_map = HashMap::with_capacity(map.len());
    for (tensor, file) in map {
        let Value::String(file) = file else {
            return Err(malformed("`weight_map` has a value that is not a file name".to_owned()).tensor(tensor));
        };
        check_file_name(&file).map_err(|e| e.at(&path).tensor(&tensor))?;
        if is_foreign_weights(&file) {
            return Err(ErrorKind::ForeignWeights { found: vec![file] }.at(&path).tensor(tensor));
        }
        weight_map.insert(tensor, file);
    }
    Ok(Index { facts: IndexFacts { file_name: file_name.to_owned(), metadata }, path, weight_map })
}

impl Index {
    /// The files that the index names, sorted; all of them must be there.
    fn file_names(&self, listing: &Listing) -> Result<Vec<String>> {
        let unique: HashSet<&String> = self.weight_map.values().collect();
        let mut names: Vec<String> = unique.into_iter().cloned().collect();
        names.sort();
        let is_dir = |it: &&String| listing.linked_dirs.contains(it) || listing.dir.join(it).is_dir();
        if let Some(folder) = names.iter().find(is_dir) {
            let kind = ErrorKind::Unsafe { name: folder.clone(), reason: "it is not a regular file" };
            return Err(kind.at(&self.path));
        }
        let missing: Vec<String> = names.iter().filter(|it| !listing.has(it)).cloned().collect();
        if !missing.is_empty() {
            return Err(ErrorKind::MissingShards { names: missing }.at(&self.path));
        }
        Ok(names)
    }

    /// Compares the index with the headers, both ways.
    pub(super) fn check(&self, source: &Source) -> Result<Vec<String>> {
        let missing = |(tensor, file): &(&String, &String)| {
            let entry = source.get(tensor);
            entry.is_none_or(|it| &source.shards[it.shard_idx].file_name != *file)
        };
        let mut names: Vec<String> = self.weight_map.iter().filter(missing).map(|it| it.0.clone()).collect();
        if !names.is_empty() {
            names.sort();
            return Err(ErrorKind::MissingTensors { names }.at(&self.path));
        }
        let extra = |it: &&TensorEntry| !self.weight_map.contains_key(&it.name);
        let mut unindexed = source.tensors.iter().filter(extra).peekable();
        if let Some(first) = unindexed.peek() {
            let path = &source.shards[first.shard_idx].path;
            let names = unindexed.map(|it| it.name.clone()).collect();
            return Err(ErrorKind::UnindexedTensors { names }.at(path));
        }
        let total: u64 = source.tensors.iter().map(TensorEntry::n_bytes).sum();
        Ok(match self.facts.metadata.get("total_size") {
            Some(said) if said.as_u64() != Some(total) => {
                vec![format!("the index says total_size {said}, the shards hold {total} bytes")]
            }
            _ => Vec::new(),
        })
    }
}

/// Positions of the tensors in the order of their names; a name that two shards hold is refused.
pub(super) fn unique_names(shards: &[Shard], tensors: &[TensorEntry]) -> Result<Vec<usize>> {
    let mut by_name: Vec<usize> = (0..tensors.len()).collect();
    by_name.sort_by(|a, b| tensors[*a].name.cmp(&tensors[*b].name));
    let twice = by_name.windows(2).find(|it| tensors[it[0]].name == tensors[it[1]].name);
    if let Some(&[a, b]) = twice {
        let shard = |idx: usize| &shards[tensors[idx].shard_idx];
        let (first, second) = (shard(a), shard(b));
        let kind = ErrorKind::TensorTwice { first: first.file_name.clone(), second: second.file_name.clone() };
        return Err(kind.at(&second.path).tensor(&tensors[a].name));
    }
    Ok(by_name)
}
