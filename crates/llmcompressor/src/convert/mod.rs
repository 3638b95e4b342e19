//! From one checkpoint format to another, module by module.

mod module;

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use bytesize::ByteSize;
use checkpoint::{Existing, Finish, Generated, IndexRule, Source};
use compressed_tensors::{
    DType,
    config::{ConfigLocation, FORMAT_VERSION, locate_section, write_section},
    converters::{AutoAwqExporter, AutoGptqExporter, CheckpointFormat, Converter, source_converter},
    target::Patterns,
};
use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    Interrupt, Progress,
    catalog::{Catalog, Method, StoredModule, is_activation_parameter},
    error::{ErrorKind, InContext, Result},
    model_config::{remove_section, set_section},
    model_free::RunStatus,
    rewrite::{CopyTensor, DensifyModule, Facts, Rewrite, Rewritten, Settings, Unit},
    source::open_source,
};
use module::ConvertModule;

/// The format that `convert` writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Plain weights.
    Dense,
    /// compressed-tensors, codes and scales unchanged.
    CompressedTensors,
    /// AutoAWQ's gemm layout, 4 bits.
    AutoAwq,
    /// AutoGPTQ's layout.
    AutoGptq,
}

/// What `convert` is asked to do.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// The source: a directory or a hub id.
    pub model: String,
    /// The output directory.
    pub output: PathBuf,
    /// What to write.
    pub target: Target,
    /// Torch's name of the element type of dense weights; `None` keeps what each weight decompresses to.
    pub dtype: Option<String>,
    /// Modules to leave as they are.
    pub ignore: Vec<String>,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
    /// Ceiling for buffers.
    pub max_memory_bytes: u64,
    /// Cuts output shards at this size; `None` mirrors the source's shards.
    pub max_shard_bytes: Option<u64>,
    /// What to do with an output that exists.
    pub existing: Existing,
    /// A request to stop.
    pub interrupt: Interrupt,
}

/// What a conversion did, as `report.json` has it.
#[derive(Clone, Debug, Serialize)]
pub struct ConvertReport {
    /// How it ended.
    pub status: RunStatus,
    /// The output directory.
    pub output: PathBuf,
    /// What was written.
    pub target: Target,
    /// Modules converted.
    pub converted: Vec<String>,
    /// Tensors copied bit for bit.
    pub n_copied_tensors: usize,
    /// Tensors that have no meaning in the target: scales of activations and caches.
    pub dropped: Vec<String>,
    /// Bytes of the source's tensors.
    pub input_bytes: u64,
    /// Bytes of the output's tensors.
    pub output_bytes: u64,
    /// Seconds of reading, computing and writing.
    pub seconds: f64,
    /// What decided the bytes; an equal run recognizes the output by it.
    pub fingerprints: Value,
}

impl ConvertReport {
    /// A few lines for a person.
    pub fn summary(&self) -> String {
        let output = self.output.display();
        if self.status == RunStatus::AlreadyDone {
            return format!("{output}: an equal run has finished already; nothing was done");
        }
        let dropped = match self.dropped.len() {
            0 => String::new(),
            n => format!(", {n} scales of activations dropped"),
        };
        format!(
            "{output}: {} modules converted, {} tensors copied{dropped}\n  size     {} -> {}\n  time     {:.2} s",
            self.converted.len(),
            self.n_copied_tensors,
            ByteSize(self.input_bytes),
            ByteSize(self.output_bytes),
            self.seconds
        )
    }
}

