//! What becomes of every tensor, from headers and declared facts: modules that are written anew, and tensors taken along.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use checkpoint::{ShardPlan, Source, TensorEntry, TensorSpec};
use compressed_tensors::{
    config::{Attention, ModuleRecord, QuantizationConfig, QuantizationStatus, build_config},
    kv_cache::is_cached_attention,
    scheme::QuantizationScheme,
};
use indexmap::IndexMap;
use lifecycle::{CompressionLifecycle, ModuleFacts, ModuleStore};
use models::{Model, Separated};

use super::{
    finished::Fresh,
    scope::Selection,
    target::{CompressedWeight, activation_outputs, scale_outputs},
};
use crate::error::{ErrorKind, Result};

/// A module that is written when nobody changes it any more.
pub(super) struct PlannedModule {
    /// Its name.
    pub(super) name: String,
    /// Its weight, where that is compressed.
    pub(super) weight: Option<CompressedWeight>,
    /// Its own tensors that stay dense.
    pub(super) dense: Vec<TensorSpec>,
    /// Scales of activations, under full names.
    pub(super) scales: Vec<TensorSpec>,
}

impl PlannedModule {
    /// Bytes of its tensors in the source.
    pub(super) fn input_bytes(&self) -> u64 {
        let weight = self.weight.as_ref().map_or(0, CompressedWeight::dense_bytes);
        weight + self.dense.iter().filter_map(TensorSpec::n_bytes).sum::<u64>()
    }

    /// Everything that it writes.
    pub(super) fn outputs(&self) -> Vec<TensorSpec> {
        let weight = self.weight.iter().flat_map(CompressedWeight::outputs);
        weight.chain(self.dense.iter().cloned()).chain(self.scales.iter().cloned()).collect()
    }
}

/// A tensor that is copied bit for bit.
pub(super) struct Copied {
    /// The name that it gets.
    pub(super) name: String,
    /// Where it is.
    pub(super) entry: TensorEntry,
    /// In which checkpoint.
    pub(super) origin: Origin,
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
            let module = planned(source, parted(model), facts, scheme, activations)?;
            modules.insert(facts.name.clone(), module);
        }
    }
    modules.retain(|_, it| !it.outputs().is_empty());
    let replaced: HashSet<String> = modules
        .values()
        .flat_map(|it| {
            let weight = it.weight.iter().map(|_| format!("{}.weight", it.name));
            weight.chain(it.dense.iter().map(|it| it.name.clone()))
        })
        .collect();
    let fresh = selection.redone().map(|(finished, chosen)| (finished, Fresh::of(model, chosen)));
    let is_left = |it: &&TensorEntry| {
        !replaced.contains(&it.name) && fresh.as_ref().is_none_or(|fresh| fresh.1.contains(&it.name))
    };
    let copy = |origin| move |it: &TensorEntry| Copied { name: it.name.clone(), entry: it.clone(), origin };
    let mut copied: Vec<Copied> = source.tensors().filter(is_left).map(copy(Origin::Source)).collect();
    if let Some((finished, fresh)) = &fresh {
        copied.extend(finished.kept_tensors(fresh).map(copy(Origin::Finished)));
    }
    let parted = parted(model).filter(|(head, embedding)| [head, embedding].iter().any(|it| replaced.contains(**it)));
    if let (Some((head, embedding)), Some((finished, _))) = (parted, &fresh) {
        let reason = format!("`{head}` and `{embedding}` are one weight there, and the recipe changes one of them");
        return Err(ErrorKind::Unsuitable { dir: finished.dir().to_owned(), reason }.into());
    }
    if let Some((head, embedding)) = parted
        && !replaced.contains(head)
    {
        copied.retain(|it| it.name != head);
        let entry = source.require(embedding)?.clone();
        copied.push(Copied { name: head.to_owned(), entry, origin: Origin::Source });
    }
    let shards = shards(source, &modules, &copied, max_shard_bytes);
    let heads = if parted.is_some() { Heads::Parted } else { Heads::Kept };
    let cache = selection.redone().and_then(|it| it.0.cache_scheme());
    let schemes = selection.schemes(store, schemes)?;
    Ok(Plan { config: config(store, &schemes, cache.as_ref()), schemes, modules, copied, heads, shards })
}

/// The weight of a head that has that of an embedding, as it would be written, and the tensor that both are in.
fn parted(model: &Model) -> Option<(&str, &str)> {
    let Separated { head, embedding } = model.separated()?;
    let store = model.store();
    Some((&store.info(head).written, &store.info(embedding).name))
}

