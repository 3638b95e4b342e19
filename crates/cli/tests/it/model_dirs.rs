//! What lies in a model directory beside the matrices: where it comes from, what comes along, and what is left.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
};

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::{
    checkpoints::{Checkpoint, Tensor, assert_same_contents, config_of, contents, llama, read_tensors},
    command::{command, quantize, quantize_command, verify_sound},
};

/// Multi-token prediction, an unknown buffer, a convolution, a counter, an odd type: none of it a linear's matrix.
fn model_with_extras() -> Checkpoint {
    let mut model = llama();
    model.shards[0].extend([
        Tensor::bf16("mtp.layers.0.eh_proj.weight", &[128, 256]),
        Tensor::bf16("mtp.norm.weight", &[128]),
        Tensor::bf16("model.layers.0.self_attn.conv1d.weight", &[128, 1, 4]),
        Tensor::new("model.position_ids", "I64", &[3], vec![7; 24]),
        Tensor::new("model.mask", "BOOL", &[5], vec![1, 0, 1, 1, 0]),
        Tensor::f32("model.layers.0.mlp.router_bias", &[2], &[f32::NAN, f32::INFINITY]),
        Tensor::new("model.nothing", "F32", &[0], Vec::new()),
    ]);
    model
}

#[test]
fn what_is_no_linear_is_copied_bit_for_bit_and_matrices_are_listed() {
    let dir = tempdir().unwrap();
    let mut model = model_with_extras();
    model.shards[0].retain(|it| it.name != "lm_head.weight");
    model.config["tie_word_embeddings"] = json!(true);
    let source = model.write(&dir.path().join("in"));
    let output = dir.path().join("out");
    let report = quantize(&source, &output, "--scheme W4A16 --format json").expect(0).json();
    verify_sound(&output, &source, 15.0);
    let (before, after) = (read_tensors(&source), read_tensors(&output));
    let copied: Vec<_> = before.iter().filter(|it| !it.0.contains("_proj.weight") || it.0.contains("mtp")).collect();
    assert_eq!(report["n_copied_tensors"], copied.len());
    assert!(copied.len() >= 11);
    for (name, tensor) in copied {
        assert_eq!(after.get(name), Some(tensor), "{name}");
    }
    let config = config_of(&output);
    // The head that shares the embedding's weight has none of its own, and is still no quantized linear.
    let entries = json!(["model.embed_tokens", "mtp.layers.0.eh_proj", "lm_head", "re:^mtp.*"]);
    assert_eq!(config["quantization_config"]["ignore"], entries);
    assert_eq!(config["tie_word_embeddings"], true);
    assert!(!after.contains_key("lm_head.weight"));
    let reasons = report["left"].to_string();
    assert!(reasons.contains("multi-token-prediction head, ignored by default"), "{reasons}");
}

#[test]
fn the_config_keeps_its_order_and_its_unknown_keys() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    let text = r#"{"zeta": 1.50, "architectures": ["X"], "model_type": "x", "nested": {"b": [1, 2], "a": null}, "alpha": "ü"}"#;
    fs::write(source.join("config.json"), text).unwrap();
    let output = dir.path().join("out");
    quantize(&source, &output, "--scheme FP8_DYNAMIC").expect(0);
    let written = fs::read_to_string(output.join("config.json")).unwrap();
    let mut config: serde_json::Map<String, Value> = serde_json::from_str(&written).unwrap();
    assert_eq!(config.remove("quantization_config").unwrap()["quant_method"], "compressed-tensors");
    assert_eq!(Value::Object(config), serde_json::from_str::<Value>(text).unwrap());
    let places = ["zeta", "architectures", "model_type", "nested", "alpha", "quantization_config"];
    let places = places.map(|it| written.find(&format!("\"{it}\"")).unwrap());
    assert!(places.is_sorted(), "{written}");
}

#[test]
fn companions_come_along_and_other_weights_stay_behind() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    let copied = [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
        "preprocessor_config.json",
        "vocab.txt",
        "README.md",
    ];
    for name in copied {
        fs::write(source.join(name), format!("content of {name}\r\n\u{feff}")).unwrap();
    }
    fs::write(source.join("modeling_x.py"), "raise SystemExit('it was run')").unwrap();
    for name in ["pytorch_model.bin", "model.gguf", "optimizer.pt"] {
        fs::write(source.join(name), "weights of another kind").unwrap();
    }
    fs::create_dir(source.join(".cache")).unwrap();
    fs::write(source.join(".cache/x"), "").unwrap();
    let output = dir.path().join("out");
    let report = quantize(&source, &output, "--scheme W8A8 --format json").expect(0).json();
    verify_sound(&output, &source, 30.0);
    for name in copied.iter().chain(&["modeling_x.py"]) {
        assert_eq!(fs::read(source.join(name)).unwrap(), fs::read(output.join(name)).unwrap(), "{name}");
    }
    for name in ["pytorch_model.bin", "model.gguf", "optimizer.pt", ".cache", ".llmc"] {
        assert!(!output.join(name).exists(), "{name}");
    }
    let left = report["left_files"].to_string();
    assert!(left.contains("pytorch_model.bin") && left.contains("model.gguf"), "{left}");
    assert!(report["companions"].to_string().contains("modeling_x.py"));
    let without = dir.path().join("without");
    quantize(&source, &without, "--scheme W8A8 --no-remote-code").expect(0);
    assert!(without.join("vocab.txt").exists() && !without.join("modeling_x.py").exists());
}

