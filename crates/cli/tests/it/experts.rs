//! Experts stored in one tensor become one linear each, under the names that engines expect.

use std::{collections::BTreeSet, fs, path::PathBuf};

use serde_json::{Value, json};
use tempfile::tempdir;
use testkit::{Goldens, goldens_dir};

use crate::{
    checkpoints::{Checkpoint, Tensor, config_of, random, read_tensors},
    command::{quantize, verify_sound},
};

const E: usize = 3;
const I: usize = 48;
const H: usize = 32;

fn golden(model: &str, dir: &std::path::Path) -> PathBuf {
    let copy = dir.join(model);
    fs::create_dir_all(&copy).unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(goldens_dir("models").join(model).join(file), copy.join(file)).unwrap();
    }
    copy
}

#[test]
fn written_names_are_those_that_the_reference_writes() {
    let dir = tempdir().unwrap();
    for model in ["qwen3_moe", "gpt_oss", "granitemoe", "mixtral"] {
        let source = golden(model, dir.path());
        let output = dir.path().join(format!("{model}-out"));
        // The reference's run ignored the head alone.
        quantize(&source, &output, "--scheme FP8_DYNAMIC").expect(0);
        verify_sound(&output, &source, 28.0);
        let written = Goldens::open(&format!("models/{model}")).json("written_fp8_dynamic.json");
        let expected: BTreeSet<&str> = written["tensors"].as_object().unwrap().keys().map(String::as_str).collect();
        let made = read_tensors(&output);
        let names: BTreeSet<&str> = made.keys().map(String::as_str).collect();
        if model == "mixtral" {
            // On disk its experts are called w1, w2, w3, and these names stay.
            assert!(names.contains("model.layers.0.block_sparse_moe.experts.0.w1.weight_scale"), "{names:?}");
            continue;
        }
        assert_eq!(names, expected, "{model}");
        for (name, it) in written["tensors"].as_object().unwrap() {
            assert_eq!(json!(made[name].1), it[1], "{model}: {name}");
        }
    }
}

/// One layer with fused experts whose rows and columns say where they come from.
fn fused(model_type: &str, gate_up: &[usize], down: &[usize]) -> Checkpoint {
    let config = json!({"model_type": model_type, "architectures": ["X"], "num_local_experts": E});
    let tensors = vec![
        Tensor::bf16("model.layers.0.mlp.gate.weight", &[E, H]),
        Tensor::bf16("model.layers.0.mlp.experts.gate_up_proj", gate_up),
        Tensor::bf16("model.layers.0.mlp.experts.down_proj", down),
    ];
    Checkpoint::single(config, tensors)
}

/// Element (e, row, col) of a projection, by the layout of its model type.
fn element(model_type: &str, tensor: &[u8], proj: &str, (e, row, col): (usize, usize, usize)) -> [u8; 2] {
    let at = match (model_type, proj) {
        ("qwen3_moe", "gate_proj") => (e * 2 * I + row) * H + col,
        ("qwen3_moe", "up_proj") => (e * 2 * I + I + row) * H + col,
        ("qwen3_moe", _) => (e * H + row) * I + col,
        ("llama4_text", "gate_proj") => (e * H + col) * 2 * I + row,
        ("llama4_text", "up_proj") => (e * H + col) * 2 * I + I + row,
        ("gpt_oss", "gate_proj") => (e * H + col) * 2 * I + 2 * row,
        ("gpt_oss", "up_proj") => (e * H + col) * 2 * I + 2 * row + 1,
        (_, _) => (e * I + col) * H + row,
    };
    [tensor[2 * at], tensor[2 * at + 1]]
}

