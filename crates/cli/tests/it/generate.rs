//! Going on from a prompt: kept keys and values against none, choices, quantized caches, what is refused.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::tempdir;
use testkit::{fixture, goldens_dir};

use crate::{
    checkpoints::change_tensors,
    command::{quantize, run},
};

const PROMPT: &str = "The old man and the";

pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[track_caller]
fn generated(model: &Path, options: &[&str]) -> Value {
    run(&[&["generate", &text(model), "--format", "json"], options].concat()).expect(0).json()
}

/// The embedded model in `dir`, its files changed by `change`.
pub(crate) fn changed(dir: &Path, change: impl FnOnce(&Path)) -> PathBuf {
    let model = dir.join("model");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(fixture("tiny-llama")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    change(&model);
    model
}

pub(crate) fn with_json(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

#[test]
fn kept_keys_and_values_change_no_token_of_dense_and_compressed_models() {
    let dir = tempdir().unwrap();
    let dense = fixture("tiny-llama");
    let mut models = vec![dense.clone()];
    for scheme in ["W4A16", "FP8_DYNAMIC", "W8A8"] {
        let output = dir.path().join(scheme);
        quantize(&dense, &output, &format!("--scheme {scheme}")).expect(0);
        models.push(output);
    }
    for model in &models {
        for dtype in ["f32", "bf16"] {
            let options = ["--prompt", PROMPT, "--max-new-tokens", "24", "--dtype", dtype];
            let kept = generated(model, &options);
            let again = generated(model, &[&options[..], &["--no-cache", "--threads", "1"]].concat());
            assert_eq!((&kept["token_ids"], &kept["text"]), (&again["token_ids"], &again["text"]), "{model:?}");
            assert_eq!((&kept["cached"], &again["cached"]), (&json!(true), &json!(false)));
            assert_eq!(kept["finish"], "length");
            assert_eq!(kept["token_ids"].as_array().unwrap().len(), 24);
        }
    }
}

#[test]
fn integer_products_choose_the_tokens_that_products_of_numbers_choose() {
    let dir = tempdir().unwrap();
    let (dense, output) = (fixture("tiny-llama"), dir.path().join("W8A8"));
    quantize(&dense, &output, "--scheme W8A8").expect(0);
    let options = ["--prompt", PROMPT, "--max-new-tokens", "24", "--dtype", "f32", "--product"];
    let numbers = generated(&output, &[&options[..], &["numbers"]].concat());
    for further in [&[][..], &["--no-cache", "--threads", "1"]] {
        let codes = generated(&output, &[&options[..], &["int8"], further].concat());
        assert_eq!(numbers["token_ids"], codes["token_ids"], "{further:?}");
    }
    run(&[&["generate", &text(&dense)], &options[..], &["int8"]].concat()).expect(2).says(&["--product", "W8A8"]);
}

#[test]
fn every_architecture_goes_on_from_token_ids_and_says_where_nothing_is_kept() {
    let dir = tempdir().unwrap();
    let given = dir.path().join("ids.json");
    std::fs::write(&given, "[5, 9, 17, 3, 40, 22]").unwrap();
    let options = ["--token-ids", &text(&given), "--max-new-tokens", "5"];
    for entry in std::fs::read_dir(goldens_dir("models")).unwrap() {
        let model = entry.unwrap().path();
        let ran = run(&[&["generate", &text(&model), "--format", "json"], &options[..]].concat()).expect(0);
        let (kept, again) = (ran.json(), generated(&model, &[&options[..], &["--no-cache"]].concat()));
        assert_eq!(kept["token_ids"], again["token_ids"], "{model:?}");
        let has_state = model.ends_with("mamba2") || model.ends_with("qwen3_next");
        assert_eq!(kept["cached"], !has_state, "{model:?}");
        assert_eq!(ran.err.contains("every token is computed from all before it"), has_state, "{}", ran.err);
    }
}

#[test]
fn text_is_printed_as_it_comes_and_the_rate_goes_to_stderr() {
    let model = text(&fixture("tiny-llama"));
    let arguments = ["generate", &model, "--prompt", PROMPT, "--max-new-tokens", "12"];
    let told = run(&arguments).expect(0);
    let known = generated(&fixture("tiny-llama"), &arguments[2..]);
    assert_eq!(told.out, format!("{}\n", known["text"].as_str().unwrap()));
    assert!(told.err.contains("12 tokens, ") && told.err.contains("tokens/s"), "{}", told.err);
    assert!(known["tokens_per_second"].as_f64().unwrap() > 0.0);
    let quiet = run(&[&arguments[..], &["--quiet"]].concat()).expect(0);
    assert_eq!((quiet.out, quiet.err), (told.out, String::new()));
    let plain = known["prompt_tokens"].as_u64().unwrap();
    let chat = generated(&fixture("tiny-llama"), &["--chat", "--prompt", PROMPT, "--max-new-tokens", "2"]);
    assert!(chat["prompt_tokens"].as_u64().unwrap() > plain, "the template adds tokens");
}

#[test]
fn draws_depend_on_the_seed_alone_and_one_candidate_is_no_draw() {
    let model = fixture("tiny-llama");
    let draw = |options: &[&str]| {
        let all = [&["--prompt", PROMPT, "--max-new-tokens", "20"], options].concat();
        generated(&model, &all)["token_ids"].clone()
    };
    let warm = |seed: &str| draw(&["--temperature", "1.0", "--seed", seed]);
    assert_eq!(warm("1"), warm("1"));
    assert_ne!(warm("1"), warm("2"));
    assert_eq!(draw(&["--temperature", "1.0", "--top-k", "1"]), draw(&[]));
    assert_eq!(draw(&["--temperature", "1.0", "--top-p", "1e-9"]), draw(&[]));
}

#[test]
fn a_token_that_ends_the_text_is_the_last_and_is_not_printed() {
    let dir = tempdir().unwrap();
    let options = ["--prompt", PROMPT, "--max-new-tokens", "10"];
    let whole = generated(&fixture("tiny-llama"), &options);
    let ids = whole["token_ids"].as_array().unwrap();
    let at = (1..ids.len()).find(|&at| !ids[..at].contains(&ids[at])).unwrap();
    let model = changed(dir.path(), |dir| {
        with_json(&dir.join("generation_config.json"), |it| it["eos_token_id"] = json!([ids[at], 4]));
    });
    let ended = generated(&model, &options);
    assert_eq!((&ended["finish"], &ended["token_ids"]), (&json!("stop"), &json!(ids[..=at])));
    let (short, long) = (ended["text"].as_str().unwrap(), whole["text"].as_str().unwrap());
    assert!(long.starts_with(short) && short.len() < long.len(), "{short} of {long}");
}

#[test]
fn a_quantized_cache_rounds_keys_and_values_with_the_stored_scales() {
    let options = ["--prompt", PROMPT, "--max-new-tokens", "24", "--dtype", "f32"];
    let dense = generated(&fixture("tiny-llama"), &options);
    let with_scale = |k_scale: f32, dropped: Option<&str>| {
        let dir = tempdir().unwrap();
        let model = changed(dir.path(), |dir| {
            change_tensors(dir, |tensors| {
                for layer in 0..4 {
                    for (name, scale) in [("k_scale", k_scale), ("v_scale", 0.001f32)] {
                        let name = format!("model.layers.{layer}.self_attn.{name}");
                        tensors.insert(name, ("F32".to_owned(), vec![1], scale.to_le_bytes().to_vec()));
                    }
                }
                dropped.map(|name| tensors.remove(name));
            });
            with_json(&dir.join("config.json"), |it| {
                it["quantization_config"] = json!({
                    "quant_method": "compressed-tensors", "format": "dense", "quantization_status": "compressed",
                    "config_groups": {}, "ignore": [],
                    "kv_cache_scheme": {
                        "num_bits": 16, "type": "int", "symmetric": true, "strategy": "tensor", "dynamic": false,
                    },
                });
            });
        });
        run(&[&["generate", &text(&model), "--format", "json"], &options[..]].concat())
    };
    let fine = with_scale(0.001, None).expect(0).json();
    let coarse = with_scale(8.0, None).expect(0).json();
    assert_eq!(fine["token_ids"], dense["token_ids"], "16 bits and small scales change no choice");
    assert_ne!(coarse["token_ids"], dense["token_ids"], "keys that are rounded to multiples of 8 do");
    with_scale(0.001, Some("model.layers.2.self_attn.k_scale")).expect(65).says(&["model.layers.2.self_attn.k_scale"]);
}

#[test]
fn what_cannot_be_gone_on_from_is_refused_with_what_would_do() {
    let dir = tempdir().unwrap();
    let model = text(&fixture("tiny-llama"));
    let file = |name: &str, content: &str| {
        std::fs::write(dir.path().join(name), content).unwrap();
        text(&dir.path().join(name))
    };
    let prompt = |options: &[&str]| run(&[&["generate", &model, "--prompt", PROMPT], options].concat());
    prompt(&["--temperature", "-1"]).expect(2);
    prompt(&["--temperature=-1"]).expect(2).says(&["--temperature", "-1"]);
    prompt(&["--temperature", "1", "--top-p", "0"]).expect(2).says(&["--top-p"]);
    prompt(&["--temperature", "1", "--top-k", "0"]).expect(2).says(&["--top-k"]);
    run(&["generate", &model]).expect(2).says(&["--prompt", "--token-ids"]);
    let ids = |path: &str| run(&["generate", &model, "--token-ids", path]);
    ids(&file("empty.json", "[]")).expect(2).says(&["one token or more"]);
    ids(&file("word.json", "[\"a\"]")).expect(2).says(&["list of token ids", "word.json"]);
    ids(&file("beyond.json", "[1, 999999]")).expect(65).says(&["999999"]);
    let long = json!(vec![5; 1024]).to_string();
    ids(&file("long.json", &long)).expect(2).says(&["1024 tokens", "1024 positions"]);
    let almost = file("almost.json", &json!(vec![5; 1022]).to_string());
    let full = generated(Path::new(&model), &["--token-ids", &almost, "--max-new-tokens", "9"]);
    assert!(
        full["finish"] == "stop" || full["finish"] == "context" && full["token_ids"].as_array().unwrap().len() == 2
    );
    let plain = changed(dir.path(), |dir| std::fs::remove_file(dir.join("chat_template.jinja")).unwrap());
    run(&["generate", &text(&plain), "--chat", "--prompt", "Hello"]).expect(2).says(&["--chat", "template"]);
    std::fs::write(plain.join("generation_config.json"), "{").unwrap();
    run(&["generate", &text(&plain), "--prompt", "Hello"]).expect(65).says(&["generation_config.json"]);
}
