//! What modules a checkpoint has and how the weight of each is stored, from headers and config alone.

mod experts;
mod matrix;
mod method;

pub(crate) use matrix::Matrix;
pub(crate) use method::Method;

use std::collections::HashMap;

use checkpoint::{Source, TensorEntry};
use compressed_tensors::experts::ExpertPart;

use crate::error::Result;

/// A module that owns a matrix.
#[derive(Clone, Debug)]
pub(crate) struct StoredModule {
    /// Its name, e.g. `model.layers.0.mlp.experts.3.gate_proj`; of an expert inside a fused tensor, the name it gets.
    pub(crate) name: String,
    /// Its weight.
    pub(crate) matrix: Matrix,
    /// Names of the stored tensors that make up the weight; several modules share a fused tensor.
    pub(crate) tensors: Vec<String>,
}

/// The modules of a checkpoint in the order of their tensors.
#[derive(Debug)]
pub(crate) struct Catalog {
    /// How the source is quantized, if it is.
    pub(crate) method: Method,
    /// Every module with a matrix.
    pub(crate) modules: Vec<StoredModule>,
    /// Biases of fused experts: the tensor's name and its parts.
    pub(crate) expert_biases: Vec<(TensorEntry, Vec<ExpertPart>)>,
    by_name: HashMap<String, usize>,
}

impl Catalog {
    /// Reads the catalog of `source`.
    ///
    /// # Errors
    /// `SourceMethod` for a quantization that cannot be read, `Format` for a config or for tensors that contradict it.
    pub(crate) fn of(source: &Source) -> Result<Self> {
        let method = Method::of(source)?;
        let layouts = experts::Layouts::of(source);
        let mut catalog = Self { method, modules: Vec::new(), expert_biases: Vec::new(), by_name: HashMap::new() };
        for entry in source.tensors() {
            if let Some((name, matrix, tensors)) = catalog.method.module_of(source, entry)? {
                catalog.add(StoredModule { name, matrix, tensors });
            } else if let Some(parts) = layouts.split(entry)? {
                catalog.add_experts(entry, parts);
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

    /// The module of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&StoredModule> {
        self.by_name.get(name).map(|idx| &self.modules[*idx])
    }

    fn add(&mut self, module: StoredModule) {
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
            self.add(StoredModule { name, matrix, tensors: vec![entry.name.clone()] });
        }
    }
}
