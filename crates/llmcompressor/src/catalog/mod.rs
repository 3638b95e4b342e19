//! What modules a checkpoint has and how the weight of each is stored, from headers and config alone.

mod experts;
mod foreign;
mod matrix;
mod method;

pub(crate) use foreign::ForeignMethod;
pub(crate) use matrix::Matrix;
pub(crate) use method::Method;

use std::collections::HashMap;

use checkpoint::{Source, TensorEntry};
use compressed_tensors::{experts::ExpertPart, format::CompressionFormat, scheme::QuantizationScheme};

use crate::error::{Error, Result};
use method::Found;

/// Whether a tensor holds scales or zero points of activations or of a cache, by its name.
pub(crate) fn is_activation_parameter(name: &str) -> bool {
    const PREFIXES: &[&str] = &["input_", "output_", "q_", "k_", "v_"];
    let local = name.rsplit_once('.').map_or(name, |it| it.1);
    let is_parameter = local.ends_with("_scale") || local.ends_with("_zero_point");
    is_parameter && PREFIXES.iter().any(|it| local.starts_with(it))
}

/// A module that owns a matrix.
#[derive(Clone, Debug)]
pub(crate) struct StoredModule {
    /// Its name, e.g. `model.layers.0.mlp.experts.3.gate_proj`; of an expert inside a fused tensor, the name it gets.
    pub(crate) name: String,
    /// Its weight.
    pub(crate) matrix: Matrix,
    /// Names of the stored tensors that make up the weight; several modules share a fused tensor.
    pub(crate) tensors: Vec<String>,
    /// How it is compressed, if it is.
    pub(crate) scheme: Option<StoredScheme>,
}

impl StoredModule {
    /// Whether it is stored in the layout of another format.
    pub(crate) fn is_foreign(&self) -> bool {
        self.matrix.is_foreign()
    }
}

/// How a module of the source is compressed.
#[derive(Clone, Debug)]
pub(crate) struct StoredScheme {
    /// Name of its config group.
    pub(crate) group: String,
    /// The group's scheme.
    pub(crate) scheme: QuantizationScheme,
    /// Its layout on disk.
    pub(crate) format: CompressionFormat,
}

/// The modules of a checkpoint in the order of their tensors.
#[derive(Debug)]
pub(crate) struct Catalog {
    /// How the source is quantized, if it is.
    pub(crate) method: Method,
    /// Every module with a matrix.
    pub(crate) modules: Vec<StoredModule>,
    /// Compressed modules that cannot be read, and why.
    pub(crate) unreadable: Vec<(String, Error)>,
    /// Biases of fused experts: the tensor's name and its parts.
    pub(crate) expert_biases: Vec<(TensorEntry, Vec<ExpertPart>)>,
    by_name: HashMap<String, usize>,
    by_tensor: HashMap<String, Vec<usize>>,
}

impl Catalog {
    /// Reads the catalog of `source`.
    ///
    /// # Errors
    /// `SourceMethod` for a quantization that cannot be read, `Format` for a config or for tensors that contradict it.
    pub(crate) fn of(source: &Source) -> Result<Self> {
        let method = Method::of(source)?;
        let layouts = experts::Layouts::of(source);
        let mut catalog = Self {
            method,
            modules: Vec::new(),
            unreadable: Vec::new(),
            expert_biases: Vec::new(),
            by_name: HashMap::new(),
            by_tensor: HashMap::new(),
        };
        let found: Vec<Found> = {
            let resolver = catalog.method.resolver(source)?;
            source.tensors().map(|entry| resolver.find(source, entry)).collect::<Result<_>>()?
        };
        for (entry, found) in source.tensors().zip(found) {
            match found {
                Found::Module(module) => catalog.add(*module),
                Found::Unreadable(name, error) => catalog.unreadable.push((name, error)),
                Found::Other => {
                    if let Some(parts) = layouts.split(entry)? {
                        catalog.add_experts(entry, parts);
                    }
                }
            }
        }
        Ok(catalog)
    }

    /// The parts of a bias of fused experts whose weights are split, judged by `is_split` of the weights' tensor.
    pub(crate) fn bias_is_split(&self, bias: &str, is_split: impl Fn(&str) -> bool) -> Option<&[ExpertPart]> {
        let weights = bias.strip_suffix("_bias")?;
        let (_, parts) = self.expert_biases.iter().find(|(it, _)| it.name == bias)?;
        is_split(weights).then_some(parts.as_slice())
    }

    /// The modules that a stored tensor belongs to: several for a fused one, none for most small ones.
    pub(crate) fn modules_of(&self, tensor: &str) -> Vec<&StoredModule> {
        self.by_tensor.get(tensor).into_iter().flatten().map(|idx| &self.modules[*idx]).collect()
    }

    /// The module of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&StoredModule> {
        self.by_name.get(name).map(|idx| &self.modules[*idx])
    }

    fn add(&mut self, module: StoredModule) {
        for tensor in &module.tensors {
            self.by_tensor.entry(tensor.clone()).or_default().push(self.modules.len());
        }
        self.by_name.insert(module.name.clone(), self.modules.len());
        self.modules.push(module);
    }

    fn add_experts(&mut self, entry: &TensorEntry, parts: Vec<ExpertPart>) {
        if entry.shape.len() == 2 {
            self.expert_biases.push((entry.clone(), parts));
            return;
        }
        for part in parts {
            let name = part.name.strip_suffix(".weight").unwrap_or(&part.name).to_owned();
            let matrix = Matrix::expert(entry, part);
            self.add(StoredModule { name, matrix, tensors: vec![entry.name.clone()], scheme: None });
        }
    }
}
