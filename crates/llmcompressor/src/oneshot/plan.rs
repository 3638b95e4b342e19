//! What becomes of every tensor, from headers and declared facts: modules that are written anew, and tensors taken along.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use checkpoint::{ShardPlan, Source, TensorEntry, TensorSpec};
use compressed_tensors::{
    config::{Attention, ModuleRecord, QuantizationConfig, QuantizationStatus, SchemeTable, build_config},
    kv_cache::is_cached_attention,
    scheme::QuantizationScheme,
    target::NamedModule,
};
use indexmap::IndexMap;
use lifecycle::{CompressionLifecycle, ModuleFacts, ModuleStore};
use models::{Model, ParameterId, ParameterInfo, Separated};
use serde_json::Value;

use super::{
    finished::Fresh,
    scope::Selection,
    target::{CompressedWeight, Queries, WeightNames, activation_outputs, attention_outputs},
};
use crate::error::{ErrorKind, InContext, Result};

/// A module that is written when nobody changes it any more.
pub(super) struct PlannedModule {
    /// Its name in the model.
    pub(super) name: String,
    /// The name that its tensors are written under.
    pub(super) written: String,
    /// Its weight, where that is compressed.
    pub(super) weight: Option<CompressedWeight>,
    /// Its own tensors that stay dense.
    pub(super) dense: Vec<TensorSpec>,
    /// Scales of activations, under full names.
    pub(super) scales: Vec<TensorSpec>,
    /// Its parameters.
    parameters: Vec<ParameterId>,
}

impl PlannedModule {
    /// Bytes of its tensors in the source.
    pub(super) fn input_bytes(&self) -> u64 {
        let weight = self.weight.as_ref().map_or(0, CompressedWeight::dense_bytes);
        weight + self.dense.iter().filter_map(TensorSpec::n_bytes).sum::<u64>()
    }

    /// The name in the model of one of its scales.
    pub(super) fn path_of(&self, scale: &TensorSpec) -> String {
        let local = scale.name.strip_prefix(&self.written).unwrap_or_default();
        format!("{}{local}", self.name)
    }

    /// Everything that it writes.
    pub(super) fn outputs(&self) -> Vec<TensorSpec> {
        let weight = self.weight.iter().flat_map(CompressedWeight::outputs);
        weight.chain(self.dense.iter().cloned()).chain(self.scales.iter().cloned()).collect()
    }
}

/// A tensor that is copied bit for bit.
pub(super) struct Copied {
    /// What it becomes.
    pub(super) spec: TensorSpec,
    /// Where it is.
    pub(super) entry: TensorEntry,
    /// The parameter that is copied alone, where that tensor holds several.
    pub(super) part: Option<ParameterId>,
    /// In which checkpoint.
    pub(super) origin: Origin,
}

impl Copied {
    fn new(name: &str, entry: &TensorEntry, origin: Origin) -> Self {
        let spec = TensorSpec { name: name.to_owned(), dtype: entry.dtype, shape: entry.shape.clone() };
        Self { spec, entry: entry.clone(), part: None, origin }
    }
}

/// Where a copied tensor comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The source.
    Source,
    /// The finished output of which modules are done again.
    Finished,
}

/// What becomes of an output head that has the embedding's weight in the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heads {
    /// As the source has it.
    Kept,
    /// Each is written on its own, for one of them changes.
    Parted,
}

/// What a run is going to write.
pub(super) struct Plan {
    /// Modules in definition order.
    pub(super) modules: IndexMap<String, PlannedModule>,
    /// Tensors that are copied bit for bit.
    pub(super) copied: Vec<Copied>,
    /// Whether an output head that shares the embedding's weight goes on doing so.
    pub(super) heads: Heads,
    /// The shards.
    pub(super) shards: Vec<ShardPlan>,
    /// How each module is quantized, those included that are taken over.
    pub(super) schemes: IndexMap<String, QuantizationScheme>,
    /// Tensors of the source that get another name, and that name.
    pub(super) renamed: IndexMap<String, String>,
    /// What `config.json` says of it; none where nothing is quantized.
    pub(super) config: Option<QuantizationConfig>,
}

