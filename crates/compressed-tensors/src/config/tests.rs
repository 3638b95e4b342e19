//! Unit tests of reading, merging and writing.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use serde_json::from_str;

use super::*;
use crate::{ErrorKind, args::ActivationOrdering, target::NamedModule};

fn read(text: &str) -> Result<QuantizationConfig> {
    QuantizationConfig::parse(text, Reader::Strict)
}

fn group(name: &str, targets: &[&str], preset_name: &str, format: Option<CompressionFormat>) -> QuantizationConfig {
    let mut scheme = preset(preset_name, targets.iter().map(|it| (*it).to_owned()).collect()).unwrap();
    scheme.format = format;
    QuantizationConfig { config_groups: [(name.to_owned(), scheme)].into_iter().collect(), ..Default::default() }
}

#[test]
fn a_group_may_be_a_preset_with_targets() {
    let config = read(r#"{"config_groups": {"w4a16": ["re:.*mlp.*"]}, "version": "9", "nonsense": 1}"#).unwrap();
    assert_eq!(config.config_groups["w4a16"], preset("W4A16", vec!["re:.*mlp.*".to_owned()]).unwrap());
    assert_eq!((config.format.as_str(), config.ignore.len()), ("fakequant", 0));
}

#[test]
fn a_fault_has_its_kind_and_place() {
    let field = |text: &str| match read(text).unwrap_err() {
        e if matches!(e.kind(), ErrorKind::InvalidField { .. }) => match e.kind() {
            ErrorKind::InvalidField { field, .. } => (field.clone(), e.place().unwrap_or("").to_owned()),
            _ => unreachable!(),
        },
        e => panic!("{text}: {e}"),
    };
    let at = |field: &str, place: &str| (field.to_owned(), place.to_owned());
    assert_eq!(field("[]"), at("quantization_config", ""));
    assert_eq!(field("{}"), at("config_groups", ""));
    assert_eq!(field(r#"{"config_groups": {"g": 1}}"#), at("g", "config_groups.g"));
    assert_eq!(field(r#"{"config_groups": {"g": {"targets": "Linear"}}}"#), at("targets", "config_groups.g"));
    assert_eq!(
        field(r#"{"config_groups": {"g": {"targets": [], "weights": {"num_bits": 4.5}}}}"#),
        at("num_bits", "config_groups.g.weights")
    );
    assert_eq!(
        field(r#"{"config_groups": {"g": {"targets": [], "input_activations": {"actorder": "weight"}}}}"#),
        at("actorder", "config_groups.g.input_activations")
    );
    assert_eq!(
        field(r#"{"config_groups": {"g": {"targets": [], "format": "mixed-precision"}}}"#),
        at("format", "config_groups.g")
    );
    assert_eq!(field(r#"{"config_groups": {}, "kv_cache_scheme": []}"#), at("quantization args", "kv_cache_scheme"));
    assert_eq!(field(r#"{"config_groups": {}, "ignore": [1]}"#), at("ignore", ""));
    assert_eq!(field(r#"{"config_groups": {}, "quantization_status": null}"#), at("quantization_status", ""));
}

#[test]
fn unknown_names_and_fields_and_broken_text_are_told_apart() {
    let error = read(r#"{"config_groups": {"W9A9": ["Linear"]}}"#).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownName { what: "scheme", name, .. } if name == "W9A9"), "{error}");
    assert_eq!(error.place(), Some("config_groups.W9A9"));

    let error = read(r#"{"config_groups": {"g": {"targets": [], "wieghts": {}}}}"#).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownField { field, .. } if field == "wieghts"), "{error}");

    let error = read(r#"{"config_groups": {"g": {"targets": [], "format": "zip"}}}"#).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownName { what: "compression format", .. }), "{error}");
    assert_eq!(error.place(), Some("config_groups.g.format"));

    let channel = r#"{"config_groups": {"g": {"targets": [], "input_activations": {"strategy": "channel"}}}}"#;
    let error = read(channel).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }), "{error}");
    assert_eq!(error.place(), Some("config_groups.g.input_activations"));

    let error = read("{\n  \"config_groups\": }").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Json { line: 2, column: 20, .. }), "{error}");
    let deep = "[".repeat(100_000);
    assert!(matches!(read(&deep).unwrap_err().kind(), ErrorKind::Json { .. }));
}

#[test]
fn checkpoints_of_every_age_are_read() {
    let weights =
        r#"{"num_bits": 4, "strategy": "group", "group_size": 128, "actorder": "group", "observer": "minmax"}"#;
    let old = format!(
        r#"{{"compression_config": {{"config_groups": {{"group_0": {{"targets": ["Linear"], "weights": {weights}}}}},
        "format": "pack-quantized", "quant_method": "sparseml", "quantization_status": "frozen", "ignore": null,
        "sparsity_config": {{"format": "sparse-24-bitmask", "sparsity_structure": "2:4",
        "registry_requires_subclass": false}}}}}}"#
    );
    let config: Value = from_str(&old).unwrap();
    let found = CheckpointConfig::from_model_config(&config).unwrap().unwrap();
    assert_eq!(found.location, ConfigLocation::Compression);
    assert_eq!(found.sparsity.unwrap().sparsity_structure, SparsityStructure::TwoFour);
    let quantization = found.quantization.unwrap();
    let args = quantization.config_groups["group_0"].weights.as_ref().unwrap();
    assert_eq!(args.actorder, Some(ActivationOrdering::Group));
    assert_eq!(args.to_json()["actorder"], "group");
    assert!(QuantizationConfig::from_json(&config["compression_config"]).is_err());

    // 0.20 leaves out what is null or empty, and adds keys.
    let new = r#"{"text_config": {"quantization_config": {"quant_method": "compressed-tensors", "version": "0.20.0",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float",
        "symmetric": true, "group_size": null, "strategy": "channel", "dynamic": false}}},
        "format": "float-quantized", "moe_sparsity_config": {"method": "prune"}, "quantization_status": "compressed",
        "transform_config": {}, "sparsity_config": {}}}}"#;
    let found = CheckpointConfig::from_model_config(&from_str(new).unwrap()).unwrap().unwrap();
    assert_eq!(found.location, ConfigLocation::Text);
    assert_eq!((found.sparsity, found.transforms, found.version.as_deref()), (None, None, Some("0.20.0")));
    let args = found.quantization.unwrap().config_groups["group_0"].weights.clone().unwrap();
    assert_eq!(args.zp_dtype, Some(crate::DType::F8E4M3));

    let wrapped = r#"{"quantization_config": {"quantization_config": {"config_groups": {}, "format": "dense"},
        "quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-bitmask"}}}"#;
    let found = CheckpointConfig::from_model_config(&from_str(wrapped).unwrap()).unwrap().unwrap();
    assert_eq!(found.quantization.unwrap().format, "dense");
    assert_eq!(found.sparsity.unwrap().format, "sparse-bitmask");

    assert_eq!(CheckpointConfig::from_model_config(&json!({"quantization_config": null})).unwrap(), None);
    let other = json!({"quantization_config": {"quant_method": "awq", "bits": 4}});
    let error = CheckpointConfig::from_model_config(&other).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownName { what: "quant_method", .. }), "{error}");
    assert_eq!(error.place(), Some("quantization_config"));
    assert_eq!(locate_section(&other).unwrap().1["bits"], 4);
}

