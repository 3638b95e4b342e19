//! A finished output of which chosen modules are done again: what it is, what is taken over, and the weights of both together.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use checkpoint::{Source, TensorEntry};
use compressed_tensors::{
    DType,
    config::{QuantizationConfig, SchemeTable},
    scheme::QuantizationScheme,
    target::NamedModule,
};
use indexmap::IndexMap;
use lifecycle::ModuleStore;
use models::{BoxedError, Model, Separated, Weights};
use serde_json::Value;

use super::{
    ModuleReport, OneshotReport,
    scope::{Chosen, bare, inseparable},
};
use crate::{
    catalog::{Catalog, Method},
    error::{ErrorKind, InContext, Result},
    eval::DenseWeights,
};

/// An output of an earlier run.
pub(super) struct Finished {
    dir: PathBuf,
    weights: Arc<DenseWeights>,
    report: OneshotReport,
    quantization: Option<QuantizationConfig>,
}

impl Finished {
    /// Opens the output in `dir`, for a run that writes to `output`.
    ///
    /// # Errors
    /// `Option` where both are one directory, `Unsuitable` for an output that is not finished or of another source, and what its
    /// files are refused for.
    pub(super) fn open(dir: &Path, output: &Path, source: &Source) -> Result<Self> {
        if let (Ok(from), Ok(to)) = (fs::canonicalize(dir), fs::canonicalize(output))
            && from == to
        {
            let expected = "another directory than --out: what is taken over is read while the output is written";
            let found = format!("{}, which is --out too", dir.display());
            return Err(ErrorKind::Option { option: "--from", found, expected: expected.to_owned() }.into());
        }
        let unsuitable = |reason: String| ErrorKind::Unsuitable { dir: dir.to_owned(), reason };
        if dir.join(".llmc").exists() || (dir.is_dir() && !dir.join("config.json").is_file()) {
            return Err(unsuitable("it is not finished: give the command that began it again".to_owned()).into());
        }
        let opened = Source::open(dir)?;
        let report = OneshotReport::of(dir)?;
        if report.inputs.source_hash != source.fingerprint() {
            let made_from = &report.inputs.model;
            let reason =
                format!("it was made from `{made_from}`, whose files differ from MODEL's (names, sizes or times)");
            return Err(unsuitable(reason).into());
        }
        let catalog = Catalog::of(&opened)?;
        let quantization = match &catalog.method {
            Method::CompressedTensors(config) => config.quantization.clone(),
            Method::Dense | Method::Foreign(_) => None,
        };
        let groups = quantization.iter().flat_map(|it| &it.config_groups);
        if let Some((name, _)) = groups.into_iter().find(|it| it.1.weights.is_none()) {
            return Err(unsuitable(format!("its `{name}` quantizes activations without weights")).into());
        }
        let weights = Arc::new(DenseWeights::new(opened, catalog)?);
        Ok(Self { dir: dir.to_owned(), weights, report, quantization })
    }

    /// Its directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its files.
    pub(super) fn source(&self) -> &Source {
        self.weights.source()
    }

    /// Refuses a choice that parts what it has changed together.
    ///
    /// # Errors
    /// `Inseparable` for a smoothed mapping, `Unsuitable` for a tied head that it has parted.
    pub(super) fn check_parts(&self, model: &Model, chosen: &Chosen) -> Result<()> {
        if let Some(Separated { head, .. }) = model.separated()
            && self.source().get(&model.store().info(head).written).is_some()
        {
            let reason = "its output head has a weight of its own, MODEL's is the embedding".to_owned();
            return Err(ErrorKind::Unsuitable { dir: self.dir.clone(), reason }.into());
        }
        let mut known = HashSet::new();
        for mapping in self.report.said.iter().flat_map(entries).map(layers_of) {
            let (inside, outside): (Vec<&str>, Vec<&str>) = mapping.iter().partition(|it| chosen.contains(it));
            if let (Some(module), Some(other)) = (inside.first(), outside.first()) {
                return Err(inseparable(module, other, "a scale was moved between them"));
            }
            known.extend(mapping);
        }
        let is_unknown = |it: &&String| !known.contains(it.as_str());
        let mut others = self.report.transformed.iter().filter(is_unknown);
        let inside = others.clone().find(|it| chosen.contains(it));
        if let (Some(module), Some(other)) = (inside, others.find(|it| !chosen.contains(it))) {
            return Err(inseparable(module, other, "a transform has changed both"));
        }
        Ok(())
    }

