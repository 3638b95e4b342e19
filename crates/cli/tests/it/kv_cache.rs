//! Keys, values and queries that are quantized while a model is judged.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::tempdir;
use testkit::fixture;

use crate::{
    checkpoints::change_tensors,
    command::run,
    generate::{changed, text, with_json},
};

/// Rows of the data that are judged.
const ROWS: &str = "16";

/// What transformers gives the embedded model for these rows, in f32.
const DENSE_NLL: f64 = 1.935_060_6;

/// Of the nll; the reference sums in another order.
const TOLERANCE: f64 = 2e-5;

#[track_caller]
fn nll(model: &Path) -> f64 {
    let data = text(&fixture("eval.jsonl"));
    let options = ["--seq-len", "512", "--max-samples", ROWS, "--dtype", "f32", "--format", "json"];
    let judged = run(&[&["eval", &text(model), "--data", &data], &options[..]].concat()).expect(0).json();
    judged["nll"].as_f64().unwrap()
}

fn arguments(bits: u32, kind: &str, strategy: &str, dynamic: bool) -> Value {
    json!({"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": true, "dynamic": dynamic})
}

/// Names and values of scales.
type Scales<'a> = &'a [(&'a str, &'a [f32])];

/// The embedded model with these scales in every attention.
fn quantized(dir: &Path, cache: &Value, groups: &Value, scales: Scales<'_>) -> PathBuf {
    changed(dir, |dir| {
        change_tensors(dir, |tensors| {
            for (layer, (name, values)) in (0..4).flat_map(|layer| scales.iter().map(move |it| (layer, it))) {
                let shape = if values.len() == 1 { vec![1] } else { vec![values.len(), 1, 1] };
                let bytes = values.iter().flat_map(|it| it.to_le_bytes()).collect();
                tensors.insert(format!("model.layers.{layer}.self_attn.{name}"), ("F32".to_owned(), shape, bytes));
            }
        });
        with_json(&dir.join("config.json"), |it| {
            it["quantization_config"] = json!({
                "quant_method": "compressed-tensors", "format": "dense", "quantization_status": "compressed",
                "config_groups": groups, "ignore": [], "kv_cache_scheme": cache,
            });
        });
    })
}

#[test]
fn keys_values_and_queries_are_quantized_as_compressed_tensors_does() {
    let per_head = arguments(4, "int", "attn_head", false);
    let group = json!({"group_0": {"targets": ["LlamaAttention"], "input_activations": per_head}});
    let heads: [(&str, &[f32]); 3] =
        [("k_scale", &[1.0, 0.5]), ("v_scale", &[0.125, 0.25]), ("q_scale", &[1.0, 0.5, 2.0, 0.75])];
    // The nll is that of transformers with compressed-tensors 0.19.
    let cases: [(Value, Value, Scales<'_>, f64); 4] = [
        (arguments(8, "float", "tensor", false), json!({}), &[("k_scale", &[0.75]), ("v_scale", &[0.125])], 1.936_292),
        (arguments(4, "int", "tensor", false), json!({}), &[("k_scale", &[1.0]), ("v_scale", &[0.25])], 1.964_790),
        (per_head.clone(), json!({}), &heads[..2], 2.043_720),
        (per_head.clone(), group, &heads, 2.066_848),
    ];
    for (cache, groups, scales, expected) in &cases {
        let dir = tempdir().unwrap();
        let found = nll(&quantized(dir.path(), cache, groups, scales));
        assert!((found / expected - 1.0).abs() < TOLERANCE, "{found}, expected {expected} of {cache}");
        assert!((found / DENSE_NLL - 1.0).abs() > 10.0 * TOLERANCE, "{found} is that of a cache as it is");
    }
}

#[test]
fn a_dynamic_cache_is_quantized_by_ranges_of_its_own() {
    let with = |bits: u32, strategy: &str| {
        let dir = tempdir().unwrap();
        nll(&quantized(dir.path(), &arguments(bits, "int", strategy, true), &json!({}), &[]))
    };
    for strategy in ["token", "tensor"] {
        let (fine, coarse) = (with(8, strategy), with(3, strategy));
        assert!((fine / DENSE_NLL - 1.0).abs() < 1e-3, "{fine} of {strategy}");
        assert!(coarse > 1.01 * DENSE_NLL, "{coarse} of {strategy}");
    }
}

#[test]
fn attention_without_its_scales_or_with_arguments_it_has_none_for_is_refused() {
    let data = text(&fixture("eval.jsonl"));
    let refused = |cache: &Value, groups: &Value, scales: Scales<'_>, words: &[&str]| {
        let dir = tempdir().unwrap();
        let model = text(&quantized(dir.path(), cache, groups, scales));
        run(&["eval", &model, "--data", &data, "--max-samples", "1"]).expect(65).says(words);
    };
    let tensor = arguments(8, "float", "tensor", false);
    refused(&tensor, &json!({}), &[("k_scale", &[1.0])], &["model.layers.0.self_attn.v_scale"]);
    let group = json!({"group_0": {"targets": ["LlamaAttention"], "input_activations": tensor}});
    let cached: [(&str, &[f32]); 2] = [("k_scale", &[1.0]), ("v_scale", &[1.0])];
    refused(&Value::Null, &group, &cached, &["model.layers.0.self_attn.q_scale"]);
    let with_weights =
        json!({"group_0": {"targets": ["LlamaAttention"], "input_activations": tensor, "weights": tensor}});
    refused(&Value::Null, &with_weights, &cached, &["attention scheme with `weights`"]);
    let mut grouped = arguments(8, "int", "group", false);
    grouped["group_size"] = json!(32);
    refused(&grouped, &json!({}), &cached, &["config.json", "strategy `group`", "attn_head"]);
}

#[test]
fn what_oneshot_writes_of_a_cache_is_what_eval_applies() {
    let dir = tempdir().unwrap();
    let recipe = dir.path().join("recipe.yaml");
    let modifier = json!({"QuantizationModifier": {"kv_cache_scheme": arguments(4, "int", "tensor", false)}});
    std::fs::write(&recipe, json!({"quant_stage": {"quant_modifiers": modifier}}).to_string()).unwrap();
    let output = dir.path().join("out");
    let (model, calib) = (text(&fixture("tiny-llama")), text(&fixture("calib.jsonl")));
    let options = ["--num-samples", "2", "--seq-len", "64", "--quiet"];
    let what = ["oneshot", &model, "--out", &text(&output), "--recipe", &text(&recipe), "--data", &calib];
    run(&[&what[..], &options].concat()).expect(0);
    let with = nll(&output);
    with_json(&output.join("config.json"), |it| it["quantization_config"]["kv_cache_scheme"] = Value::Null);
    let without = nll(&output);
    assert!((without / DENSE_NLL - 1.0).abs() < TOLERANCE, "{without}");
    assert!(with > without && (with / without - 1.0) > 10.0 * TOLERANCE, "{with} {without}");
}