#[test]
fn a_cache_scheme_is_written_as_the_config_file_has_it() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    let file = dir.path().join("scheme.json");
    let config = json!({
        "quant_method": "compressed-tensors",
        "config_groups": {"g": {"targets": ["Linear"], "weights":
            {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": true}}},
        "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": true, "dynamic": false},
        "ignore": ["re:.*o_proj"],
    });
    // A whole config.json that holds such a section does as well.
    fs::write(&file, json!({"model_type": "llama", "quantization_config": config}).to_string()).unwrap();
    let output = dir.path().join("out");
    quantize(&source, &output, &format!("--config {}", file.display())).expect(0);
    assert_eq!(verify_sound(&output, &source, 30.0)["n_compressed"], 6);
    let section = &config_of(&output)["quantization_config"];
    let cache = &section["kv_cache_scheme"];
    assert_eq!(
        (&cache["num_bits"], &cache["type"], &cache["strategy"]),
        (&json!(8), &json!("float"), &json!("tensor"))
    );
    assert_eq!(section["ignore"][0], "re:.*o_proj");
    assert!(section["ignore"].as_array().unwrap().contains(&json!("model.layers.0.self_attn.o_proj")));
}

#[test]
fn a_model_of_the_local_hub_cache_is_read_through_its_links() {
    let dir = tempdir().unwrap();
    let plain = llama().write(&dir.path().join("plain"));
    let model = dir.path().join("home/hub/models--some-org--tiny");
    let snapshot = model.join("snapshots/0123456789abcdef");
    for it in ["blobs", "refs", "snapshots/0123456789abcdef"] {
        fs::create_dir_all(model.join(it)).unwrap();
    }
    fs::write(model.join("refs/main"), "0123456789abcdef").unwrap();
    for (idx, name) in contents(&plain).into_keys().enumerate() {
        fs::copy(plain.join(&name), model.join(format!("blobs/{idx}"))).unwrap();
        symlink(format!("../../blobs/{idx}"), snapshot.join(&name)).unwrap();
    }
    let from_cache = dir.path().join("from-cache");
    let mut job = quantize_command(Path::new("some-org/tiny"), &from_cache, "--scheme NVFP4A16");
    let ran = job.env("HF_HOME", dir.path().join("home")).env_remove("HF_HUB_CACHE").output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    let from_dir = dir.path().join("from-dir");
    quantize(&plain, &from_dir, "--scheme NVFP4A16").expect(0);
    assert_same_contents(&from_cache, &from_dir);
    assert!(!fs::symlink_metadata(from_cache.join("tokenizer.json")).unwrap().is_symlink());
    // What is not there cannot be fetched: the tests' environment is offline.
    let mut job = quantize_command(Path::new("some-org/absent"), &dir.path().join("no"), "--scheme NVFP4A16");
    let ran = job.env("HF_HOME", dir.path().join("home")).output().unwrap();
    assert!(matches!(ran.status.code(), Some(66 | 69)), "{ran:?}");
    assert!(String::from_utf8_lossy(&ran.stderr).contains("some-org/absent"), "{ran:?}");
}

#[test]
fn an_empty_output_directory_is_filled_and_not_replaced() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    let output = dir.path().join("out");
    fs::create_dir(&output).unwrap();
    // As a mount point must be: the directory itself stays, and nothing is made beside it.
    let inode = fs::metadata(&output).unwrap().ino();
    let beside = || fs::read_dir(dir.path()).unwrap().count();
    let n_beside = beside();
    quantize(&source, &output, "--scheme W4A16").expect(0);
    verify_sound(&output, &source, 15.0);
    quantize(&source, &output, "--scheme W8A16 --overwrite").expect(0);
    verify_sound(&output, &source, 30.0);
    assert_eq!((fs::metadata(&output).unwrap().ino(), beside()), (inode, n_beside));
}

#[test]
fn the_environment_does_not_change_what_is_written() {
    let dir = tempdir().unwrap();
    let source = model_with_extras().write(&dir.path().join("in"));
    let expected = dir.path().join("expected");
    quantize(&source, &expected, "--scheme W4A16").expect(0);
    let environments: BTreeMap<&str, &[(&str, &str)]> = BTreeMap::from([
        ("locale", &[("LC_ALL", "tr_TR.UTF-8"), ("LANG", "C"), ("TZ", "Asia/Kathmandu")][..]),
        ("threads", &[("RAYON_NUM_THREADS", "7"), ("OMP_NUM_THREADS", "3")][..]),
        ("places", &[("TMPDIR", "/nowhere"), ("HOME", "/nowhere"), ("XDG_CACHE_HOME", "")][..]),
        ("logs", &[("RUST_LOG", "trace"), ("RUST_BACKTRACE", "1"), ("COLUMNS", "1")][..]),
    ]);
    for (name, environment) in environments {
        let output = dir.path().join(name);
        let mut job = quantize_command(&source, &output, "--scheme W4A16");
        let ran = job.envs(environment.iter().copied()).output().unwrap();
        assert!(ran.status.success(), "{name}: {ran:?}");
        assert_same_contents(&expected, &output);
    }
    // A working directory elsewhere, and paths that are relative to it.
    let mut job = command(["model-free-ptq", "in", "relative", "--scheme", "W4A16"]);
    assert!(job.current_dir(dir.path()).output().unwrap().status.success());
    assert_same_contents(&expected, &dir.path().join("relative"));
}
