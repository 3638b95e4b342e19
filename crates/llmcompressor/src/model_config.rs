//! The compression section of a model's `config.json`, taken out and put in; all else keeps its place.

use compressed_tensors::config::{ConfigLocation, locate_section};
use serde_json::{Map, Value};

/// Takes the section out, wherever it stands.
pub(crate) fn remove_section(config: &mut Map<String, Value>) {
    while let Some((location, _)) = locate_section(&Value::Object(config.clone())) {
        let removed = match location {
            ConfigLocation::Top => config.shift_remove("quantization_config"),
            ConfigLocation::Compression => config.shift_remove("compression_config"),
            ConfigLocation::Text => match config.get_mut("text_config") {
                Some(Value::Object(text)) => text.shift_remove("quantization_config"),
                _ => None,
            },
        };
        if removed.is_none() {
            return;
        }
    }
}

/// Puts a section in at the top level, in the place of one that stands there.
pub(crate) fn set_section(config: &mut Map<String, Value>, section: Value) {
    config.insert("quantization_config".to_owned(), section);
}

/// Says that the output head has a weight of its own, wherever the config speaks of it.
pub(crate) fn untie(config: &mut Map<String, Value>) {
    const KEY: &str = "tie_word_embeddings";
    if let Some(Value::Object(text)) = config.get_mut("text_config") {
        text.insert(KEY.to_owned(), Value::Bool(false));
    }
    config.insert(KEY.to_owned(), Value::Bool(false));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_section_goes_and_the_rest_keeps_its_order() {
        let Value::Object(mut config) = json!({
            "b": 1,
            "quantization_config": {"quant_method": "fp8"},
            "text_config": {"z": 1, "quantization_config": {"quant_method": "fp8"}, "a": 2},
            "a": 2,
        }) else {
            panic!("an object")
        };
        remove_section(&mut config);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(text, r#"{"b":1,"text_config":{"z":1,"a":2},"a":2}"#);
    }
}
