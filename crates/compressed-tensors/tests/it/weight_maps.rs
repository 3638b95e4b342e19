//! Inverse weight maps, fused partners and the splitting of experts against `core/checkpoint_maps.json`.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use compressed_tensors::{
    DType, ErrorKind,
    config::QuantizationConfig,
    experts::{ExpertLayout, split_fused_experts},
    format::{CompressionFormat, model_format},
    fused::{FUSED_PATTERNS, FusedSets, fused_partners, fused_sets},
    presets::preset,
    weight_map::{WeightMap, inverse_weight_maps, tensors_by_shard},
};
use serde_json::{Map, Value, json};
use testkit::Goldens;

fn cases(op: &str) -> Vec<Value> {
    let file = Goldens::open("core").json("checkpoint_maps.json");
    let all = file["cases"].as_array().unwrap();
    // Seven cases are about the arguments of an entry point, which is above this crate.
    assert_eq!(all.len(), 30);
    assert_eq!(all.iter().filter(|it| it["op"] == "validate_config").count(), 7);
    all.iter().filter(|it| it["op"].as_str().unwrap().starts_with(op)).cloned().collect()
}

fn weight_map(value: &Value) -> WeightMap {
    serde_json::from_value(value.clone()).unwrap()
}

/// The maps in the shape of the golden: paths for shards, sorted names.
fn rendered(map: &WeightMap, dependencies: impl Fn(&str) -> Vec<String>) -> Result<Value, ErrorKind> {
    let outputs = inverse_weight_maps(map, dependencies).map_err(|e| e.kind().clone())?;
    let mut rendered = Map::new();
    for (shard, sources) in outputs {
        let mut paths = Map::new();
        for (source, mut names) in sources {
            names.sort();
            paths.insert(format!("/p/{source}"), json!(names));
        }
        rendered.insert(shard, Value::Object(paths));
    }
    Ok(Value::Object(rendered))
}

#[test]
fn shards_load_the_partners_of_their_fused_weights() {
    let cases = cases("inverse_weight_maps");
    assert_eq!(cases.len(), 4);
    for case in cases {
        let map = weight_map(&case["weight_map"]);
        // Only schemes with a global scale bind fused weights to each other.
        let got = match case["scheme"].as_str() {
            Some("W8A16" | "MXFP4A16") => rendered(&map, |_| Vec::new()),
            _ => rendered(&map, fused_partners),
        };
        match case.get("ok") {
            Some(expected) => assert_eq!(&got.unwrap(), expected, "{}", case["scheme"]),
            None => assert!(matches!(
                got.unwrap_err(),
                ErrorKind::MissingTensor { tensor } if tensor == "model.layers.0.self_attn.v_proj.weight"
            )),
        }
    }
}

#[test]
fn a_shard_of_companions_only_has_no_entry() {
    let cases = cases("shard whose tensors");
    assert_eq!(cases.len(), 1);
    let got = rendered(&weight_map(&cases[0]["weight_map"]), fused_partners).unwrap();
    assert_eq!(got, cases[0]["ok"]);
}

#[test]
fn tensors_are_listed_by_shard() {
    let case = &cases("invert_mapping")[0];
    let map: WeightMap =
        case["in"].as_object().unwrap().iter().map(|(name, shard)| (name.clone(), shard.to_string())).collect();
    assert_eq!(json!(tensors_by_shard(&map)), case["out"]);
}

#[test]
fn the_fused_patterns_are_the_references_mappings() {
    let case = &cases("fused_mappings")[0];
    let expected = case["out"].as_object().unwrap();
    assert_eq!(expected.len(), FUSED_PATTERNS.len());
    for ((regex, templates), pattern) in expected.iter().zip(FUSED_PATTERNS) {
        let regex = regex::Regex::new(regex).unwrap();
        let containers = if pattern.containers.is_empty() { &["experts.3"] } else { pattern.containers };
        for container in containers {
            let primary = format!("model.layers.0.{container}.{}.weight", pattern.members[0]);
            let groups = regex.captures(&primary).unwrap();
            let partners: Vec<String> = templates
                .as_array()
                .unwrap()
                .iter()
                .map(|template| {
                    let mut name = template.as_str().unwrap().to_owned();
                    for group in regex.capture_names().flatten() {
                        name = name.replace(&format!("{{{group}}}"), &groups[group]);
                    }
                    name
                })
                .collect();
            assert_eq!(fused_partners(&primary), partners);
        }
        // What the expression refuses has no partners.
        for other in
            ["model.q_proj.weight", "attn.q_proj.weight", "m.attn.q_proj.bias", "m.mlp.experts.0.gate_proj.weight"]
        {
            assert!(!regex.is_match(other) && fused_partners(other).is_empty(), "{other}");
        }
    }
}

/// Sets without the patterns that the golden names as keys.
fn sets(matched: &Value, unmatched: &Value) -> FusedSets {
    let values = |set: &Value| set.as_object().unwrap().values().cloned().collect::<Vec<_>>();
    let all = |list: &Value| list.as_array().unwrap().iter().map(values).collect::<Vec<_>>();
    FusedSets {
        complete: serde_json::from_value(json!(all(matched))).unwrap(),
        incomplete: serde_json::from_value(json!(all(unmatched))).unwrap(),
    }
}

