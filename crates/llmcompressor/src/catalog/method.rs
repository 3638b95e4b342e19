//! How a source says it is quantized, and which tensors make up a module under that method.

use std::collections::HashMap;

use checkpoint::{Source, TensorEntry};
use compressed_tensors::{
    config::{Assignment, CheckpointConfig, SchemeTable},
    format::{CompressionFormat, infer_module_format},
    target::NamedModule,
    weight_compressor::TensorSpec,
    weight_decompressor::{WeightDecompressor, stored_shape},
};

use super::{ForeignMethod, Matrix, StoredModule, StoredScheme, matrix::Compressed};
use crate::error::{ErrorKind, InContext, Result};

/// How the weights of a source are stored.
#[derive(Debug)]
pub(crate) enum Method {
    /// As plain tensors.
    Dense,
    /// In the compressed-tensors format.
    CompressedTensors(Box<CheckpointConfig>),
    /// In another format that converters read.
    Foreign(ForeignMethod),
}

impl Method {
    /// Reads the source's config.
    ///
    /// # Errors
    /// `SourceMethod` for a method that cannot be read, `Format` for a config that contradicts itself.
    pub(crate) fn of(source: &Source) -> Result<Self> {
        let Ok(config) = source.config() else { return Ok(Self::Dense) };
        let Some((location, section)) = compressed_tensors::config::locate_section(config) else {
            return Ok(Self::Dense);
        };
        let method = section.get("quant_method").and_then(|it| it.as_str()).unwrap_or("compressed-tensors");
        let context = || format!("`{}` in {}", location.path(), source.dir().join("config.json").display());
        match method {
            "compressed-tensors" | "sparseml" => {
                let read = CheckpointConfig::from_model_config(config).context(context())?;
                Ok(read.map_or(Self::Dense, |it| Self::CompressedTensors(Box::new(it))))
            }
            other => {
                let unknown = || ErrorKind::SourceMethod {
                    file: source.dir().join("config.json"),
                    method: other.to_owned(),
                    known: vec!["compressed-tensors", "awq", "gptq", "modelopt", "fp8"],
                };
                let foreign = ForeignMethod::of(config, section, other, &context())?;
                Ok(Self::Foreign(foreign.ok_or_else(unknown)?))
            }
        }
    }

    /// What finds the modules of a source under this method.
    ///
    /// # Errors
    /// `Format` for patterns that cannot be compiled.
    pub(super) fn resolver<'m>(&'m self, source: &'m Source) -> Result<Resolver<'m>> {
        let table = match self {
            Self::CompressedTensors(config) => match &config.quantization {
                Some(it) => Some((SchemeTable::new(it).context("quantization_config")?, it.format.as_str())),
                None => None,
            },
            Self::Dense | Self::Foreign(_) => None,
        };
        let foreign = match self {
            Self::Foreign(it) => Some((it, tensors_by_module(source))),
            _ => None,
        };
        Ok(Resolver { table, foreign })
    }
}

/// Finds modules.
pub(super) struct Resolver<'m> {
    /// Schemes of a compressed source, and the model's format.
    table: Option<(SchemeTable<'m>, &'m str)>,
    /// Converters of a source in another format, and the tensors of each of its modules.
    foreign: Option<(&'m ForeignMethod, HashMap<&'m str, Vec<&'m TensorEntry>>)>,
}

fn tensors_by_module(source: &Source) -> HashMap<&str, Vec<&TensorEntry>> {
    let mut modules: HashMap<&str, Vec<&TensorEntry>> = HashMap::new();
    for entry in source.tensors() {
        if let Some((module, _)) = entry.name.rsplit_once('.') {
            modules.entry(module).or_default().push(entry);
        }
    }
    modules
}

/// What a tensor turned out to be.
pub(super) enum Found {
    /// The first tensor of a module's weight.
    Module(Box<StoredModule>),
    /// The first tensor of a compressed module that cannot be read, and why.
    Unreadable(String, crate::Error),
    /// Anything else.
    Other,
}

