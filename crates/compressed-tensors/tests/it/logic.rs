//! Everything in `goldens/formats/logic.json`: validation, presets, inference, matching, naming.

use compressed_tensors::{
    ErrorKind,
    args::QuantizationArgs,
    bins::greedy_bin_packing,
    config::vllm_module_type,
    format::infer_module_format,
    presets::{PRESETS, preset},
    scheme::QuantizationScheme,
    target::{
        FusedMap, Matcher, NamedModule, Norms, Pattern, Patterns, find_unique_name, lowest_common_ancestor, match_name,
        match_quantizable_tensors,
    },
};
use serde_json::{Value, json};
use testkit::Goldens;

fn logic(key: &str) -> Value {
    Goldens::open("formats").json("logic.json")[key].take()
}

fn cases(key: &str, expected_len: usize) -> Vec<Value> {
    let list = logic(key).as_array().unwrap().clone();
    assert_eq!(list.len(), expected_len, "cases of `{key}`");
    list
}

/// The reference's exception class for our error kind.
fn python_class(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unsupported { .. } => "NotImplementedError",
        _ => "ValidationError",
    }
}

#[test]
fn args_are_coerced_refused_and_written_as_in_the_reference() {
    for case in cases("args", 54) {
        let input = &case["in"];
        match QuantizationArgs::from_json(input) {
            Ok(args) => {
                assert_eq!(case["ok"], true, "{input} was accepted");
                let written = args.to_json();
                assert_eq!(written.to_string(), case["out"].to_string(), "{input}");
                let zp = format!("torch.{}", args.zp_dtype.unwrap().torch_name().unwrap());
                assert_eq!(zp, case["internal_zp_dtype"].as_str().unwrap(), "{input}");
            }
            Err(error) => assert_eq!(case["error_type"], python_class(error.kind()), "{input}: {error}"),
        }
    }
}

#[test]
fn every_preset_is_as_in_the_reference() {
    let golden = logic("presets");
    assert_eq!(golden.as_object().unwrap().len(), 30);
    assert_eq!(PRESETS.len(), 30);
    for (name, case) in golden.as_object().unwrap() {
        let scheme = preset(&name.to_lowercase(), vec!["Linear".to_owned()]).unwrap();
        assert_eq!(scheme.to_json().to_string(), case["scheme"].to_string(), "{name}");
        assert_eq!(infer_module_format("Linear", &scheme).name(), case["inferred_format"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn formats_are_inferred_as_in_the_reference() {
    for case in cases("format_inference", 13) {
        let scheme = QuantizationScheme::from_json(&case["scheme"]).unwrap();
        let what = case["what"].as_str().unwrap();
        assert_eq!(infer_module_format("Linear", &scheme).name(), case["format"].as_str().unwrap(), "{what}");
        assert_eq!(scheme.to_json().to_string(), case["scheme"].to_string(), "{what}");
    }
}

#[test]
fn names_match_as_in_the_reference() {
    for case in cases("match_name", 44) {
        let (name, target) = (text(&case["name"]), text(&case["target"]));
        assert_eq!(match_name(name, target).unwrap(), case["match"].as_bool().unwrap(), "{name} {target}");
    }
}

#[test]
fn fused_names_match_by_their_shards() {
    for case in cases("match_name_fused", 4) {
        let fused: FusedMap =
            case["fused"].as_object().unwrap().iter().map(|(suffix, shards)| (suffix.clone(), texts(shards))).collect();
        let pattern = Pattern::parse(text(&case["target"])).unwrap();
        assert_eq!(pattern.matches_fused(text(&case["name"]), &fused).unwrap(), case["match"], "{case}");
    }
}

#[test]
fn targets_come_most_specific_first() {
    for case in cases("match_targets", 5) {
        let classes = texts(&case["class_mro"]);
        let classes: Vec<&str> = classes.iter().map(String::as_str).collect();
        let module = NamedModule { name: text(&case["name"]), classes: &classes };
        let patterns = Patterns::compile(&texts(&case["targets"])).unwrap();
        assert_eq!(patterns.matching(module).unwrap(), texts(&case["out"]), "{case}");
    }
}

#[test]
fn quantizable_tensors_are_found_by_name() {
    for case in cases("match_quantizable_tensors", 3) {
        let names = texts(&case["tensors"]);
        let matcher = Matcher::compile(&texts(&case["targets"]), &texts(&case["ignore"])).unwrap();
        let parameters = Patterns::compile(&texts(&case["param_targets"])).unwrap();
        let names = names.iter().map(String::as_str);
        let found = match_quantizable_tensors(names, &matcher, &parameters, Norms::Skip).unwrap();
        assert_eq!(json!(found), case["out"], "{case}");
    }
}

#[test]
fn common_ancestors_are_as_in_the_reference() {
    for case in cases("lowest_common_ancestor", 7) {
        let names = case["in"].as_array().unwrap().iter().map(Value::as_str);
        assert_eq!(lowest_common_ancestor(names), text(&case["out"]), "{case}");
    }
}

#[test]
fn free_names_are_found_as_in_the_reference() {
    for case in cases("find_unique_name", 6) {
        let taken = texts(&case["existing"]);
        let found = find_unique_name(text(&case["name"]), |it| taken.iter().any(|name| name == it));
        assert_eq!(found, text(&case["out"]), "{case}");
    }
}

#[test]
fn routers_count_as_linear_layers() {
    for case in cases("vllm_module_type", 10) {
        assert_eq!(vllm_module_type(text(&case["in"])), text(&case["out"]));
    }
}

#[test]
fn items_are_packed_into_bins_as_in_the_reference() {
    let case = logic("greedy_bin_packing");
    let weights: Vec<f64> = case["weights"].as_object().unwrap().values().map(|it| it.as_f64().unwrap()).collect();
    let (order, bins) = greedy_bin_packing(&weights, case["num_bins"].as_u64().unwrap() as usize);
    assert_eq!(json!(order), case["sorted_items"]);
    assert_eq!(json!(bins), case["bins"]);
    assert_eq!(greedy_bin_packing(&weights, 0).1, Vec::<Vec<usize>>::new());
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|it| text(it).to_owned()).collect()
}

#[test]
fn the_file_holds_nothing_else() {
    let file = Goldens::open("formats").json("logic.json");
    let keys: Vec<&str> = file.as_object().unwrap().keys().map(String::as_str).collect();
    let tested = [
        "presets",
        "args",
        "format_inference",
        "match_name",
        "match_name_fused",
        "match_targets",
        "match_quantizable_tensors",
        "lowest_common_ancestor",
        "find_unique_name",
        "vllm_module_type",
        "greedy_bin_packing",
    ];
    assert_eq!(keys, tested);
}