    /// Its schemes of modules that are not chosen.
    fn kept_schemes(&self, chosen: &Chosen) -> IndexMap<String, QuantizationScheme> {
        let modules = self.weights.catalog().modules.iter().filter(|it| !chosen.contains(&it.name));
        modules.filter_map(|it| Some((it.name.clone(), it.scheme.as_ref()?.scheme.clone()))).collect()
    }

    /// Compressed modules that are taken over.
    pub(super) fn n_kept(&self, chosen: &Chosen) -> usize {
        self.kept_schemes(chosen).len()
    }

    /// Its scheme for caches.
    pub(super) fn cache_scheme(&self) -> Option<QuantizationScheme> {
        let args = self.quantization.as_ref()?.kv_cache_scheme.clone()?;
        Some(compressed_tensors::kv_cache::cache_scheme(args))
    }

    /// The schemes of all modules, those that are done again under `new` ones.
    ///
    /// Where a new scheme is that of the group which covers its module already, the groups stay as they are. Else every group
    /// lists its modules by name: engines look a class up before they look at the parts of a fused layer, so that a group of a
    /// class would take the layers of all others.
    ///
    /// # Errors
    /// Patterns of its config that cannot be matched.
    pub(super) fn schemes(
        &self,
        store: &dyn ModuleStore,
        chosen: &Chosen,
        new: &IndexMap<String, QuantizationScheme>,
    ) -> Result<IndexMap<String, QuantizationScheme>> {
        let kept = self.kept_schemes(chosen);
        if kept.is_empty() {
            return Ok(new.clone());
        }
        let context = || format!("quantization_config of {}", self.dir.display());
        let groups = QuantizationConfig { ignore: Vec::new(), ..self.quantization.clone().unwrap_or_default() };
        let table = SchemeTable::new(&groups).context(context())?;
        let mut merged = kept;
        let mut is_covered = true;
        for module in store.modules() {
            let Some(scheme) = new.get(&module.name) else { continue };
            let classes: Vec<&str> = module.classes.iter().map(String::as_str).collect();
            let found = table.assign(NamedModule { name: &module.name, classes: &classes }).context(context())?;
            let found = found.map(|it| it.scheme).filter(|it| bare(it) == bare(scheme));
            is_covered &= found.is_some();
            merged.insert(module.name.clone(), found.unwrap_or(scheme).clone());
        }
        if !is_covered {
            let mut members: Vec<(QuantizationScheme, Vec<String>)> = Vec::new();
            for module in store.modules() {
                let Some(scheme) = merged.get(&module.name).map(bare) else { continue };
                match members.iter_mut().find(|it| it.0 == scheme) {
                    Some((_, names)) => names.push(module.name.clone()),
                    None => members.push((scheme, vec![module.name.clone()])),
                }
            }
            for (scheme, targets) in members {
                for name in &targets {
                    merged.insert(name.clone(), QuantizationScheme { targets: targets.clone(), ..scheme.clone() });
                }
            }
        }
        Ok(merged)
    }

    /// Its tensors that are taken over.
    pub(super) fn kept_tensors(&self, fresh: &Fresh) -> impl Iterator<Item = &TensorEntry> {
        self.source().tensors().filter(move |it| !fresh.replaces(&it.name))
    }