#[test]
fn transforms_alone_leave_the_quantization_fields_out() {
    let json = json!({"config_groups": {"R1": {"type": "hadamard"}}});
    let transforms = crate::transforms::TransformConfig::from_json(&json).unwrap();
    let section = write_section(None, Some(&transforms), FORMAT_VERSION).unwrap();
    let keys: Vec<&String> = section.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["quant_method", "sparsity_config", "transform_config", "version"]);
    let back = CheckpointConfig::from_model_config(&json!({"quantization_config": section})).unwrap().unwrap();
    assert_eq!((back.quantization, back.transforms), (None, Some(transforms)));
    assert_eq!(write_section(None, None, FORMAT_VERSION), None);
}

#[test]
fn merging_renames_groups_and_drops_ignores_that_are_now_targeted() {
    let mut config = group("group_0", &["Linear"], "W4A16", Some(CompressionFormat::PackQuantized));
    config.ignore = ["lm_head", "re:.*gate", "model.x"].map(str::to_owned).to_vec();
    let mut other = group("group_0", &["re:lm_.*"], "FP8", Some(CompressionFormat::FloatQuantized));
    other.ignore = vec!["elsewhere".to_owned()];
    other.quantization_status = QuantizationStatus::Frozen;
    config.merge(other).unwrap();
    assert_eq!(config.config_groups.keys().collect::<Vec<_>>(), ["group_0", "group_1"]);
    assert_eq!(config.ignore, ["re:.*gate", "model.x"]);
    assert_eq!(config.format, "mixed-precision");
    assert_eq!(config.quantization_status, QuantizationStatus::Frozen);

    let mut same = group("a", &["Linear"], "W4A16", Some(CompressionFormat::PackQuantized));
    same.merge(group("a", &["Embedding"], "W8A16", Some(CompressionFormat::PackQuantized))).unwrap();
    assert_eq!((same.format.as_str(), same.config_groups.len()), ("pack-quantized", 2));
    let error = same.merge(group("a", &["re:("], "W8A16", None)).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Pattern { .. }), "{error}");
}