/// Converts `options.model` into `options.output`.
///
/// # Errors
/// `Option` where the source cannot become the target; as [`crate::model_free::model_free_ptq`] otherwise.
pub fn convert(options: &ConvertOptions, progress: &dyn Progress) -> Result<ConvertReport> {
    let source = open_source(&options.model)?;
    let plan = match options.target {
        Target::Dense => to_dense(&source, options)?,
        _ => by_converter(&source, options)?,
    };
    let mut report = plan.report;
    let settings = Settings {
        activity: "converting",
        output: options.output.clone(),
        threads: options.threads,
        max_memory_bytes: options.max_memory_bytes,
        max_shard_bytes: options.max_shard_bytes,
        existing: options.existing,
        fingerprints: IndexMap::from([
            ("target".to_owned(), format!("{:?} {:?} {:?}", options.target, options.dtype, options.ignore)),
            ("tool".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ]),
        interrupt: options.interrupt.clone(),
    };
    let mut finished = report.clone();
    let config = checkpoint::pretty_json(&Value::Object(plan.config));
    let index = source.index().map_or("model.safetensors.index.json", |it| &it.file_name).to_owned();
    let finish = |facts: &Facts| -> Result<Finish> {
        finished.output_bytes = facts.output_bytes;
        finished.seconds = facts.seconds;
        finished.fingerprints = facts.fingerprints.clone();
        let bytes = serde_json::to_vec_pretty(&finished).unwrap_or_default();
        Ok(Finish {
            companions: source.companions().to_vec(),
            generated: vec![Generated { name: "report.json".to_owned(), bytes }],
            index: IndexRule::Always(index),
            config: Some(config),
        })
    };
    match (Rewrite { source: &source, units: plan.units, settings }).run(finish, progress)? {
        Rewritten::Done => Ok(finished),
        Rewritten::AlreadyDone => {
            report.status = RunStatus::AlreadyDone;
            Ok(report)
        }
    }
}

struct Plan {
    units: Vec<Box<dyn Unit>>,
    config: Map<String, Value>,
    report: ConvertReport,
}

impl Plan {
    fn new(source: &Source, options: &ConvertOptions) -> Self {
        let config = match source.config() {
            Ok(Value::Object(config)) => config.clone(),
            _ => Map::new(),
        };
        let report = ConvertReport {
            status: RunStatus::Done,
            output: options.output.clone(),
            target: options.target,
            converted: Vec::new(),
            n_copied_tensors: 0,
            dropped: Vec::new(),
            input_bytes: source.tensors().map(checkpoint::TensorEntry::n_bytes).sum(),
            output_bytes: 0,
            seconds: 0.0,
            fingerprints: Value::Null,
        };
        Self { units: Vec::new(), config, report }
    }

    fn copy(&mut self, entry: &checkpoint::TensorEntry) {
        self.report.n_copied_tensors += 1;
        self.units.push(Box::new(CopyTensor::new(entry)));
    }

    /// Fails where nothing was found to convert.
    fn require_work(self, source: &Source, expected: &str) -> Result<Self> {
        if !self.report.converted.is_empty() {
            return Ok(self);
        }
        Err(ErrorKind::Option {
            option: "SRC",
            found: format!("{} (no module to convert)", source.dir().display()),
            expected: expected.to_owned(),
        }
        .into())
    }
}

/// Every weight that is not plain becomes plain.
fn to_dense(source: &Source, options: &ConvertOptions) -> Result<Plan> {
    let dtype = options.dtype.as_deref().map(dense_dtype).transpose()?;
    let ignore = Patterns::compile(&options.ignore).context("ignore")?;
    let mut catalog = Catalog::of(source)?;
    if let Some((_, error)) = std::mem::take(&mut catalog.unreadable).into_iter().next() {
        return Err(error);
    }
    let mut plan = Plan::new(source, options);
    let mut replaced: HashSet<&str> = HashSet::new();
    let mut at: IndexMap<&str, Vec<&StoredModule>> = IndexMap::new();
    let mut left: HashSet<&str> = HashSet::new();
    for module in &catalog.modules {
        // Experts in one dense tensor are dense as they are.
        if module.scheme.is_none() && !module.is_foreign() {
            continue;
        }
        if ignore.matches_name(&module.name).context("ignore")? {
            left.insert(&module.name);
            continue;
        }
        plan.report.converted.push(module.name.clone());
        replaced.extend(module.tensors.iter().map(String::as_str));
        at.entry(&module.tensors[0]).or_default().push(module);
    }
    // A cache's scales stand beside no weight and go with the last compressed module.
    let stays = |scale: &str| {
        let module = scale.rsplit_once('.').map_or("", |it| it.0);
        left.contains(module) || !left.is_empty() && catalog.get(module).is_none()
    };
    for entry in source.tensors() {
        let name = entry.name.as_str();
        for module in at.get(name).into_iter().flatten() {
            plan.units.push(Box::new(DensifyModule::new(module, dtype)));
        }
        if replaced.contains(name) {
            continue;
        }
        if is_activation_parameter(name) && !stays(name) {
            plan.report.dropped.push(name.to_owned());
        } else {
            plan.copy(entry);
        }
    }
    plan = plan.require_work(source, "a compressed checkpoint")?;
    if left.is_empty() {
        remove_section(&mut plan.config);
    } else {
        ignore_too(&mut plan.config, source, &catalog.method, &plan.report.converted)?;
    }
    Ok(plan)
}

/// Has the config's section say that `modules` are compressed no longer.
fn ignore_too(config: &mut Map<String, Value>, source: &Source, method: &Method, modules: &[String]) -> Result<()> {
    let Some((location, section)) = source.config().ok().and_then(locate_section) else { return Ok(()) };
    let (Method::CompressedTensors(_), Some(mut section)) = (method, section.as_object().cloned()) else {
        let found = "a pattern that leaves modules in another format".to_owned();
        let expected = "patterns of modules in the compressed-tensors format".to_owned();
        return Err(ErrorKind::Option { option: "--ignore", found, expected }.into());
    };
    let entries = section.entry("ignore").or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(entries) = entries {
        entries.extend(modules.iter().cloned().map(Value::String));
    }
    if location != ConfigLocation::Top {
        remove_section(config);
    }
    set_section(config, Value::Object(section));
    Ok(())
}

/// Modules go through one converter, codes and scales unchanged.
fn by_converter(source: &Source, options: &ConvertOptions) -> Result<Plan> {
    if !options.ignore.is_empty() {
        let expected = "nothing; a checkpoint has one packed format".to_owned();
        return Err(ErrorKind::Option { option: "--ignore", found: options.ignore.join(" "), expected }.into());
    }
    let converter = converter(source, options)?;
    let mut plan = Plan::new(source, options);
    let mut modules: IndexMap<&str, Vec<checkpoint::TensorEntry>> = IndexMap::new();
    for entry in source.tensors() {
        let module = entry.name.rsplit_once('.').map_or("", |it| it.0);
        modules.entry(module).or_default().push(entry.clone());
    }
    for (name, tensors) in modules {
        match ConvertModule::plan(name, &tensors, &converter)? {
            Some(unit) => {
                plan.report.converted.push(name.to_owned());
                plan.units.push(Box::new(unit));
            }
            None => tensors.iter().for_each(|it| plan.copy(it)),
        }
    }
    let own = match Catalog::of(source)?.method {
        Method::CompressedTensors(config) => config.quantization,
        _ => None,
    };
    let config = converter.update_config(own).context("quantization_config")?;
    remove_section(&mut plan.config);
    if let Some(section) = write_section(config.as_ref(), None, FORMAT_VERSION) {
        set_section(&mut plan.config, section);
    }
    let mut config = Value::Object(plan.config);
    converter.update_model_config(&mut config).context("config.json")?;
    plan.config = match config {
        Value::Object(config) => config,
        _ => Map::new(),
    };
    plan.require_work(source, "a checkpoint with packed weights")
}

/// The converter from what the source is to the target.
fn converter(source: &Source, options: &ConvertOptions) -> Result<Arc<dyn Converter>> {
    let method = Catalog::of(source)?.method;
    let refuse = |found: &str, expected: &str| {
        Err(ErrorKind::Option { option: "--to", found: found.to_owned(), expected: expected.to_owned() }.into())
    };
    let quantization = match &method {
        Method::CompressedTensors(config) => config.quantization.clone(),
        _ => None,
    };
    match (options.target, quantization, &method) {
        (Target::AutoAwq, Some(config), _) => Ok(Arc::new(AutoAwqExporter::new(&config).context("--to auto-awq")?)),
        (Target::AutoGptq, Some(config), _) => {
            Ok(Arc::new(AutoGptqExporter::new(&config, CheckpointFormat::V1).context("--to auto-gptq")?))
        }
        (Target::AutoAwq | Target::AutoGptq, None, _) => {
            refuse("an int4 layout", "dense; only compressed-tensors checkpoints can be exported to it")
        }
        (_, _, Method::Foreign(foreign)) if foreign.name != "fp8" => {
            let config = source.config()?;
            match source_converter(config, DType::BF16).context("config.json")? {
                Some(converter) => Ok(converter.into()),
                None => refuse("compressed-tensors", "dense"),
            }
        }
        (_, _, Method::Foreign(_)) => {
            refuse("compressed-tensors", "dense, for a source with FP8 blocks; `model-free-ptq` compresses it anew")
        }
        _ => refuse("compressed-tensors", "dense, auto-awq or auto-gptq, for a source that is not packed otherwise"),
    }
}

fn dense_dtype(name: &str) -> Result<DType> {
    let found = DType::from_torch_name(name).filter(|it| it.is_dense_float());
    found.ok_or_else(|| {
        let expected = "bfloat16, float16, float32 or float64".to_owned();
        ErrorKind::Option { option: "--dtype", found: name.to_owned(), expected }.into()
    })
}
