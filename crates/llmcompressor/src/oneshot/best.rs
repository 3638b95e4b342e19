//! The recipe of a run that names a scheme alone.

use compressed_tensors::{args::QuantizationType, presets::preset, scheme::QuantizationScheme};
use modifiers::smoothquant::mappings::MAPPINGS;
use pipelines::Partition;
use serde_json::{Value, json};

/// Rounds after which codes and scales hardly move any more.
const REFINE_ROUNDS: u32 = 8;

/// How much of what earlier layers have done a layer makes up for; all of it is little better, and worse on other text.
const INPUT_CORRECTION: f64 = 0.5;

/// Codes of as many bits hardly move the inputs of later layers.
const UNCORRECTED_BITS: i64 = 8;

/// How much of the outliers of activations goes into weights.
const SMOOTHING_STRENGTH: f64 = 0.8;

/// The recipe for a preset, for a model of this class.
///
/// Integer weights are swept by GPTQ over searched scales and refined, where there is data, those of few bits towards what the
/// dense model puts out, with the last norm as loud as it was; integer activations are smoothed before, where the mappings of the
/// class are known. All else is rounded to nearest.
pub(super) fn best_recipe(scheme: &str, class: &str, has_data: bool, partition: Partition) -> String {
    let found = preset(scheme, Vec::new()).ok();
    let is_swept = has_data && found.as_ref().is_some_and(has_integer_weights);
    let is_smoothed = is_swept && found.as_ref().is_some_and(has_integer_inputs) && is_mapped(class);
    let is_corrected = is_swept && !is_smoothed && found.as_ref().is_some_and(has_few_bits);
    let mut modifiers = serde_json::Map::new();
    if is_smoothed {
        modifiers.insert("SmoothQuantModifier".to_owned(), json!({"smoothing_strength": SMOOTHING_STRENGTH}));
    }
    let mut fields = json!({"targets": ["Linear"], "ignore": ["lm_head"], "scheme": scheme});
    if let (true, Value::Object(fields)) = (is_swept, &mut fields) {
        fields.insert("scale_search".to_owned(), json!("moments"));
        fields.insert("refine_rounds".to_owned(), json!(REFINE_ROUNDS));
        if is_corrected {
            fields.insert("input_correction".to_owned(), json!(INPUT_CORRECTION));
        }
    }
    modifiers.insert(if is_swept { "GPTQModifier" } else { "QuantizationModifier" }.to_owned(), fields);
    // A wave of whole layers holds the last layer and the norm, which is heard after the layer has changed.
    if is_corrected && partition == Partition::BeforeTargets {
        modifiers.insert("NormGainModifier".to_owned(), json!({}));
    }
    json!({"quant_stage": {"quant_modifiers": modifiers}}).to_string()
}

/// Whether a run with data would do better than one without.
pub(super) fn gains_by_data(scheme: &str) -> bool {
    preset(scheme, Vec::new()).is_ok_and(|it| has_integer_weights(&it))
}

fn has_integer_weights(scheme: &QuantizationScheme) -> bool {
    scheme.weights.as_ref().is_some_and(|it| it.r#type == QuantizationType::Int)
}

fn has_few_bits(scheme: &QuantizationScheme) -> bool {
    scheme.weights.as_ref().is_some_and(|it| it.num_bits < UNCORRECTED_BITS)
}

fn has_integer_inputs(scheme: &QuantizationScheme) -> bool {
    scheme.input_activations.as_ref().is_some_and(|it| it.r#type == QuantizationType::Int)
}

fn is_mapped(class: &str) -> bool {
    MAPPINGS.iter().any(|it| it.0 == class)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modifiers(scheme: &str, class: &str, has_data: bool) -> Vec<String> {
        modifiers_in(scheme, class, has_data, Partition::BeforeTargets)
    }

    fn modifiers_in(scheme: &str, class: &str, has_data: bool, partition: Partition) -> Vec<String> {
        let recipe: Value = serde_json::from_str(&best_recipe(scheme, class, has_data, partition)).unwrap();
        recipe["quant_stage"]["quant_modifiers"].as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn a_scheme_gets_what_its_codes_and_the_data_allow() {
        let llama = "LlamaForCausalLM";
        assert_eq!(modifiers("W4A16", llama, true), ["GPTQModifier", "NormGainModifier"]);
        assert_eq!(modifiers_in("W4A16", llama, true, Partition::Compat), ["GPTQModifier"]);
        assert_eq!(modifiers("W8A8", llama, true), ["SmoothQuantModifier", "GPTQModifier"]);
        assert_eq!(modifiers("W8A8", "GPT2LMHeadModel", true), ["GPTQModifier"]);
        assert_eq!(modifiers("W4A16", llama, false), ["QuantizationModifier"]);
        assert_eq!(modifiers("FP8_DYNAMIC", llama, true), ["QuantizationModifier"]);
        assert_eq!(modifiers("no preset", llama, true), ["QuantizationModifier"]);
    }

    #[test]
    fn few_bits_are_corrected_where_nothing_is_smoothed_before() {
        let is_corrected = |scheme, has_data| {
            best_recipe(scheme, "LlamaForCausalLM", has_data, Partition::BeforeTargets).contains("input_correction")
        };
        assert!(["W4A16", "W3A16", "W4A16_ASYM"].into_iter().all(|it| is_corrected(it, true)));
        assert!(["W8A16", "W8A8", "W4A8", "FP8_DYNAMIC"].into_iter().all(|it| !is_corrected(it, true)));
        assert!(!is_corrected("W4A16", false));
    }
}