#[test]
fn fused_names_are_found_as_in_the_reference_but_never_across_layers() {
    let cases = cases("get_fused_names");
    assert_eq!(cases.len(), 4);
    let names: Vec<String> = serde_json::from_value(cases[0]["names"].clone()).unwrap();
    let full = fused_sets(names.iter().map(String::as_str));
    assert_eq!(full, sets(&cases[0]["matched"], &cases[0]["unmatched"]));
    for case in &cases[1..] {
        let dropped: Vec<String> = serde_json::from_value(case["dropped"].clone()).unwrap();
        let got = fused_sets(names.iter().filter(|it| !dropped.contains(it)).map(String::as_str));
        if dropped == ["model.layers.1.self_attn.k_proj.weight"] {
            // The reference pairs layer 1's q and v with layer 2's k.
            let layer = |i: usize, p: &str| format!("model.layers.{i}.self_attn.{p}_proj.weight");
            assert_eq!(got.incomplete, [vec![Some(layer(1, "q")), None, Some(layer(1, "v"))]]);
            assert!(got.complete.contains(&["q", "k", "v"].map(|p| layer(2, p)).to_vec()));
        } else {
            assert_eq!(got, sets(&case["ok"][0], &case["ok"][1]), "{dropped:?}");
        }
    }
}

#[test]
fn fused_sets_come_in_natural_order() {
    let case = &cases("match_names_set_eager")[0];
    let in_attention = |name: &str| {
        let (prefix, member) = name.rsplit_once('.').unwrap();
        format!("{prefix}.{}.weight", if member == "a" { "w1" } else { "w3" })
    };
    let names: Vec<String> =
        case["names"].as_array().unwrap().iter().map(|it| in_attention(it.as_str().unwrap())).collect();
    let got = fused_sets(names.iter().map(String::as_str));
    let expected = sets(&case["out"][0], &json!([]));
    let expected: Vec<Vec<String>> =
        expected.complete.iter().map(|set| set.iter().map(|it| in_attention(it)).collect()).collect();
    assert_eq!(got.complete, expected);
    assert!(got.incomplete.is_empty() && case["out"][1].is_null());
}

#[test]
fn fused_experts_are_split_as_in_the_reference() {
    let cases = cases("split_fused_moe_experts");
    assert_eq!(cases.len(), 6);
    for case in cases {
        let mut got = Map::new();
        let mut failed = None;
        for (name, shape) in case["in_shapes"].as_object().unwrap() {
            let shape: Vec<usize> = serde_json::from_value(shape.clone()).unwrap();
            let data: Vec<u8> = (0..shape.iter().product::<usize>()).flat_map(|it| (it as f32).to_le_bytes()).collect();
            let first_two = |bytes: &[u8]| -> Vec<f32> {
                bytes.as_chunks().0.iter().take(2).map(|it| f32::from_le_bytes(*it)).collect()
            };
            match split_fused_experts(name, DType::F32, &shape, ExpertLayout::Rows) {
                Err(error) => failed = Some(error),
                Ok(None) => {
                    got.insert(name.clone(), json!([shape, first_two(&data)]));
                }
                Ok(Some(parts)) => {
                    for part in parts {
                        let bytes = part.extract(&data[part.source.clone()]).unwrap();
                        assert_eq!(bytes.len(), part.shape.iter().product::<usize>() * 4);
                        got.insert(part.name.clone(), json!([part.shape, first_two(&bytes)]));
                    }
                }
            }
        }
        match case.get("ok") {
            Some(expected) => {
                assert!(failed.is_none());
                assert_eq!(&Value::Object(got), expected);
            }
            None => {
                assert!(matches!(failed.unwrap().kind(), ErrorKind::Shape { .. } | ErrorKind::UnexpectedTensor { .. }))
            }
        }
    }
}

/// A config as the golden abbreviates it: targets by group, ignore, format, status.
fn abbreviated(config: &Value) -> QuantizationConfig {
    let mut groups = Map::new();
    for (name, targets) in config[0].as_object().unwrap() {
        let targets = serde_json::from_value(targets.clone()).unwrap();
        groups.insert(name.clone(), preset("W8A16", targets).unwrap().to_json());
    }
    let config =
        json!({"config_groups": groups, "ignore": config[1], "format": config[2], "quantization_status": config[3]});
    QuantizationConfig::from_json(&config).unwrap()
}

#[test]
fn a_second_pass_is_merged_into_the_config_of_the_first() {
    let cases = cases("QuantizationConfig.merge");
    assert_eq!(cases.len(), 2);
    for case in cases {
        let mut config = abbreviated(&case["base"]);
        config.merge(abbreviated(&case["new"])).unwrap();
        let groups: Map<String, Value> =
            config.config_groups.iter().map(|(name, scheme)| (name.clone(), json!(scheme.targets))).collect();
        assert_eq!(Value::Object(groups), case["out"]["groups"]);
        assert_eq!(json!(config.ignore), case["out"]["ignore"]);
        assert_eq!(json!(config.quantization_status.name()), case["out"]["status"]);
        // The reference loses the label where schemes have none of their own.
        assert_eq!(case["out"]["format"], "None");
        let same = case["base"][2] == case["new"][2];
        assert_eq!(config.format, if same { "pack-quantized" } else { "mixed-precision" });
    }
}

#[test]
fn a_model_is_labelled_by_the_formats_of_its_groups() {
    let cases = cases("model_free update_config");
    assert_eq!(cases.len(), 3);
    for case in cases {
        let formats = case["formats"].as_array().unwrap().iter().map(|it| match it.as_str() {
            None => CompressionFormat::Dense,
            Some(name) => CompressionFormat::from_name(name).unwrap(),
        });
        assert_eq!(json!(model_format(formats).name()), case["out"]["format"]);
    }
}
