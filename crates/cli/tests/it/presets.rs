//! `model-free-ptq` on sound checkpoints.

use std::fs;

use serde_json::Value;
use tempfile::tempdir;

use crate::{
    checkpoints::{Checkpoint, bf16_values, config_of, llama, read_tensors},
    command::{command, quantize, quantize_command, run, verify_sound},
};

#[test]
fn every_preset_that_needs_no_data_gives_a_sound_checkpoint() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    let presets = run(&["list", "schemes", "--format", "json"]).expect(0).json();
    let names: Vec<&str> = presets.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert!(names.len() >= 29, "{names:?}");
    for name in names {
        let output = dir.path().join(name);
        let ran = quantize(&source, &output, &format!("--scheme {name} --threads 2"));
        if matches!(name, "UNQUANTIZED" | "FP8" | "NVFP4") {
            ran.expect(65).says(&[name]);
            assert!(!output.exists(), "{name}");
            continue;
        }
        ran.expect(0);
        // Two bits keep little.
        let least_db = if name.starts_with("W2") { 3.0 } else { 7.0 };
        let verdict = verify_sound(&output, &source, least_db);
        assert_eq!(verdict["n_compressed"], 7, "{name}");
        let section = &config_of(&output)["quantization_config"];
        assert_eq!(section["quant_method"], "compressed-tensors");
        assert_eq!(section["ignore"], serde_json::json!(["model.embed_tokens", "lm_head"]));
        fs::remove_dir_all(output).unwrap();
    }
}

#[test]
fn fused_weights_in_two_shards_share_their_global_scale() {
    let dir = tempdir().unwrap();
    let mut model = llama();
    let all = model.shards.remove(0);
    // q and gate lie in the first shard, k, v and up in the second.
    let (second, first): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|it| ["k_proj", "v_proj", "up_proj", "norm"].iter().any(|part| it.name.contains(part)));
    let source = Checkpoint { shards: vec![first, second], ..model }.write(&dir.path().join("in"));
    let output = dir.path().join("out");
    quantize(&source, &output, "--scheme NVFP4A16").expect(0);
    verify_sound(&output, &source, 15.0);
    let (dense, made) = (read_tensors(&source), read_tensors(&output));
    for fused in [&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"][..], &["mlp.gate_proj", "mlp.up_proj"]]
    {
        let full = |module: &str, local: &str| format!("model.layers.0.{module}.{local}");
        let values = fused.iter().flat_map(|it| bf16_values(&dense[&full(it, "weight")].2));
        let largest = values.fold(0.0_f32, |max, it| max.max(it.abs()));
        for module in fused {
            let scale = &made[&full(module, "weight_global_scale")].2;
            let scale = f32::from_le_bytes(scale[..].try_into().unwrap());
            // The reference divides in the weight's type.
            let expected = f32::from_bits(((448.0 * 6.0 / largest).to_bits() + 0x8000) & 0xffff_0000);
            assert_eq!(scale, expected, "{module}");
        }
    }
    // Each tensor stays in the shard of its weight.
    let index: Value = serde_json::from_slice(&fs::read(output.join("model.safetensors.index.json")).unwrap()).unwrap();
    let map = &index["weight_map"];
    assert_eq!(map["model.layers.0.self_attn.q_proj.weight_packed"], "model-00001-of-00002.safetensors");
    assert_eq!(map["model.layers.0.self_attn.k_proj.weight_packed"], "model-00002-of-00002.safetensors");
    let total: usize = made.values().map(|it| it.2.len()).sum();
    assert_eq!(index["metadata"]["total_size"], total);
}

#[test]
fn shards_are_cut_at_the_size_asked_for() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    let output = dir.path().join("out");
    quantize(&source, &output, "--scheme FP8_DYNAMIC --max-shard-size 40KB").expect(0);
    verify_sound(&output, &source, 25.0);
    let sizes: Vec<u64> = fs::read_dir(&output)
        .unwrap()
        .map(|it| it.unwrap())
        .filter(|it| it.file_name().to_str().unwrap().ends_with(".safetensors"))
        .map(|it| it.metadata().unwrap().len())
        .collect();
    assert!(sizes.len() >= 4 && sizes.iter().all(|it| *it < 44_000), "{sizes:?}");
}

#[test]
fn results_go_to_stdout_and_everything_else_to_stderr() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    let options = "--scheme W4A16 --ignore nothing_like_this";
    let human = quantize(&source, &dir.path().join("a"), options).expect(0);
    assert!(human.out.contains("7 modules quantized, 2 left"), "{}", human.out);
    assert!(!human.out.contains("warning"), "{}", human.out);
    let human = human.says(&["warning: ignore `nothing_like_this` matches no module", "compressing"]);
    assert!(!human.err.contains("modules quantized"), "{}", human.err);

    let json = quantize(&source, &dir.path().join("b"), &format!("{options} --format json")).expect(0).json();
    assert_eq!(json["status"], "done");
    assert_eq!(json["quantized"].as_array().unwrap().len(), 7);
    let report = serde_json::from_slice::<Value>(&fs::read(dir.path().join("b/report.json")).unwrap()).unwrap();
    assert_eq!(report, json);

    let quiet = quantize(&source, &dir.path().join("c"), &format!("{options} --quiet")).expect(0);
    // What it did goes, what a person should know stays.
    assert_eq!(quiet.err, "warning: ignore `nothing_like_this` matches no module\n");
    assert!(quiet.out.contains("7 modules quantized"), "{}", quiet.out);
}

#[test]
fn no_output_has_colours_where_none_are_wanted() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    let mut job = quantize_command(&source, &dir.path().join("out"), "--scheme W4A16 --verbose");
    let ran = job.env("NO_COLOR", "1").env("RUST_LOG", "trace").output().unwrap();
    assert!(ran.status.success());
    assert!(![&ran.stdout, &ran.stderr].iter().any(|it| it.contains(&0x1b)));
    let help = command(["--help"]).env("NO_COLOR", "1").output().unwrap();
    assert!(!help.stdout.contains(&0x1b));
}

#[test]
fn a_second_equal_run_says_that_it_is_done() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    let output = dir.path().join("out");
    quantize(&source, &output, "--scheme W4A16").expect(0);
    let again = quantize(&source, &output, "--scheme W4A16 --format json").expect(0).json();
    assert_eq!(again["status"], "already_done");
}

#[test]
fn the_embedded_model_goes_there_and_back() {
    let dir = tempdir().unwrap();
    let source = testkit::fixture("tiny-llama");
    let output = dir.path().join("out");
    quantize(&source, &output, "--scheme W4A16 --observer memoryless_mse").expect(0);
    let verdict = verify_sound(&output, &source, 15.0);
    assert_eq!(verdict["n_compressed"], 28);
    for name in ["tokenizer.json", "chat_template.jinja", "generation_config.json"] {
        assert_eq!(fs::read(source.join(name)).unwrap(), fs::read(output.join(name)).unwrap(), "{name}");
    }
}

#[test]
fn include_and_no_default_ignore_widen_the_choice() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    for (name, options, n) in [("a", "--include lm_head", 8), ("b", "--no-default-ignore", 9)] {
        let output = dir.path().join(name);
        quantize(&source, &output, &format!("--scheme W8A16 {options}")).expect(0);
        assert_eq!(verify_sound(&output, &source, 30.0)["n_compressed"], n);
    }
}