/// Plans the output of an initialized lifecycle.
///
/// # Errors
/// Weights that a scheme cannot take, schemes whose scales have no planned size.
pub(super) fn plan(
    source: &Source,
    model: &Model,
    lifecycle: &CompressionLifecycle,
    selection: &Selection,
    max_shard_bytes: u64,
) -> Result<Plan> {
    let activations = model.store().dtype();
    let store = lifecycle.state.model()?;
    let mut written: BTreeSet<String> = BTreeSet::new();
    for it in lifecycle.modifiers() {
        written.extend(it.modifier().writes(store)?);
    }
    let schemes = &lifecycle.state.schemes;
    let mut modules = IndexMap::new();
    for facts in store.modules() {
        let scheme = schemes.get(&facts.name);
        if scheme.is_some() || written.contains(&facts.name) {
            let module = planned(model, source.config()?, facts, scheme, activations)?;
            modules.insert(facts.name.clone(), module);
        }
    }
    modules.retain(|_, it| !it.outputs().is_empty());
    let replaced: HashSet<ParameterId> = modules.values().flat_map(|it| it.parameters.iter().copied()).collect();
    let fresh = selection.redone().map(|(finished, chosen)| (finished, Fresh::of(model, chosen)));
    let is_left = |it: &TensorEntry| fresh.as_ref().is_none_or(|fresh| fresh.1.contains(&it.name));
    let is_moved = moves(model, &replaced);
    let mut copied = copied(source, model, (&replaced, is_moved), is_left);
    if let Some((finished, fresh)) = &fresh {
        copied.extend(finished.kept_tensors(fresh).map(|it| Copied::new(&it.name, it, Origin::Finished)));
    }
    let names = model.store();
    if let (true, Some((finished, _))) = (is_moved, &fresh) {
        let reason = "a chosen module lies in one tensor with others in the source, or under another name".to_owned();
        return Err(ErrorKind::Unsuitable { dir: finished.dir().to_owned(), reason }.into());
    }
    let parted = model.separated().filter(|it| [it.head, it.embedding].iter().any(|id| replaced.contains(id)));
    if let Some(Separated { head, embedding }) = parted {
        let (head_name, embedding) = (&names.info(head).written, &names.info(embedding).name);
        if let Some((finished, _)) = &fresh {
            let reason =
                format!("`{head_name}` and `{embedding}` are one weight there, and the recipe changes one of them");
            return Err(ErrorKind::Unsuitable { dir: finished.dir().to_owned(), reason }.into());
        }
        if !replaced.contains(&head) {
            copied.retain(|it| it.spec.name != *head_name);
            copied.push(Copied::new(head_name, source.require(embedding)?, Origin::Source));
        }
    }
    let shards = shards(source, model, &modules, &copied, max_shard_bytes);
    let heads = if parted.is_some() { Heads::Parted } else { Heads::Kept };
    let cache = selection.redone().and_then(|it| it.0.cache_scheme());
    let schemes = selection.schemes(store, schemes)?;
    let name_of = |module: &str| match model.tree().find(module) {
        Some(id) if is_moved => model.written_name(id),
        Some(id) => model.stored_name(id),
        None => module.to_owned(),
    };
    let config = config(store, &schemes, cache.as_ref(), name_of)?;
    let renamed = if is_moved { renamed(model) } else { IndexMap::new() };
    Ok(Plan { config, schemes, renamed, modules, copied, heads, shards })
}

/// What is taken along. Where a written tensor has another name than in the source, or was part of one, all tensors of the model
/// are written in that form: loaders expect one or the other.
fn copied(
    source: &Source,
    model: &Model,
    (replaced, moves): (&HashSet<ParameterId>, bool),
    is_left: impl Fn(&TensorEntry) -> bool,
) -> Vec<Copied> {
    let store = model.store();
    let head = model.separated().map(|it| it.head);
    let mut within: HashMap<&str, Vec<ParameterId>> = HashMap::new();
    for (id, info) in store.parameters().filter(|it| Some(it.0) != head) {
        within.entry(info.stacked_in.as_ref().unwrap_or(&info.name)).or_default().push(id);
    }
    let mut copied = Vec::new();
    for entry in source.tensors().filter(|it| is_left(it)) {
        let ids = within.get(entry.name.as_str()).map(Vec::as_slice).unwrap_or_default();
        let is_stack = ids.iter().any(|id| store.info(*id).stacked_in.is_some());
        if ids.is_empty() || is_stack && !moves {
            copied.push(Copied::new(&entry.name, entry, Origin::Source));
            continue;
        }
        for &id in ids.iter().filter(|id| !replaced.contains(id)) {
            let info = store.info(id);
            let name = if moves { &info.written } else { &entry.name };
            let spec = TensorSpec { name: name.clone(), dtype: entry.dtype, shape: info.shape.clone() };
            copied.push(Copied { spec, entry: entry.clone(), part: is_stack.then_some(id), origin: Origin::Source });
        }
    }
    copied
}

