//! What a checkpoint holds, from headers and config alone.

mod tree;

use std::collections::HashMap;

use bytesize::ByteSize;
use checkpoint::{Source, TensorEntry};
use serde::Serialize;

use crate::{
    catalog::{Catalog, Method, StoredModule},
    error::Result,
    source::open_source,
};

/// What a checkpoint holds.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The model as given.
    pub model: String,
    /// How its weights are stored.
    pub method: String,
    /// Parameters of all modules; of a compressed weight, those it has once dense.
    pub n_parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Shards and their bytes.
    pub shards: Vec<InspectedShard>,
    /// Every module that owns tensors, in the order of the shards.
    pub modules: Vec<InspectedModule>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// A file of weights.
#[derive(Clone, Debug, Serialize)]
pub struct InspectedShard {
    /// Its name.
    pub file: String,
    /// Its bytes.
    pub bytes: u64,
}

/// A module that owns tensors.
#[derive(Clone, Debug, Serialize)]
pub struct InspectedModule {
    /// Its name.
    pub name: String,
    /// Shape of its weight, or of its only tensor.
    pub shape: Vec<usize>,
    /// Element types as stored, the weight's first.
    pub dtypes: Vec<String>,
    /// Config group of a compressed weight.
    pub scheme: Option<String>,
    /// Layout of a compressed weight.
    pub format: Option<&'static str>,
    /// Parameters, of a compressed weight those it has once dense.
    pub n_parameters: u64,
    /// Bits on disk per parameter.
    pub bits_per_parameter: f64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// Reads headers and config of a directory or hub id.
///
/// # Errors
/// Faults of the checkpoint; a quantization that cannot be read.
pub fn inspect(model: &str) -> Result<Inspection> {
    let source = open_source(model)?;
    let catalog = Catalog::of(&source)?;
    let modules = modules(&source, &catalog);
    let unreadable = catalog.unreadable.iter().map(|(name, error)| format!("`{name}` cannot be read: {error}"));
    Ok(Inspection {
        model: model.to_owned(),
        method: match &catalog.method {
            Method::Dense => "dense".to_owned(),
            Method::CompressedTensors(config) => match &config.quantization {
                Some(it) => format!("compressed-tensors, {}", it.format),
                None => "compressed-tensors".to_owned(),
            },
            Method::Foreign(method) => method.name.clone(),
        },
        n_parameters: modules.iter().map(|it| it.n_parameters).sum(),
        bytes: modules.iter().map(|it| it.bytes).sum(),
        shards: source
            .shards()
            .iter()
            .map(|it| InspectedShard { file: it.file_name.clone(), bytes: it.file_bytes })
            .collect(),
        modules,
        warnings: source.warnings().iter().cloned().chain(unreadable).collect(),
    })
}

fn modules(source: &Source, catalog: &Catalog) -> Vec<InspectedModule> {
    let mut owners: Vec<(&str, Vec<&TensorEntry>)> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for entry in source.tensors() {
        let owner = entry.name.rsplit_once('.').map_or(entry.name.as_str(), |it| it.0);
        let place = *places.entry(owner).or_insert_with(|| {
            owners.push((owner, Vec::new()));
            owners.len() - 1
        });
        owners[place].1.push(entry);
    }
    owners
        .into_iter()
        .map(|(name, mut tensors)| {
            let stored = catalog.get(name);
            // The tensor that holds the weight comes first, whatever its place in the file.
            let names = stored.map_or(&[][..], |it| &it.tensors);
            let rank = |it: &TensorEntry| names.iter().position(|name| *name == it.name);
            tensors.sort_by_key(|it| rank(it).unwrap_or(usize::MAX));
            module(name, &tensors, stored)
        })
        .collect()
}

fn module(name: &str, tensors: &[&TensorEntry], stored: Option<&StoredModule>) -> InspectedModule {
    let weights: &[String] = stored.map_or(&[], |it| &it.tensors);
    let is_weight = |entry: &TensorEntry| weights.contains(&entry.name);
    let elements = |it: &TensorEntry| it.shape.iter().product::<usize>() as u64;
    let beside: u64 = tensors.iter().filter(|it| !is_weight(it)).map(|it| elements(it)).sum();
    let n_parameters = beside + stored.map_or(0, |it| (it.matrix.rows * it.matrix.cols) as u64);
    let bytes: u64 = tensors.iter().map(|it| it.n_bytes()).sum();
    let mut dtypes: Vec<String> = Vec::new();
    for entry in tensors {
        let dtype = entry.dtype.to_string();
        if !dtypes.contains(&dtype) {
            dtypes.push(dtype);
        }
    }
    let scheme = stored.and_then(|it| it.scheme.as_ref());
    InspectedModule {
        name: name.to_owned(),
        shape: match (stored, tensors) {
            (Some(it), _) => vec![it.matrix.rows, it.matrix.cols],
            (None, [only]) => only.shape.clone(),
            (None, _) => Vec::new(),
        },
        dtypes,
        scheme: scheme.map(|it| it.group.clone()),
        format: scheme.map(|it| it.format.name()),
        n_parameters,
        bits_per_parameter: bytes as f64 * 8.0 / n_parameters.max(1) as f64,
        bytes,
    }
}

impl Inspection {
    /// Every module on a line of its own, as a tree.
    pub fn tree(&self) -> String {
        format!("{}\n{}", self.heading(), tree::Tree::of(&self.modules).text(tree::Folding::Off))
    }

    /// As [`tree`](Self::tree), layers that look alike folded into one.
    pub fn folded_tree(&self) -> String {
        format!("{}\n{}", self.heading(), tree::Tree::of(&self.modules).text(tree::Folding::On))
    }

    fn heading(&self) -> String {
        let mut text = format!(
            "{}: {}, {:.2} M parameters, {} in {} {}, {:.2} bits per parameter",
            self.model,
            self.method,
            self.n_parameters as f64 / 1e6,
            ByteSize(self.bytes),
            self.shards.len(),
            if self.shards.len() == 1 { "shard" } else { "shards" },
            self.bytes as f64 * 8.0 / self.n_parameters.max(1) as f64,
        );
        for warning in &self.warnings {
            text.push_str(&format!("\nwarning: {warning}"));
        }
        text
    }
}