impl Resolver<'_> {
    /// The module whose weight begins with `entry`.
    pub(super) fn find(&self, source: &Source, entry: &TensorEntry) -> Result<Found> {
        let Some((name, local)) = entry.name.rsplit_once('.') else { return Ok(Found::Other) };
        let is_compressed = match local {
            "weight_packed" => true,
            // No layout stores codes as a vector: a scale beside one is no part of a weight.
            "weight" => {
                let has_scale = source.get(&format!("{name}.weight_scale")).is_some();
                self.table.is_some() && has_scale && entry.shape.len() > 1
            }
            _ => false,
        };
        if matches!(local, "weight" | "qweight") {
            match self.converted(name) {
                Ok(Some(module)) => return Ok(Found::Module(Box::new(module))),
                Ok(None) => {}
                Err(error) => return Ok(Found::Unreadable(name.to_owned(), error)),
            }
        }
        if is_compressed {
            return Ok(match self.compressed(source, name) {
                Ok(module) => Found::Module(Box::new(module)),
                Err(error) => Found::Unreadable(name.to_owned(), error),
            });
        }
        if local != "weight" || !entry.dtype.is_dense_float() {
            return Ok(Found::Other);
        }
        let module =
            |matrix| StoredModule { name: name.to_owned(), matrix, tensors: vec![entry.name.clone()], scheme: None };
        Ok(Matrix::dense(entry).map_or(Found::Other, |it| Found::Module(Box::new(module(it)))))
    }

    fn converted(&self, name: &str) -> Result<Option<StoredModule>> {
        let Some((method, modules)) = &self.foreign else { return Ok(None) };
        let local = |it: &TensorEntry| it.name[name.len() + 1..].to_owned();
        let tensors = modules.get(name).into_iter().flatten().map(|it| (local(it), (*it).clone())).collect();
        Ok(method.weight(name, tensors)?.map(|(weight, tensors)| StoredModule {
            name: name.to_owned(),
            matrix: Matrix::foreign(weight),
            tensors,
            scheme: None,
        }))
    }

    fn compressed(&self, source: &Source, name: &str) -> Result<StoredModule> {
        let (assignment, format) = self.assignment(name)?;
        let context = || format!("module `{name}`");
        let tensor = |local: &str| source.get(&format!("{name}.{local}"));
        let stored: Vec<TensorSpec> = LOCALS
            .iter()
            .filter_map(|local| Some((*local, tensor(local)?)))
            .map(|(local, it)| TensorSpec { name: local.to_owned(), dtype: it.dtype, shape: it.shape.clone() })
            .collect();
        let shape = match format {
            CompressionFormat::PackQuantized => weight_shape(source, name)?,
            _ => stored_shape(format, &stored).context(context())?,
        };
        let decompressor = WeightDecompressor::new(assignment.scheme, format, &stored, shape).context(context())?;
        let tensors: Vec<String> = stored.iter().map(|it| format!("{name}.{}", it.name)).collect();
        let scheme = StoredScheme { group: assignment.group.to_owned(), scheme: assignment.scheme.clone(), format };
        let matrix = Matrix::compressed(Compressed::new(source, name, decompressor)?);
        Ok(StoredModule { name: name.to_owned(), matrix, tensors, scheme: Some(scheme) })
    }

    fn assignment(&self, name: &str) -> Result<(Assignment<'_>, CompressionFormat)> {
        let absent = |reason: &str| ErrorKind::Unexplained { module: name.to_owned(), reason: reason.to_owned() };
        let Some((table, model_format)) = &self.table else {
            return Err(absent("config.json has no quantization_config").into());
        };
        // A name may be an embedding's; nothing but a stored scale brought us here, so both classes may be meant.
        let module = NamedModule { name, classes: &["Linear", "Embedding"] };
        let Some(assignment) = table.assign(module).context("quantization_config")? else {
            return Err(absent("no config group covers it").into());
        };
        let labelled = CompressionFormat::from_name(model_format).ok();
        let labelled =
            labelled.filter(|it| !matches!(it, CompressionFormat::MixedPrecision | CompressionFormat::Dense));
        let format = assignment.scheme.format.or(labelled);
        Ok((assignment, format.unwrap_or_else(|| infer_module_format("Linear", assignment.scheme))))
    }
}

/// Local names of the tensors that make up a compressed weight.
const LOCALS: &[&str] = &[
    "weight_packed",
    "weight",
    "weight_scale",
    "weight_zero_point",
    "weight_shape",
    "weight_global_scale",
    "weight_g_idx",
];

/// The content of `weight_shape`.
fn weight_shape(source: &Source, name: &str) -> Result<[usize; 2]> {
    let entry = source.require(&format!("{name}.weight_shape"))?;
    let bytes = source.read(entry)?;
    let values: Vec<usize> =
        bytes.chunks_exact(8).filter_map(|it| i64::from_le_bytes(it.try_into().ok()?).try_into().ok()).collect();
    <[usize; 2]>::try_from(values).map_err(|found| {
        ErrorKind::Unexplained {
            module: name.to_owned(),
            reason: format!("weight_shape holds {found:?}, expected two extents"),
        }
        .into()
    })
}
