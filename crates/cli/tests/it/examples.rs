//! The scripts in `examples/` run as they stand and leave what their pages promise.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::tempdir;

use crate::{
    checkpoints::{config_of, read_tensors},
    command::{Ran, quantize, verify, verify_sound},
};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples")
}

/// Runs `examples/<name>/run.sh MODEL OUT` on the embedded model.
fn run(name: &str, output: &Path) -> Ran {
    let mut script = Command::new("bash");
    script.arg(examples().join(name).join("run.sh")).arg(testkit::fixture("tiny-llama")).arg(output);
    script.env("LLMCOMPRESSOR", env!("CARGO_BIN_EXE_llmcompressor")).env("HF_HUB_OFFLINE", "1").env_remove("RUST_LOG");
    script.env("SAMPLES", "16");
    Ran::from(script.output().unwrap()).expect(0)
}

/// Every folder of `examples/` has a test here.
#[test]
fn every_example_is_run() {
    let mut found: Vec<String> = fs::read_dir(examples())
        .unwrap()
        .map(|it| it.unwrap())
        .filter(|it| it.file_type().unwrap().is_dir())
        .map(|it| it.file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            "calibrate-with-gptq",
            "convert-and-back",
            "quantize-without-data",
            "several-config-groups",
            "verify-a-checkpoint"
        ],
        "an example without a test, or a test without an example"
    );
    for name in found {
        let page = fs::read_to_string(examples().join(&name).join("README.md")).unwrap();
        assert!(page.contains("./run.sh MODEL OUT"), "{name}");
    }
}

#[test]
fn calibrate_with_gptq_stays_nearer_to_the_source_than_rounding() {
    let dir = tempdir().unwrap();
    let output = dir.path().join("out");
    let ran = run("calibrate-with-gptq", &output);
    assert!(ran.out.contains("sound"), "{}", ran.out);
    let perplexities: Vec<f64> =
        ran.out.lines().filter_map(|it| it.split_once("perplexity ")?.1.split(' ').next()?.parse().ok()).collect();
    let [source, calibrated] = perplexities[..] else { panic!("{}", ran.out) };
    let rounded = dir.path().join("rounded");
    quantize(&testkit::fixture("tiny-llama"), &rounded, "--scheme W4A16").expect(0);
    let (rounded, data) = (rounded.to_str().unwrap(), testkit::fixture("eval.jsonl"));
    let judged = ["eval", rounded, "--data", data.to_str().unwrap(), "--seq-len", "512", "--max-samples", "16"];
    let rounded = crate::command::run(&[&judged[..], &["--format", "json"]].concat()).expect(0).json();
    let rounded = rounded["perplexity"].as_f64().unwrap();
    assert!(source < calibrated && calibrated - source < 0.7 * (rounded - source), "{source} {calibrated} {rounded}");
}

#[test]
fn quantize_without_data_halves_the_model_near_31_db() {
    let dir = tempdir().unwrap();
    let output = dir.path().join("out");
    let ran = run("quantize-without-data", &output);
    assert!(ran.out.contains("sound"), "{}", ran.out);
    let source = testkit::fixture("tiny-llama");
    let verdict = verify_sound(&output, &source, 29.0);
    assert_eq!(verdict["n_compressed"], 28);
    for module in verdict["modules"].as_array().unwrap() {
        assert!(module["sqnr_db"].as_f64().unwrap() < 33.0, "{module}");
    }
    let weights = |dir: &Path| -> usize {
        let tensors = read_tensors(dir).into_iter();
        tensors.filter(|it| it.0.contains("_proj.")).map(|it| it.1.2.len()).sum()
    };
    let (before, after) = (weights(&source), weights(&output));
    assert!(after * 2 > before && after * 2 < before * 11 / 10, "{before} to {after}");
}

#[test]
fn several_config_groups_give_a_mixed_checkpoint() {
    let dir = tempdir().unwrap();
    let output = dir.path().join("out");
    let ran = run("several-config-groups", &output);
    assert!(ran.out.contains("attention") && ran.out.contains("mlp"), "{}", ran.out);
    verify_sound(&output, &testkit::fixture("tiny-llama"), 15.0);
    let section = &config_of(&output)["quantization_config"];
    assert_eq!(section["format"], "mixed-precision");
    assert_eq!(section["config_groups"]["attention"]["format"], "float-quantized");
    assert_eq!(section["config_groups"]["mlp"]["format"], "pack-quantized");
}

#[test]
fn convert_and_back_ends_in_a_dense_model() {
    let dir = tempdir().unwrap();
    let output = dir.path().join("out");
    run("convert-and-back", &output);
    let method = |it: &str| config_of(&output.join(it))["quantization_config"]["quant_method"].clone();
    assert_eq!([method("w4a16"), method("awq"), method("back")], ["compressed-tensors", "awq", "compressed-tensors"]);
    assert!(config_of(&output.join("dense")).get("quantization_config").is_none());
    verify_sound(&output.join("dense"), &testkit::fixture("tiny-llama"), 15.0);
}

#[test]
fn verify_a_checkpoint_names_the_damaged_scale() {
    let dir = tempdir().unwrap();
    let output = dir.path().join("out");
    let ran = run("verify-a-checkpoint", &output);
    let damaged = ran.out.lines().find_map(|it| it.strip_prefix("damaged ")).unwrap().trim_matches('"');
    let verdict = verify(&output, &testkit::fixture("tiny-llama"));
    let fault = &verdict["faults"][0];
    assert_eq!((fault["kind"].as_str(), fault["place"].as_str()), (Some("scale"), Some(damaged)));
}