fn planned(
    source: &Source,
    parted: Option<(&str, &str)>,
    facts: &ModuleFacts,
    scheme: Option<&QuantizationScheme>,
    activations: compressed_tensors::DType,
) -> Result<PlannedModule> {
    let name = facts.name.clone();
    let class = facts.classes.first().map(String::as_str).unwrap_or_default();
    let mut module = PlannedModule { name, weight: None, dense: Vec::new(), scales: Vec::new() };
    let is_attention = scheme.is_some_and(|it| it.weights.is_none()) && !facts.parameters.contains_key("weight");
    for (local, parameter) in &facts.parameters {
        let full = format!("{}.{local}", facts.name);
        let weights = scheme.filter(|it| local == "weight" && it.weights.is_some());
        let is_elsewhere = parted.is_some_and(|(head, _)| head == full);
        if source.get(&full).is_none() && !is_elsewhere {
            if weights.is_some() {
                let what = format!("`{full}`, which the checkpoint keeps in another tensor or under another name");
                return Err(ErrorKind::Unplanned { what }.into());
            }
            continue;
        }
        match (weights, parameter.shape.as_slice()) {
            (Some(scheme), &[rows, cols]) => {
                let weight = CompressedWeight::new(&facts.name, class, scheme, parameter.dtype, [rows, cols])?;
                module.weight = Some(weight);
            }
            _ => {
                let shape = parameter.shape.clone();
                module.dense.push(TensorSpec { name: full, dtype: parameter.dtype, shape });
            }
        }
    }
    if let Some(scheme) = scheme {
        let mut scales = match (&scheme.input_activations, is_attention) {
            (Some(args), true) => {
                [scale_outputs("k", args, activations)?, scale_outputs("v", args, activations)?].concat()
            }
            _ => activation_outputs(scheme, activations)?,
        };
        scales.iter_mut().for_each(|it| it.name = format!("{}.{}", facts.name, it.name));
        module.scales = scales;
    }
    Ok(module)
}

/// The config that describes modules with schemes, and caches with theirs where the schemes have none.
fn config(
    store: &dyn ModuleStore,
    schemes: &IndexMap<String, QuantizationScheme>,
    cache: Option<&QuantizationScheme>,
) -> Option<QuantizationConfig> {
    let mut children: HashMap<&str, Vec<&str>> = HashMap::new();
    for module in store.modules() {
        let (parent, last) = module.name.rsplit_once('.').unwrap_or(("", &module.name));
        children.entry(parent).or_default().push(last);
    }
    let record = |module: &'_ ModuleFacts| {
        let class = module.classes.first().map(String::as_str).unwrap_or_default();
        let below = children.get(module.name.as_str()).map(Vec::as_slice).unwrap_or_default();
        (class.to_owned(), is_cached_attention(class, below))
    };
    let records: Vec<(String, bool)> = store.modules().iter().map(record).collect();
    let records = store.modules().iter().zip(&records).map(|(module, (class, is_cached))| ModuleRecord {
        name: &module.name,
        class,
        scheme: schemes.get(&module.name).or(cache.filter(|_| *is_cached)),
        attention: if *is_cached { Attention::Cached } else { Attention::None },
    });
    build_config(records, QuantizationStatus::Compressed, None)
}

/// Shards in the order of the source's tensors, cut at `max_bytes`.
fn shards(
    source: &Source,
    modules: &IndexMap<String, PlannedModule>,
    copied: &[Copied],
    max_bytes: u64,
) -> Vec<ShardPlan> {
    // A module's tensors come where the first of them was.
    let mut place: BTreeMap<usize, Vec<TensorSpec>> = BTreeMap::new();
    let position: HashMap<&str, usize> =
        source.tensors().enumerate().map(|(idx, it)| (it.name.as_str(), idx)).collect();
    for module in modules.values() {
        let weight = module.weight.iter().map(|_| format!("{}.weight", module.name));
        let own = weight.chain(module.dense.iter().map(|it| it.name.clone()));
        let at = own.filter_map(|it| position.get(it.as_str()).copied()).min().unwrap_or(0);
        place.entry(at).or_default().extend(module.outputs());
    }
    for Copied { name, entry, .. } in copied {
        let spec = TensorSpec { name: name.clone(), dtype: entry.dtype, shape: entry.shape.clone() };
        // What a finished output has of a module that it has compressed lies where the module's weight was.
        let module = entry.name.rsplit_once('.').map_or("", |it| it.0);
        let own = position.get(entry.name.as_str()).or_else(|| position.get(format!("{module}.weight").as_str()));
        place.entry(own.copied().unwrap_or(0)).or_default().push(spec);
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