/// Whether a written tensor has another name than in the source, or was part of one.
fn moves(model: &Model, replaced: &HashSet<ParameterId>) -> bool {
    let is_moved = |info: &ParameterInfo| info.stacked_in.is_some() || info.name != info.written;
    let head = model.separated().map(|it| it.head);
    replaced.iter().any(|id| Some(*id) != head && is_moved(model.store().info(*id)))
}

/// Tensors that are written under another name than they have in the source.
fn renamed(model: &Model) -> IndexMap<String, String> {
    let head = model.separated().map(|it| it.head);
    let all = model.store().parameters().filter(|(id, info)| Some(*id) != head && info.stacked_in.is_none());
    let all = all.filter(|(_, info)| info.name != info.written);
    all.map(|(_, info)| (info.name.clone(), info.written.clone())).collect()
}

fn planned(
    model: &Model,
    config: &Value,
    facts: &ModuleFacts,
    scheme: Option<&QuantizationScheme>,
    activations: compressed_tensors::DType,
) -> Result<PlannedModule> {
    let name = facts.name.clone();
    let written = written_name(model, &name);
    let mut module =
        PlannedModule { name, written, weight: None, dense: Vec::new(), scales: Vec::new(), parameters: Vec::new() };
    let is_attention = scheme.is_some_and(|it| it.weights.is_none()) && !facts.parameters.contains_key("weight");
    for (local, parameter) in &facts.parameters {
        let path = format!("{}.{local}", facts.name);
        // What modifiers have added is no parameter of the model.
        let Some(id) = model.store().find(&path) else { continue };
        module.parameters.push(id);
        let weights = scheme.filter(|it| local == "weight" && it.weights.is_some());
        match (weights, parameter.shape.as_slice()) {
            (Some(scheme), &[rows, cols]) => {
                let names = WeightNames { path: &facts.name, written: &module.written, class: class(facts) };
                module.weight = Some(CompressedWeight::new(names, scheme, parameter.dtype, [rows, cols])?);
            }
            _ => {
                let (name, shape) = (model.store().info(id).written.clone(), parameter.shape.clone());
                module.dense.push(TensorSpec { name, dtype: parameter.dtype, shape });
            }
        }
    }
    if let Some(scheme) = scheme {
        let mut scales = match (&scheme.input_activations, is_attention) {
            (Some(args), true) => attention_outputs(args, queries(scheme), config, activations)?,
            _ => activation_outputs(scheme, activations)?,
        };
        scales.iter_mut().for_each(|it| it.name = format!("{}.{}", module.written, it.name));
        module.scales = scales;
    }
    Ok(module)
}

/// A scheme by `kv_cache_scheme` has no targets.
fn queries(scheme: &QuantizationScheme) -> Queries {
    if scheme.targets.is_empty() { Queries::Plain } else { Queries::Quantized }
}

fn written_name(model: &Model, module: &str) -> String {
    model.tree().find(module).map_or_else(|| module.to_owned(), |id| model.written_name(id))
}

/// The class that decides how a module is stored: `Linear` for those that derive from it.
fn class(facts: &ModuleFacts) -> &str {
    let linear = facts.classes.iter().find(|it| *it == "Linear");
    linear.or(facts.classes.first()).map(String::as_str).unwrap_or_default()
}

