//! The config of a quantized model, from its modules.

use indexmap::{IndexMap, IndexSet};

use crate::{
    format::{CompressionFormat, model_format, module_format},
    scheme::QuantizationScheme,
};

use super::{QuantizationConfig, QuantizationStatus};

/// Whether a module is attention with a cache, and what of it is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Something else.
    None,
    /// Keys and values are quantized on their way into the cache, if anything is.
    Cached,
    /// Queries, keys and values are quantized in attention.
    Hooked,
}

/// A module of the model, in definition order.
#[derive(Clone, Copy, Debug)]
pub struct ModuleRecord<'a> {
    /// Its name in the checkpoint.
    pub name: &'a str,
    /// Name of its class.
    pub class: &'a str,
    /// How it is quantized, if it is.
    pub scheme: Option<&'a QuantizationScheme>,
    /// What kind of attention it is, if any.
    pub attention: Attention,
}

/// The config that describes these modules, or nothing where none is quantized.
///
/// Equal schemes form one group, `group_0` first; every scheme is labelled with its format, and the
/// config with the model's. Modules that stay as they are although their class is quantized elsewhere
/// are listed under `ignore`, by class in order of appearance. `forced` is a format for the whole model.
pub fn build_config<'a>(
    modules: impl IntoIterator<Item = ModuleRecord<'a>>,
    status: QuantizationStatus,
    forced: Option<CompressionFormat>,
) -> Option<QuantizationConfig> {
    let mut schemes: Vec<QuantizationScheme> = Vec::new();
    let mut quantized: IndexSet<&str> = IndexSet::new();
    let mut untouched: IndexMap<&str, Vec<&str>> = IndexMap::new();
    let mut formats = IndexSet::new();
    let mut kv_cache_scheme = None;
    for module in modules {
        let kind = vllm_module_type(module.class);
        let Some(scheme) = module.scheme.filter(|it| it.is_quantized()) else {
            untouched.entry(kind).or_default().push(module.name);
            continue;
        };
        if module.attention != Attention::None {
            kv_cache_scheme = scheme.input_activations.clone();
        }
        if module.attention != Attention::Cached {
            let format = module_format(module.class, scheme, forced);
            formats.insert(format);
            quantized.insert(kind);
            let labelled = QuantizationScheme { format: Some(format), ..scheme.clone() };
            if !schemes.contains(&labelled) {
                schemes.push(labelled);
            }
        }
    }
    if schemes.is_empty() && kv_cache_scheme.is_none() {
        return None;
    }
    let ignore = untouched.iter().filter(|(kind, _)| quantized.contains(*kind)).flat_map(|(_, names)| names);
    Some(QuantizationConfig {
        config_groups: schemes.into_iter().enumerate().map(|(i, it)| (format!("group_{i}"), it)).collect(),
        kv_cache_scheme,
        format: model_format(formats).name().to_owned(),
        quantization_status: status,
        ignore: ignore.map(|&name| name.to_owned()).collect(),
        ..QuantizationConfig::default()
    })
}

/// The class that vLLM builds for a module: routers and gates are `Linear` there.
///
/// A class with `ExpertMLP` in its name is none of them; `Gate` counts unless a lower-case letter follows.
pub fn vllm_module_type(class: &str) -> &str {
    let gate = || {
        class
            .match_indices("Gate")
            .any(|(at, found)| !class[at + found.len()..].starts_with(|c: char| c.is_ascii_lowercase()))
    };
    let routes = class.contains("Router") || class.contains("Gating") || gate();
    if routes && !class.contains("ExpertMLP") { "Linear" } else { class }
}
