//! Where a model's `config.json` holds its quantization, and what else stands there.

use serde_json::{Map, Value, json};

use crate::{ErrorKind, Reader, Result, transforms::TransformConfig, wire};

use super::{QUANT_METHOD, QuantizationConfig, SparsityConfig};

/// Version of the format that this crate writes.
pub const FORMAT_VERSION: &str = "0.19.0";

/// `quant_method` of checkpoints from before the format had its name.
const LEGACY_METHOD: &str = "sparseml";

/// The key under which the section was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigLocation {
    /// `quantization_config`.
    Top,
    /// `text_config.quantization_config`, of models with more than text.
    Text,
    /// `compression_config`, of early checkpoints.
    Compression,
}

impl ConfigLocation {
    /// Every place, in the order of search.
    const ALL: [Self; 3] = [Self::Top, Self::Text, Self::Compression];

    /// Dotted path in `config.json`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Top => "quantization_config",
            Self::Text => "text_config.quantization_config",
            Self::Compression => "compression_config",
        }
    }
}

/// What a checkpoint says about its compression.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointConfig {
    /// Where it was found.
    pub location: ConfigLocation,
    /// How tensors are quantized, if they are.
    pub quantization: Option<QuantizationConfig>,
    /// Which transforms act, if any do.
    pub transforms: Option<TransformConfig>,
    /// How tensors are sparse, in checkpoints of early versions.
    pub sparsity: Option<SparsityConfig>,
    /// Version of the writer.
    pub version: Option<String>,
}

impl CheckpointConfig {
    /// Reads the section of a parsed `config.json`, as any version wrote it.
    ///
    /// # Errors
    /// `UnknownName` for the `quant_method` of another format; as [`QuantizationConfig::from_json`],
    /// with the path in `config.json` as the place.
    pub fn from_model_config(config: &Value) -> Result<Option<Self>> {
        let Some((location, section)) = locate_section(config) else {
            return Ok(None);
        };
        Self::read(location, section).map(Some).map_err(|e| e.at(location.path()))
    }

    fn read(location: ConfigLocation, section: &Value) -> Result<Self> {
        let outer = wire::object(location.path(), section)?;
        if let Some(method) = wire::given(outer, "quant_method") {
            check_method(&wire::string("quant_method", method)?)?;
        }
        // The loader of early versions wrapped the fields once more.
        let inner = outer.get("quantization_config").filter(|it| it.is_object());
        let fields = inner.unwrap_or(section);
        let has_groups = fields.get("config_groups").is_some_and(|it| !it.is_null());
        let states_nothing = ["transform_config", "sparsity_config"].iter().all(|key| !outer.contains_key(*key));
        let quantization =
            (has_groups || states_nothing).then(|| QuantizationConfig::read(fields, Reader::Checkpoint)).transpose()?;
        let extra = |key: &str| wire::given(outer, key).or_else(|| fields.get(key).filter(|it| !it.is_null()));
        let transforms = extra("transform_config")
            .map(|it| TransformConfig::from_json(it).map_err(|e| e.at("transform_config")))
            .transpose()?
            .filter(|it| !it.config_groups.is_empty());
        let sparsity = extra("sparsity_config")
            .map_or(Ok(None), |it| SparsityConfig::from_json(it).map_err(|e| e.at("sparsity_config")))?;
        let version = extra("version").and_then(Value::as_str).map(str::to_owned);
        Ok(Self { location, quantization, transforms, sparsity, version })
    }
}

/// The section of a parsed `config.json` with the place where it stands, whatever its method.
pub fn locate_section(config: &Value) -> Option<(ConfigLocation, &Value)> {
    let at = |location: ConfigLocation| location.path().split('.').try_fold(config, |value, key| value.get(key));
    ConfigLocation::ALL
        .into_iter()
        .find_map(|location| at(location).filter(|it| !it.is_null()).map(|section| (location, section)))
}

/// The value of `quantization_config`, keys sorted at every level, or nothing where there is nothing
/// to say. With transforms alone the quantization fields are absent.
pub fn write_section(
    quantization: Option<&QuantizationConfig>,
    transforms: Option<&TransformConfig>,
    version: &str,
) -> Option<Value> {
    if quantization.is_none() && transforms.is_none() {
        return None;
    }
    let mut section = match quantization.map(QuantizationConfig::to_json) {
        Some(Value::Object(fields)) => fields,
        _ => Map::from_iter([("quant_method".to_owned(), json!(QUANT_METHOD))]),
    };
    section.insert("sparsity_config".to_owned(), json!({}));
    section.insert("transform_config".to_owned(), transforms.map_or_else(|| json!({}), TransformConfig::to_json));
    section.insert("version".to_owned(), json!(version));
    Some(wire::sorted(Value::Object(section)))
}

fn check_method(method: &str) -> Result<()> {
    if [QUANT_METHOD, LEGACY_METHOD].contains(&method) {
        return Ok(());
    }
    let known = vec![QUANT_METHOD.to_owned()];
    Err(ErrorKind::UnknownName { what: "quant_method", name: method.to_owned(), known }.into())
}
