//! `model-free-ptq --observer`: the scales of a search, whatever the memory and threads.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::{
    checkpoints::{Checkpoint, Tensor, assert_same_contents, config_of, llama, llama_sized, read_tensors},
    command::{quantize, run, verify_sound},
};

/// A matrix of several slabs of the smallest size, ragged against blocks of 128.
fn tall() -> Checkpoint {
    let mut model = llama_sized(1, 256, 384);
    model.shards[0].push(Tensor::bf16("model.layers.0.extra_proj.weight", &[1000, 256]));
    model
}

fn mean_db(output: &Path, source: &Path) -> f64 {
    let verdict = verify_sound(output, source, 3.0);
    let values: Vec<f64> =
        verdict["modules"].as_array().unwrap().iter().filter_map(|it| it["sqnr_db"].as_f64()).collect();
    values.iter().sum::<f64>() / values.len() as f64
}

#[test]
fn min_max_observers_write_the_weights_that_no_observer_writes() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    for scheme in ["W4A16", "W4A16_ASYM", "FP8_BLOCK", "FP8_DYNAMIC", "NVFP4A16", "MXFP4A16", "W8A8"] {
        let plain = dir.path().join(format!("{scheme}-plain"));
        quantize(&source, &plain, &format!("--scheme {scheme}")).expect(0);
        for name in ["memoryless_minmax", "static_minmax", "MinMax"] {
            let named = dir.path().join(format!("{scheme}-{name}"));
            quantize(&source, &named, &format!("--scheme {scheme} --observer {name}")).expect(0);
            assert!(read_tensors(&plain) == read_tensors(&named), "{scheme} {name}");
            let observer = |it: &Path| {
                let groups = &config_of(it)["quantization_config"]["config_groups"];
                groups[scheme]["weights"]["observer"].clone()
            };
            assert_eq!((observer(&plain), observer(&named)), (Value::Null, json!(name)));
        }
    }
}

#[test]
fn a_search_gives_the_same_bytes_for_all_threads_and_memory() {
    let dir = tempdir().unwrap();
    let source = tall().write(&dir.path().join("in"));
    for (scheme, observer) in [
        ("W4A16", "mse"),
        ("W4A16_ASYM", "memoryless_mse"),
        ("FP8_BLOCK", "memoryless_mse"),
        ("NVFP4A16", "memoryless_mse"),
        ("NVFP4A16", "nvfp4_expanded_mse"),
        ("W8A8", "mse"),
    ] {
        let name = |it: &str| dir.path().join(format!("{scheme}-{observer}-{it}"));
        let options = format!("--scheme {scheme} --observer {observer}");
        quantize(&source, &name("0"), &format!("{options} --threads 1")).expect(0);
        verify_sound(&name("0"), &source, 14.0);
        // The smallest ceilings leave no room to keep what a first pass finds.
        let others = ["--threads 2", "--threads 1 --max-memory 1MiB", "--threads 5 --max-memory 2MiB"];
        for (idx, other) in others.into_iter().enumerate() {
            let output = name(&format!("other-{idx}"));
            quantize(&source, &output, &format!("{options} {other}")).expect(0);
            assert_same_contents(&name("0"), &output);
        }
    }
}

#[test]
fn a_search_is_closer_to_the_source_than_the_range() {
    let dir = tempdir().unwrap();
    let source = testkit::fixture("tiny-llama");
    for scheme in ["W4A16", "NVFP4A16"] {
        let (plain, searched) = (dir.path().join(format!("{scheme}-0")), dir.path().join(format!("{scheme}-1")));
        quantize(&source, &plain, &format!("--scheme {scheme}")).expect(0);
        quantize(&source, &searched, &format!("--scheme {scheme} --observer mse")).expect(0);
        assert!(mean_db(&searched, &source) > mean_db(&plain, &source) + 0.4, "{scheme}");
    }
}