/// The config that describes modules with schemes, and caches with theirs where the schemes have none, under the names that the
/// output has for them.
fn config(
    store: &dyn ModuleStore,
    schemes: &IndexMap<String, QuantizationScheme>,
    cache: Option<&QuantizationScheme>,
    name_of: impl Fn(&str) -> String,
) -> Result<Option<QuantizationConfig>> {
    let mut children: HashMap<&str, Vec<&str>> = HashMap::new();
    for module in store.modules() {
        let (parent, last) = module.name.rsplit_once('.').unwrap_or(("", &module.name));
        children.entry(parent).or_default().push(last);
    }
    let record = |module: &'_ ModuleFacts| {
        let below = children.get(module.name.as_str()).map(Vec::as_slice).unwrap_or_default();
        let own = module.classes.first().map(String::as_str).unwrap_or_default();
        // Engines build a head apart from their linears; transformers looks for its name in the model.
        let is_head = !module.name.contains('.');
        let name = if is_head { module.name.clone() } else { name_of(&module.name) };
        (name, is_cached_attention(own, below))
    };
    let records: Vec<(String, bool)> = store.modules().iter().map(record).collect();
    let records: Vec<ModuleRecord<'_>> = store
        .modules()
        .iter()
        .zip(&records)
        .map(|(module, (name, is_cached))| ModuleRecord {
            name,
            class: class(module),
            scheme: schemes.get(&module.name).or(cache.filter(|_| *is_cached)),
            attention: match schemes.get(&module.name).map(queries) {
                Some(Queries::Quantized) if *is_cached => Attention::Hooked,
                _ if *is_cached => Attention::Cached,
                _ => Attention::None,
            },
        })
        .collect();
    let Some(mut config) = build_config(records.iter().copied(), QuantizationStatus::Compressed, None) else {
        return Ok(None);
    };
    // A target may mean a module by a name that is not on disk.
    let mut missed = Vec::new();
    {
        let table = SchemeTable::new(&config).context("quantization_config")?;
        for it in records.iter().filter(|it| it.attention == Attention::None) {
            let Some(scheme) = it.scheme.filter(|it| it.is_quantized()) else { continue };
            let named = NamedModule { name: it.name, classes: &[it.class] };
            if table.assign(named).context("quantization_config")?.is_none() {
                missed.push((scheme, it.name));
            }
        }
    }
    for (scheme, name) in missed {
        let is_own = |it: &&mut QuantizationScheme| {
            (&it.weights, &it.input_activations, &it.output_activations)
                == (&scheme.weights, &scheme.input_activations, &scheme.output_activations)
        };
        if let Some(group) = config.config_groups.values_mut().find(is_own) {
            group.targets.push(name.to_owned());
        }
    }
    Ok(Some(config))
}

/// Shards in the order of the source's tensors, cut at `max_bytes`.
fn shards(
    source: &Source,
    model: &Model,
    modules: &IndexMap<String, PlannedModule>,
    copied: &[Copied],
    max_bytes: u64,
) -> Vec<ShardPlan> {
    // A module's tensors come where the first of them was.
    let mut place: BTreeMap<usize, Vec<TensorSpec>> = BTreeMap::new();
    let position: HashMap<&str, usize> =
        source.tensors().enumerate().map(|(idx, it)| (it.name.as_str(), idx)).collect();
    for module in modules.values() {
        let own = module.parameters.iter().map(|id| model.store().info(*id));
        let own = own.filter_map(|it| position.get(it.stacked_in.as_ref().unwrap_or(&it.name).as_str()).copied());
        let at = own.min().unwrap_or(0);
        place.entry(at).or_default().extend(module.outputs());
    }
    for Copied { spec, entry, .. } in copied {
        // What a finished output has of a module that it has compressed lies where the module's weight was.
        let module = entry.name.rsplit_once('.').map_or("", |it| it.0);
        let own = position.get(entry.name.as_str()).or_else(|| position.get(format!("{module}.weight").as_str()));
        place.entry(own.copied().unwrap_or(0)).or_default().push(spec.clone());
    }
    let mut cut: Vec<Vec<TensorSpec>> = vec![Vec::new()];
    let mut filled = 0u64;
    for spec in place.into_values().flatten() {
        let bytes = spec.n_bytes().unwrap_or(0);
        if filled > 0 && filled.saturating_add(bytes) > max_bytes {
            cut.push(Vec::new());
            filled = 0;
        }
        filled = filled.saturating_add(bytes);
        if let Some(last) = cut.last_mut() {
            last.push(spec);
        }
    }
    let n_shards = cut.len();
    let metadata = IndexMap::from([("format".to_owned(), "pt".to_owned())]);
    let name = |idx: usize| match n_shards {
        1 => "model.safetensors".to_owned(),
        n => format!("model-{:05}-of-{n:05}.safetensors", idx + 1),
    };
    let shard = |(idx, tensors)| ShardPlan { file_name: name(idx), tensors, metadata: metadata.clone() };
    cut.into_iter().enumerate().map(shard).collect()
}