#[test]
fn data_is_needed_where_a_scale_is_not_found_on_the_fly() {
    for (name, needed) in [("NVFP4", true), ("FP8", true), ("NVFP4A16", false), ("MXFP4", false), ("W4A16", false)] {
        assert_eq!(group("g", &["Linear"], name, None).requires_calibration_data(), needed, "{name}");
    }
    let cache = QuantizationConfig { kv_cache_scheme: Some(QuantizationArgs::default()), ..Default::default() };
    assert!(cache.requires_calibration_data());
    let mut importance = group("g", &["Linear"], "W4A16", None);
    let weights = importance.config_groups[0].weights.as_mut().unwrap();
    weights.observer = Some("imatrix_mse".to_owned());
    assert!(importance.requires_calibration_data());
}

#[test]
fn the_most_specific_target_decides_whatever_the_order_of_groups() {
    let mut config = group("all", &["Linear", "re:.*q_proj"], "W4A16", None);
    config.config_groups.extend(group("one", &["m.q_proj", "Linear"], "FP8", None).config_groups);
    config.ignore = vec!["lm_head".to_owned()];
    let table = SchemeTable::new(&config).unwrap();
    let deciding = |name: &str| {
        let module = NamedModule { name, classes: &["Linear"] };
        table.assign(module).unwrap().map(|it| (it.group, it.target))
    };
    assert_eq!(deciding("m.q_proj"), Some(("one", "m.q_proj")));
    assert_eq!(deciding("n.q_proj"), Some(("all", "re:.*q_proj")));
    assert_eq!(deciding("n.k_proj"), Some(("one", "Linear")));
    assert_eq!(deciding("lm_head"), None);
}

#[test]
fn equal_schemes_form_one_group_and_a_scheme_without_arguments_counts_as_none() {
    let w4 = preset("W4A16", vec!["Linear".to_owned()]).unwrap();
    let none = QuantizationScheme::unquantized(vec!["Linear".to_owned()]);
    let record = |name, class, scheme| ModuleRecord { name, class, scheme, attention: Attention::None };
    let modules = [
        record("a", "Linear", Some(&w4)),
        record("b", "Linear", Some(&w4)),
        record("c", "Linear", Some(&none)),
        record("gate", "MoEGate", None),
        record("norm", "RMSNorm", None),
    ];
    let config = build_config(modules, QuantizationStatus::Compressed, None).unwrap();
    assert_eq!(config.config_groups.len(), 1);
    assert_eq!(config.ignore, ["c", "gate"]);
    assert_eq!(build_config(modules[3..].iter().copied(), QuantizationStatus::Frozen, None), None);
}
