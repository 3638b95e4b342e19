//! `quantization_config`: how a whole model is quantized, as read, merged and written.

mod assign;
mod build;
mod section;
mod sparsity;
mod status;

use indexmap::{IndexMap, IndexSet};
use serde_json::{Map, Value, json};

pub use assign::{Assignment, SchemeTable};
pub use build::{Attention, ModuleRecord, build_config, vllm_module_type};
pub use section::{CheckpointConfig, ConfigLocation, FORMAT_VERSION, locate_section, write_section};
pub use sparsity::{SparsityConfig, SparsityStructure};
pub use status::QuantizationStatus;

use crate::{
    Result,
    args::{Dynamic, QuantizationArgs},
    format::CompressionFormat,
    presets::preset,
    scheme::QuantizationScheme,
    target::{Patterns, find_unique_name},
    wire::{self, Reader, refuse},
};

/// The `quant_method` of this format.
pub const QUANT_METHOD: &str = "compressed-tensors";

/// How a whole model is quantized (spec formats.md section 5).
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizationConfig {
    /// Schemes under their names, in order.
    pub config_groups: IndexMap<String, QuantizationScheme>,
    /// Who reads it.
    pub quant_method: String,
    /// For keys and values on their way into the cache.
    pub kv_cache_scheme: Option<QuantizationArgs>,
    /// Label of the on-disk layout; not checked, as in the reference.
    pub format: String,
    /// How far the model is.
    pub quantization_status: QuantizationStatus,
    /// Always null in what the reference writes.
    pub global_compression_ratio: Option<f64>,
    /// Modules that stay as they are although a scheme targets them.
    pub ignore: Vec<String>,
}

impl Default for QuantizationConfig {
    fn default() -> Self {
        Self {
            config_groups: IndexMap::new(),
            quant_method: QUANT_METHOD.to_owned(),
            kv_cache_scheme: None,
            format: "fakequant".to_owned(),
            quantization_status: QuantizationStatus::default(),
            global_compression_ratio: None,
            ignore: Vec::new(),
        }
    }
}

impl QuantizationConfig {
    /// Reads a JSON object as the reference's current schema does; unknown keys at the top are skipped.
    ///
    /// # Errors
    /// `InvalidField`, `UnknownField`, `UnknownName` and `Unsupported`, with the path as the place.
    pub fn from_json(value: &Value) -> Result<Self> {
        Self::read(value, Reader::Strict)
    }

    /// As [`from_json`](Self::from_json), and takes what older versions wrote.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_checkpoint_json(value: &Value) -> Result<Self> {
        Self::read(value, Reader::Checkpoint)
    }

    /// Parses text and reads it with the given leniency.
    ///
    /// # Errors
    /// `Json`, and as [`from_json`](Self::from_json).
    pub fn parse(text: &str, reader: Reader) -> Result<Self> {
        Self::read(&wire::parse(text)?, reader)
    }

    /// Reads with the given leniency.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn read(value: &Value, reader: Reader) -> Result<Self> {
        let map = wire::object("quantization_config", value)?;
        let mut config = Self::default();
        let groups = wire::object("config_groups", map.get("config_groups").unwrap_or(&Value::Null))?;
        for (name, group) in groups {
            let scheme = read_group(name, group, reader).map_err(|e| e.at(name).at("config_groups"))?;
            config.config_groups.insert(name.clone(), scheme);
        }
        if let Some(method) = map.get("quant_method") {
            config.quant_method = wire::string("quant_method", method)?;
        }
        if let Some(args) = wire::given(map, "kv_cache_scheme") {
            let args = QuantizationArgs::read(args, reader).map_err(|e| e.at("kv_cache_scheme"))?;
            config.kv_cache_scheme = Some(args);
        }
        if let Some(format) = map.get("format") {
            config.format = wire::string("format", format)?;
        }
        if let Some(status) = map.get("quantization_status") {
            let name = wire::string("quantization_status", status)?;
            config.quantization_status =
                QuantizationStatus::from_name(&name).map_err(|e| e.at("quantization_status"))?;
        }
        if let Some(ratio) = wire::given(map, "global_compression_ratio") {
            config.global_compression_ratio = Some(wire::number("global_compression_ratio", ratio)?);
        }
        if let Some(ignore) = wire::given(map, "ignore") {
            config.ignore = wire::strings("ignore", ignore)?;
        }
        Ok(config)
    }

    /// The seven fields, nulls included, in the reference's order.
    pub fn to_json(&self) -> Value {
        let groups: Map<String, Value> =
            self.config_groups.iter().map(|(name, scheme)| (name.clone(), scheme.to_json())).collect();
        json!({
            "config_groups": groups,
            "quant_method": self.quant_method,
            "kv_cache_scheme": self.kv_cache_scheme.as_ref().map(QuantizationArgs::to_json),
            "format": self.format,
            "quantization_status": self.quantization_status.name(),
            "global_compression_ratio": self.global_compression_ratio,
            "ignore": self.ignore,
        })
    }

    /// Adds the groups of `other`, under free names.
    ///
    /// Exact ignores that a target of `other` names are dropped, patterns stay; `other`'s ignores and
    /// cache scheme are not taken over. The label is the one that all schemes share, else
    /// `mixed-precision`; the status is the later one.
    ///
    /// # Errors
    /// `Pattern` for a target of `other` that is no pattern.
    pub fn merge(&mut self, other: Self) -> Result<()> {
        let targets: Vec<&String> = other.config_groups.values().flat_map(|scheme| &scheme.targets).collect();
        let targets = Patterns::compile(&targets).map_err(|e| e.at("targets"))?;
        let mut kept = Vec::with_capacity(self.ignore.len());
        for name in std::mem::take(&mut self.ignore) {
            if name.starts_with("re:") || !targets.matches_name(&name)? {
                kept.push(name);
            }
        }
        self.ignore = kept;
        for (name, scheme) in other.config_groups {
            let name = find_unique_name(&name, |it| self.config_groups.contains_key(it));
            self.config_groups.insert(name, scheme);
        }
        let formats: IndexSet<_> = self.config_groups.values().map(|scheme| scheme.format).collect();
        self.format = match formats.first() {
            Some(&Some(format)) if formats.len() == 1 => format.name().to_owned(),
            Some(None) if formats.len() == 1 && self.format == other.format => other.format,
            _ => CompressionFormat::MixedPrecision.name().to_owned(),
        };
        self.quantization_status = self.quantization_status.max(other.quantization_status);
        Ok(())
    }

    /// Whether scales have to be found on data: of the cache, of inputs or outputs that are not fully
    /// dynamic, or by the importance-weighted observer.
    pub fn requires_calibration_data(&self) -> bool {
        self.kv_cache_scheme.is_some()
            || self.config_groups.values().any(|scheme| {
                let importance = |it: &QuantizationArgs| it.observer.as_deref() == Some("imatrix_mse");
                scheme.weights.as_ref().is_some_and(importance)
                    || scheme.input_activations.as_ref().is_some_and(|it| it.dynamic != Dynamic::Yes)
                    || scheme.output_activations.as_ref().is_some_and(|it| it.dynamic == Dynamic::No)
            })
    }
}

/// A scheme, or a list of targets for the preset that the group is named after.
fn read_group(name: &str, group: &Value, reader: Reader) -> Result<QuantizationScheme> {
    match group {
        Value::Array(_) => preset(name, wire::strings("targets", group)?),
        Value::Object(_) => QuantizationScheme::read(group, reader),
        _ => Err(refuse(name, group, "a scheme, or the targets of the preset called so")),
    }
}

#[cfg(test)]
mod tests;