#[test]
fn an_expert_that_is_ignored_is_written_densely_and_none_is_lost() {
    let dir = tempdir().unwrap();
    for (model_type, gate_up, down) in [
        ("qwen3_moe", [E, 2 * I, H], [E, H, I]),
        ("llama4_text", [E, H, 2 * I], [E, I, H]),
        ("gpt_oss", [E, H, 2 * I], [E, I, H]),
    ] {
        let source = fused(model_type, &gate_up, &down).write(&dir.path().join(model_type));
        let output = dir.path().join(format!("{model_type}-out"));
        let options = r"--scheme FP8_DYNAMIC --ignore re:.*experts\.1\..*";
        quantize(&source, &output, options).expect(0);
        let verdict = verify_sound(&output, &source, 28.0);
        assert_eq!(verdict["n_compressed"], 3 * (E - 1), "{model_type}");
        let (dense, made) = (read_tensors(&source), read_tensors(&output));
        assert!(made.keys().all(|it| !it.contains("gate_up_proj")));
        for (proj, rows, cols) in [("gate_proj", I, H), ("up_proj", I, H), ("down_proj", H, I)] {
            let fused = if proj == "down_proj" { proj } else { "gate_up_proj" };
            let fused = &dense[&format!("model.layers.0.mlp.experts.{fused}")].2;
            let (dtype, shape, data) = &made[&format!("model.layers.0.mlp.experts.1.{proj}.weight")];
            assert_eq!((dtype.as_str(), &shape[..]), ("BF16", &[rows, cols][..]), "{model_type} {proj}");
            for (idx, value) in data.chunks_exact(2).enumerate() {
                let at = (1, idx / cols, idx % cols);
                assert_eq!(value, element(model_type, fused, proj, at), "{model_type} {proj} {at:?}");
            }
            for expert in [0, 2] {
                let (dtype, shape, _) = &made[&format!("model.layers.0.mlp.experts.{expert}.{proj}.weight")];
                assert_eq!((dtype.as_str(), &shape[..]), ("F8_E4M3", &[rows, cols][..]));
            }
        }
        let ignore = &config_of(&output)["quantization_config"]["ignore"];
        let entries = ignore.as_array().unwrap();
        assert!(entries.contains(&json!("model.layers.0.mlp.experts.1.up_proj")), "{ignore}");
        assert!(entries.contains(&json!("model.layers.0.mlp.gate")), "{ignore}");
    }
}

#[test]
fn a_slice_is_quantized_as_a_matrix_of_its_own_is() {
    let dir = tempdir().unwrap();
    let source = fused("qwen3_moe", &[E, 2 * I, H], &[E, H, I]);
    let values = random("model.layers.0.mlp.experts.gate_up_proj", E * 2 * I * H);
    let mut apart = source.clone();
    apart.shards[0].truncate(1);
    for e in 0..E {
        for (idx, proj) in ["gate_proj", "up_proj"].into_iter().enumerate() {
            let first = (2 * e + idx) * I * H;
            let name = format!("model.layers.0.mlp.experts.{e}.{proj}.weight");
            apart.shards[0].push(Tensor::bf16_of(&name, &[I, H], &values[first..first + I * H]));
        }
    }
    for scheme in ["NVFP4A16", "W4A16 --group-size 16", "FP8_BLOCK --allow-unservable"] {
        let name = scheme.split(' ').next().unwrap();
        let (a, b) = (dir.path().join(format!("{name}-a")), dir.path().join(format!("{name}-b")));
        quantize(&source.write(&dir.path().join("fused")), &a, &format!("--scheme {scheme}")).expect(0);
        quantize(&apart.write(&dir.path().join("apart")), &b, &format!("--scheme {scheme}")).expect(0);
        let (a, b) = (read_tensors(&a), read_tensors(&b));
        let shared: Vec<&String> = b.keys().filter(|it| it.contains("experts")).collect();
        assert!(shared.len() >= 2 * 2 * E, "{shared:?}");
        for it in shared {
            assert_eq!(a[it], b[it], "{scheme}: {it}");
        }
    }
}

#[test]
fn biases_of_interleaved_experts_follow_their_weights() {
    let dir = tempdir().unwrap();
    let source = golden("gpt_oss", dir.path());
    let output = dir.path().join("out");
    quantize(&source, &output, "--scheme W8A8").expect(0);
    verify_sound(&output, &source, 30.0);
    let (dense, made) = (read_tensors(&source), read_tensors(&output));
    let fused = &dense["model.layers.0.mlp.experts.gate_up_proj_bias"];
    let width = fused.1[1] * 4;
    for expert in 0..fused.1[0] {
        let row: Vec<&[u8]> = fused.2[expert * width..(expert + 1) * width].chunks_exact(4).collect();
        for (first, proj) in ["gate_proj", "up_proj"].into_iter().enumerate() {
            let expected: Vec<u8> = row.iter().skip(first).step_by(2).flat_map(|it| it.iter().copied()).collect();
            assert_eq!(made[&format!("model.layers.0.mlp.experts.{expert}.{proj}.bias")].2, expected);
        }
    }
    assert!(!made.contains_key("model.layers.0.mlp.experts.gate_up_proj_bias"));
    // Left alone, the weights and the biases stay as they were.
    let output = dir.path().join("left");
    quantize(&source, &output, r"--scheme W8A8 --ignore re:.*experts.*").expect(0);
    assert_eq!(read_tensors(&output)["model.layers.0.mlp.experts.gate_up_proj_bias"], *fused);
    let verdict = verify_sound(&output, &source, 30.0);
    assert_eq!(verdict["faults"], Value::Array(Vec::new()));
}