#[test]
fn an_observer_in_a_config_counts_with_its_kwargs() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    let weights = |observer: Value, kwargs: Value| {
        json!({"config_groups": {"all": {"targets": ["Linear"], "weights": {
            "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": true,
            "observer": observer, "observer_kwargs": kwargs,
        }}}, "ignore": ["lm_head"]})
    };
    let run = |name: &str, config: &Value, options: &str| {
        let (file, output) = (dir.path().join(format!("{name}.json")), dir.path().join(name));
        std::fs::write(&file, config.to_string()).unwrap();
        let ran = quantize(&source, &output, &format!("--config {} {options}", file.display()));
        (ran, output)
    };
    let tensors = |name: &str, config: &Value, options: &str| -> BTreeMap<_, _> {
        let (ran, output) = run(name, config, options);
        ran.expect(0);
        read_tensors(&output)
    };
    let plain = tensors("plain", &weights(Value::Null, json!({})), "");
    let searched = tensors("searched", &weights(json!("memoryless_mse"), json!({})), "");
    let grid = tensors("grid", &weights(json!("memoryless_mse"), json!({"maxshrink": 0.05})), "");
    assert!(plain != searched && searched != grid && plain != grid);
    // The option replaces name and kwargs.
    let replaced = tensors("replaced", &weights(json!("minmax"), json!({"averaging_constant": 0.5})), "--observer mse");
    assert!(replaced == searched);
    // One candidate, the whole range, is what min-max finds.
    let whole = tensors("whole", &weights(json!("memoryless_mse"), json!({"maxshrink": 0.01, "patience": 9})), "");
    assert!(whole == plain);

    let (ran, _) = run("kwargs", &weights(json!("memoryless_mse"), json!({"gird": 10})), "");
    ran.expect(65).says(&["config group `all`", "gird", "grid"]);
    let (ran, _) = run("name", &weights(json!("mes"), json!({})), "");
    ran.expect(65).says(&["config group `all`", "unknown observer `mes`", "memoryless_mse"]);
    let (ran, output) = run("data", &weights(json!("imatrix_mse"), json!({})), "");
    ran.expect(65).says(&["imatrix_mse", "calibration data"]);
    assert!(!output.exists());
}

#[test]
fn unknown_observers_and_those_that_need_data_are_refused() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    let output = dir.path().join("out");
    let fails = |name: &str, texts: &[&str]| {
        quantize(&source, &output, &format!("--scheme W4A16 --observer {name}")).expect(2).says(texts);
        assert!(!output.exists());
    };
    fails("memoryless_mes", &["`--observer` is `memoryless_mes`", "memoryless_mse"]);
    fails("zzz", &["one of memoryless_minmax, static_minmax"]);
    fails("imatrix_mse", &["needs no calibration data", "memoryless_mse"]);
    fails("nvfp4_expanded_imatrix", &["needs no calibration data"]);
}

#[test]
fn names_that_stand_for_others_are_said() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    quantize(&source, &a, "--scheme NVFP4A16 --observer fouroversix").expect(0).says(&["nvfp4_expanded_mse"]);
    quantize(&source, &b, "--scheme NVFP4A16 --observer nvfp4_expanded_mse").expect(0);
    assert!(read_tensors(&a) == read_tensors(&b));
}

#[test]
fn fused_weights_share_the_scale_of_their_searched_ranges() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    let output = dir.path().join("out");
    quantize(&source, &output, "--scheme NVFP4A16 --observer nvfp4_expanded_mse").expect(0);
    let made = read_tensors(&output);
    let global = |it: &str| &made[&format!("model.layers.0.{it}.weight_global_scale")].2;
    assert_eq!(global("self_attn.q_proj"), global("self_attn.v_proj"));
    assert_eq!(global("mlp.gate_proj"), global("mlp.up_proj"));
    verify_sound(&output, &source, 15.0);
}

#[test]
fn observers_and_modifiers_are_listed_and_explained() {
    for topic in ["observers", "modifiers"] {
        let listed = run(&["list", topic, "--format", "json"]).expect(0).json();
        let listed = listed.as_array().unwrap().clone();
        assert!(listed.len() >= 5, "{topic}");
        for entry in listed {
            let name = entry["name"].as_str().unwrap();
            let page = run(&["explain", name]).expect(0).out;
            assert!(page.starts_with(name) && page.contains(entry["summary"].as_str().unwrap()), "{page}");
        }
    }
    let page = run(&["explain", "memoryless_mse", "--format", "json"]).expect(0).json();
    assert_eq!(page["definition"]["kwargs"]["grid"], 100.0);
    let page = run(&["explain", "GPTQModifier"]).expect(0).out;
    assert!(page.contains("dampening_frac") && page.contains("block_size"), "{page}");
    run(&["explain", "memoryless_ms"]).expect(2).says(&["memoryless_mse"]);
}
