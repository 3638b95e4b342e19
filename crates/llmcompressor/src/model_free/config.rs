//! The output's `config.json` and the files taken along.

use checkpoint::{Companion, Source, Treatment};
use compressed_tensors::{
    config::{FORMAT_VERSION, QuantizationConfig, QuantizationStatus, write_section},
    format::model_format,
    transforms::TransformConfig,
};
use serde_json::{Map, Value};

use super::{
    groups::Groups,
    options::{ModelFreeOptions, Tolerance},
};
use crate::model_config::{remove_section, set_section};

/// The config of an output of which every module of `groups` is compressed.
pub(super) fn quantization_config(groups: &Groups, ignore: Vec<String>) -> QuantizationConfig {
    let formats = groups.schemes.values().filter_map(|it| it.format);
    QuantizationConfig {
        config_groups: groups.schemes.clone(),
        kv_cache_scheme: groups.kv_cache_scheme.clone(),
        format: model_format(formats).name().to_owned(),
        quantization_status: QuantizationStatus::Compressed,
        ignore,
        ..QuantizationConfig::default()
    }
}

/// The source's config with its section replaced; everything else keeps its place and value.
pub(super) fn model_config(
    source: &Source,
    config: &QuantizationConfig,
    transforms: Option<&TransformConfig>,
) -> Vec<u8> {
    let mut model = match source.config() {
        Ok(Value::Object(model)) => model.clone(),
        _ => Map::new(),
    };
    remove_section(&mut model);
    if let Some(mut section) = write_section(Some(config), transforms, FORMAT_VERSION) {
        // The reference's model-free path writes no sparsity_config, unlike its model path.
        if let Value::Object(section) = &mut section {
            section.shift_remove("sparsity_config");
        }
        set_section(&mut model, section);
    }
    checkpoint::pretty_json(&Value::Object(model))
}

/// The source's files; code is marked as left where it is not wanted.
pub(super) fn companions(source: &Source, options: &ModelFreeOptions) -> Vec<Companion> {
    let mut companions = source.companions().to_vec();
    if options.remote_code == Tolerance::Refuse {
        companions.retain(|it| it.treatment != Treatment::CopyCode);
    }
    companions
}