    /// Adds what is taken over to a report of what was done anew.
    pub(super) fn complete(&self, report: &mut OneshotReport, chosen: &Chosen, order: &dyn ModuleStore) {
        let is_kept = |module: &str| !chosen.contains(module);
        let module_of = |tensor: &str| tensor.rsplit_once('.').map_or(String::new(), |it| it.0.to_owned());
        let old = &self.report;
        let kept = old.modules.iter().filter(|it| is_kept(&it.record.module)).cloned();
        let mut modules: HashMap<String, ModuleReport> =
            kept.chain(report.modules.drain(..)).map(|it| (it.record.module.clone(), it)).collect();
        report.modules = order.modules().iter().filter_map(|it| modules.remove(&it.name)).collect();
        report.rewritten.extend(old.rewritten.iter().filter(|it| is_kept(&module_of(it))).cloned());
        report.transformed.extend(old.transformed.iter().filter(|it| is_kept(it)).cloned());
        let said = old.said.iter().filter_map(|it| {
            let kept = entries(it).filter(|it| layers_of(it).first().is_none_or(|it| is_kept(it)));
            let kept: Vec<Value> = kept.cloned().collect();
            let mut said = it.clone();
            (!kept.is_empty()).then(|| {
                said["data"] = Value::Array(kept);
                said
            })
        });
        let said: Vec<Value> = said.collect();
        report.said.splice(0..0, said);
    }
}

/// What a modifier said of one wave.
fn entries(said: &Value) -> impl Iterator<Item = &Value> {
    said["data"].as_array().into_iter().flatten()
}

/// The layers of a mapping, the smoothed one first; none where something else was said.
fn layers_of(entry: &Value) -> Vec<&str> {
    let balance = entry["balance"].as_array().into_iter().flatten();
    std::iter::once(&entry["smooth"]).chain(balance).filter_map(Value::as_str).collect()
}

/// The tensors of chosen modules.
pub(super) struct Fresh {
    tensors: HashSet<String>,
    modules: HashSet<String>,
}

impl Fresh {
    pub(super) fn of(model: &Model, chosen: &Chosen) -> Self {
        let (tree, store) = (model.tree(), model.store());
        let owners = tree.ids().filter(|it| chosen.contains(tree.path(*it)) && !model.own_parameters(*it).is_empty());
        let owners: Vec<_> = owners.collect();
        let tensors = owners.iter().flat_map(|it| model.own_parameters(*it)).map(|it| {
            let info = store.info(*it);
            info.stacked_in.clone().unwrap_or_else(|| info.name.clone())
        });
        let tensors = tensors.collect();
        Self { tensors, modules: owners.iter().map(|it| tree.path(*it).to_owned()).collect() }
    }

    /// Whether a tensor of the source belongs to a chosen module.
    pub(super) fn contains(&self, tensor: &str) -> bool {
        self.tensors.contains(tensor)
    }

    /// Whether a tensor of a finished output belongs to a chosen module; a cache's scales are the layer's.
    fn replaces(&self, tensor: &str) -> bool {
        let (module, local) = tensor.rsplit_once('.').unwrap_or(("", tensor));
        let is_cache = ["k_scale", "v_scale", "k_zero_point", "v_zero_point"].contains(&local);
        self.contains(tensor) || (self.modules.contains(module) && !is_cache)
    }
}

/// Chosen modules as the source has them, and all others as a finished output has.
pub(super) struct Grafted {
    source: Arc<Source>,
    finished: Arc<DenseWeights>,
    fresh: Fresh,
}

impl Grafted {
    pub(super) fn new(source: &Arc<Source>, finished: &Finished, chosen: &Chosen, model: &Model) -> Self {
        let finished = Arc::clone(&finished.weights);
        Self { source: Arc::clone(source), finished, fresh: Fresh::of(model, chosen) }
    }
}

impl Weights for Grafted {
    fn spec(&self, name: &str) -> Option<(DType, Vec<usize>)> {
        if self.fresh.contains(name) { self.source.spec(name) } else { self.finished.spec(name) }
    }

    fn read_into(&self, name: &str, offset_bytes: u64, out: &mut [u8]) -> std::result::Result<(), BoxedError> {
        if self.fresh.contains(name) {
            return Weights::read_into(&*self.source, name, offset_bytes, out);
        }
        self.finished.read_into(name, offset_bytes, out)
    }
}
