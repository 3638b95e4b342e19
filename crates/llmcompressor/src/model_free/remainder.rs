//! What stays compressed of a source that is compressed already, and the config that names it beside what is new.

use std::collections::HashSet;

use compressed_tensors::{
    config::{CheckpointConfig, QuantizationConfig},
    scheme::QuantizationScheme,
    target::{NamedModule, Patterns},
    transforms::TransformConfig,
};
use indexmap::IndexMap;

use super::selection::Choice;
use crate::{
    catalog::{Catalog, Method, is_activation_parameter},
    error::{InContext, Result},
};

/// The part of a compressed source that a run leaves as it is.
#[derive(Debug, Default)]
pub(super) struct Remainder<'c> {
    old: Option<&'c CheckpointConfig>,
    /// Old groups that still have modules, with the exact names of these as targets.
    groups: IndexMap<String, QuantizationScheme>,
    /// The modules of these groups.
    modules: HashSet<&'c str>,
}

impl<'c> Remainder<'c> {
    /// What `choices` leave compressed of the modules of `catalog`.
    ///
    /// # Errors
    /// `Format` for a target of the source's config that is no pattern.
    pub(super) fn of(catalog: &'c Catalog, choices: &[Choice]) -> Result<Self> {
        let Method::CompressedTensors(old) = &catalog.method else { return Ok(Self::default()) };
        let mut groups: IndexMap<String, QuantizationScheme> = IndexMap::new();
        for (name, scheme) in old.quantization.iter().flat_map(|it| &it.config_groups) {
            if is_of_activations_alone(scheme, catalog)? {
                groups.insert(name.clone(), scheme.clone());
            }
        }
        let mut modules = HashSet::new();
        for (module, choice) in catalog.modules.iter().zip(choices) {
            let (Some(stored), Choice::Leave(_)) = (&module.scheme, choice) else { continue };
            let group = groups.entry(stored.group.clone()).or_insert_with(|| QuantizationScheme {
                targets: Vec::new(),
                format: Some(stored.format),
                ..stored.scheme.clone()
            });
            group.targets.push(module.name.clone());
            modules.insert(module.name.as_str());
        }
        Ok(Self { old: Some(&**old), groups, modules })
    }

    /// Whether module `name` stays compressed.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.modules.contains(name)
    }

    /// Ignore entries of the source that are still true: they name none of what the output has compressed.
    ///
    /// # Errors
    /// `Format` for an entry that is no pattern.
    pub(super) fn kept_ignores(&self, catalog: &Catalog, choices: &[Choice]) -> Result<Vec<String>> {
        if self.groups.is_empty() {
            return Ok(Vec::new());
        }
        let entries = self.old.and_then(|it| it.quantization.as_ref()).map_or(&[][..], |it| &it.ignore);
        let compressed = catalog
            .modules
            .iter()
            .zip(choices)
            .filter(|(module, choice)| matches!(choice, Choice::Quantize(_)) || module.scheme.is_some());
        let compressed = compressed.map(|(module, _)| module.name.as_str());
        without_matches(entries, compressed)
    }

    /// Entries of `ignore` that turn off no module of the remainder.
    ///
    /// # Errors
    /// `Format` for an entry that is no pattern.
    pub(super) fn without_own(&self, ignore: &[String]) -> Result<Vec<String>> {
        without_matches(ignore, self.modules.iter().copied())
    }

    /// The source's groups that remain, then those of `new` under free names; `new`'s ignores and its cache scheme,
    /// or the source's where it has none.
    ///
    /// `members` gives the modules of a group of `new` by its index: their names become its targets where its own
    /// would take in what remains.
    ///
    /// # Errors
    /// `Format` for a target that is no pattern.
    pub(super) fn join(
        self,
        mut new: QuantizationConfig,
        members: impl Fn(usize) -> Vec<String>,
    ) -> Result<QuantizationConfig> {
        let old = self.old.and_then(|it| it.quantization.as_ref());
        let kv_cache_scheme = new.kv_cache_scheme.clone().or_else(|| old?.kv_cache_scheme.clone());
        if self.groups.is_empty() {
            return Ok(QuantizationConfig { kv_cache_scheme, ..new });
        }
        for (idx, scheme) in new.config_groups.values_mut().enumerate() {
            // Loaders ask for a name before they ask for a class, so that a class never takes in an exact name.
            let targets = Patterns::compile(&scheme.targets).context("targets")?;
            let mut matched = self.modules.iter().map(|name| targets.matches_name(name).context("targets"));
            if matched.try_fold(false, |any, it| it.map(|it| any || it))? {
                scheme.targets = members(idx);
            }
        }
        let ignore = new.ignore.clone();
        let mut joined = QuantizationConfig { config_groups: self.groups, ..new.clone() };
        joined.merge(new).context("quantization_config")?;
        Ok(QuantizationConfig { kv_cache_scheme, ignore, ..joined })
    }

    /// Transforms that act on the source's weights; decompressing a weight does not undo them.
    pub(super) fn transforms(&self) -> Option<&'c TransformConfig> {
        self.old.and_then(|it| it.transforms.as_ref())
    }
}

/// Whether `tensor` holds scales of the activations of a module that gets another scheme, and is void with the old one.
pub(super) fn is_void(tensor: &str, catalog: &Catalog, is_quantized: impl Fn(&str) -> bool) -> bool {
    let Some((module, _)) = tensor.rsplit_once('.') else { return false };
    is_activation_parameter(tensor)
        && catalog.get(module).is_some_and(|it| it.scheme.is_some() || it.is_foreign())
        && is_quantized(module)
}

/// A group for attention or a cache: it has no weights, and none of its targets is a linear.
fn is_of_activations_alone(scheme: &QuantizationScheme, catalog: &Catalog) -> Result<bool> {
    if scheme.weights.is_some() {
        return Ok(false);
    }
    let targets = Patterns::compile(&scheme.targets).context("quantization_config")?;
    for module in &catalog.modules {
        let linear = NamedModule { name: &module.name, classes: &["Linear"] };
        if targets.matches_module(linear).context("quantization_config")? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn without_matches<'n>(entries: &[String], modules: impl IntoIterator<Item = &'n str>) -> Result<Vec<String>> {
    let patterns = Patterns::compile(entries).context("ignore")?;
    let mut matched = HashSet::new();
    for name in modules {
        matched.extend(patterns.matching(NamedModule { name, classes: &["Linear"] }).context("ignore")?);
    }
    Ok(entries.iter().filter(|it| !matched.contains(it.as_str())).cloned().collect())
}
