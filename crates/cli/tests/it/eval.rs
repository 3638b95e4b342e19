//! Judging models: against numbers of transformers, against another model, as logits.

use serde_json::json;
use tempfile::tempdir;
use testkit::{fixture, goldens_dir};

use crate::{
    checkpoints::{bf16_values, change_tensors, read_tensors},
    command::{quantize, run},
    generate::changed,
};

fn text(path: &std::path::Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// What transformers gives for the embedded model, in f32 over 30,132 tokens.
const DENSE_F32: f64 = 6.7334;

#[test]
fn the_embedded_model_has_the_perplexity_that_transformers_gives_it() {
    let data = text(&fixture("eval.jsonl"));
    let dense = text(&fixture("tiny-llama"));
    let judge = |options: &[&str]| {
        let arguments = [&["eval", &dense, "--data", &data, "--seq-len", "512", "--format", "json"], options].concat();
        run(&arguments).expect(0).json()
    };
    let found = judge(&["--dtype", "f32"]);
    assert_eq!(found["tokens"], 30_132);
    let perplexity = found["perplexity"].as_f64().unwrap();
    assert!((perplexity / DENSE_F32 - 1.0).abs() < 1e-4, "{perplexity}");
    let [one, two] = ["1", "2"].map(|it| judge(&["--threads", it, "--max-samples", "3"])["perplexity"].clone());
    assert_eq!(one, two);
}

#[test]
fn progress_of_judging_is_counted_in_tokens() {
    let (dense, data) = (text(&fixture("tiny-llama")), text(&fixture("eval.jsonl")));
    let told = run(&["eval", &dense, "--data", &data, "--seq-len", "64", "--max-samples", "3"]).expect(0);
    // All rows are longer.
    let line = told.err.lines().find(|it| it.starts_with("evaluating: ")).unwrap();
    assert!(line.starts_with("evaluating: 192 tokens in ") && line.ends_with(" tokens/s"), "{line}");
}

#[test]
fn activations_are_quantized_as_the_config_says() {
    let dir = tempdir().unwrap();
    let (dense, data) = (text(&fixture("tiny-llama")), text(&fixture("eval.jsonl")));
    let perplexity = |scheme: &str| {
        let output = dir.path().join(scheme);
        quantize(&fixture("tiny-llama"), &output, &format!("--scheme {scheme}")).expect(0);
        let output = text(&output);
        let arguments =
            ["eval", &output, "--data", &data, "--seq-len", "512", "--max-samples", "16", "--reference", &dense];
        run(&[&arguments[..], &["--format", "json"]].concat()).expect(0).json()
    };
    let (weights_alone, both) = (perplexity("W8A16"), perplexity("W8A8"));
    let noise = |of: &serde_json::Value| of["comparison"]["layers"][0]["sqnr_db"].as_f64().unwrap();
    assert!(noise(&weights_alone) > noise(&both) + 3.0, "{} {}", noise(&weights_alone), noise(&both));
    let kl = |of: &serde_json::Value| of["comparison"]["kl"]["mean"].as_f64().unwrap();
    assert!(kl(&both) > 0.0 && kl(&both) < 0.005, "{}", kl(&both));
    assert!(both["comparison"]["top1"].as_f64().unwrap() > 0.95);
}

#[test]
fn logits_of_given_token_ids_are_those_of_the_golden() {
    let dir = tempdir().unwrap();
    let golden = goldens_dir("models/llama");
    let expected = read_tensors(&golden);
    let (_, shape, ids) = &expected["input_ids"];
    let tokens: Vec<i64> = ids.as_chunks::<8>().0.iter().map(|it| i64::from_le_bytes(*it)).collect();
    let rows: Vec<&[i64]> = tokens.chunks(*shape.last().unwrap()).collect();
    let (given, saved) = (dir.path().join("ids.json"), dir.path().join("saved.safetensors"));
    std::fs::write(&given, json!(rows).to_string()).unwrap();
    let (model, given, path) = (text(&golden), text(&given), text(&saved));
    run(&["eval", &model, "--token-ids", &given, "--save-logits", &path, "--dtype", "f32"]).expect(0);
    let (found, expected) = (&read_tensors(dir.path())["logits"], &expected["logits"]);
    assert_eq!((&found.0, &found.1), (&expected.0, &expected.1));
    let [found, expected] = [found, expected].map(|it| f32_values(&it.2));
    let mean = expected.iter().sum::<f32>() / expected.len() as f32;
    let deviation = (expected.iter().map(|it| (it - mean).powi(2)).sum::<f32>() / expected.len() as f32).sqrt();
    let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-4 * deviation, "{worst} of {deviation}");
}

#[test]
fn what_cannot_be_judged_is_refused_with_what_would_do() {
    let dir = tempdir().unwrap();
    let dense = text(&fixture("tiny-llama"));
    let file = |name: &str, content: &str| {
        std::fs::write(dir.path().join(name), content).unwrap();
        text(&dir.path().join(name))
    };
    let empty = file("empty.jsonl", "");
    run(&["eval", &dense, "--data", &empty]).expect(65).says(&["empty.jsonl"]);
    let other = file("other.jsonl", "{\"body\": \"a\", \"title\": \"b\"}\n");
    run(&["eval", &dense, "--data", &other]).expect(65).says(&["text", "body", "title"]);
    let beyond = file("beyond.json", "[[1, 2, 999999]]");
    run(&["eval", &dense, "--token-ids", &beyond]).expect(65).says(&["999999"]);
    let ragged = file("ragged.json", "[[1, 2, 3], [4, 5]]");
    let saved = text(&dir.path().join("logits.safetensors"));
    run(&["eval", &dense, "--token-ids", &ragged, "--save-logits", &saved]).expect(2).says(&["3", "2 tokens"]);
    assert!(!dir.path().join("logits.safetensors").exists());
    run(&["eval", &dense]).expect(2);
    run(&["eval", &dense, "--token-ids", &ragged, "--metric", "ppl,kl"]).expect(2).says(&["--reference"]);
}

#[test]
fn a_ceiling_below_the_model_gives_the_same_numbers_and_one_below_a_layer_is_refused_with_the_number() {
    let (dense, data) = (text(&fixture("tiny-llama")), text(&fixture("eval.jsonl")));
    let judge = |options: &[&str]| {
        let arguments = ["eval", &dense, "--data", &data, "--seq-len", "256", "--max-samples", "4", "--format", "json"];
        run(&[&arguments[..], options].concat())
    };
    let free = judge(&[]).expect(0).json();
    let refused = judge(&["--max-memory", "1MiB"]).expect(77).says(&["down_proj", "--max-memory"]);
    let least: u64 = refused.err.split("--max-memory ").last().unwrap().trim().parse().unwrap();
    // The weights take 8 MiB.
    assert!(least < (80 << 20) + (8 << 20), "{least}");
    judge(&["--max-memory", &(least - 1).to_string()]).expect(77);
    for reference in [&[][..], &["--reference", &dense]] {
        let tight = judge(&[&["--max-memory", &(least + 2 * (least - (80 << 20))).to_string()], reference].concat());
        let tight = tight.expect(0).json();
        assert_eq!(tight["nll"], free["nll"]);
    }
    assert_eq!(judge(&["--max-memory", &least.to_string()]).expect(0).json()["nll"], free["nll"]);
}

/// Of the perplexity: sums differ in their last bits, which moves a rounding of an activation here and there.
const INT8_AGAINST_NUMBERS: f64 = 1e-4;

/// Of logits before any rounding has moved.
const INT8_LOGITS: f32 = 2e-5;

#[test]
fn products_of_codes_are_those_of_the_numbers_that_they_stand_for() {
    let dir = tempdir().unwrap();
    let data = text(&fixture("eval.jsonl"));
    // In f32, since weights that are made dense are rounded to the type of their scales.
    let source = changed(dir.path(), |dir| {
        change_tensors(dir, |tensors| {
            for (dtype, _, bytes) in tensors.values_mut() {
                *dtype = "F32".to_owned();
                *bytes = bf16_values(bytes).iter().flat_map(|it| it.to_le_bytes()).collect();
            }
        });
    });
    let asymmetric = json!({"config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": true},
        "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "symmetric": false, "dynamic": true},
    }}, "ignore": ["lm_head"]});
    let (config, ids) = (dir.path().join("scheme.json"), dir.path().join("ids.json"));
    std::fs::write(&config, asymmetric.to_string()).unwrap();
    std::fs::write(&ids, "[[5, 9, 17, 3, 40, 22, 100]]").unwrap();
    for (name, scheme) in [("W8A8", "--scheme W8A8".to_owned()), ("asymmetric", format!("--config {}", text(&config)))]
    {
        let output = dir.path().join(name);
        quantize(&source, &output, &scheme).expect(0);
        let model = text(&output);
        let [numbers, codes] = ["numbers", "int8"].map(|product| {
            let saved = dir.path().join(format!("{name}-{product}"));
            std::fs::create_dir(&saved).unwrap();
            let path = text(&saved.join("logits.safetensors"));
            let options = ["--save-logits", &path, "--dtype", "f32", "--product", product, "--format", "json"];
            let told = run(&[&["eval", &model, "--token-ids", &text(&ids)], &options[..]].concat()).expect(0).json();
            assert_eq!(told["int8_linears"], if product == "int8" { 28 } else { 0 });
            f32_values(&read_tensors(&saved)["logits"].2)
        });
        let worst = numbers.iter().zip(&codes).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst > 0.0 && worst < INT8_LOGITS, "{worst} of {name}");
    }
    let model = text(&dir.path().join("W8A8"));
    let judge = |options: &[&str]| {
        let arguments = ["eval", &model, "--data", &data, "--seq-len", "256", "--max-samples", "16"];
        run(&[&arguments[..], &["--format", "json", "--dtype", "f32"], options].concat()).expect(0).json()
    };
    let (numbers, codes) = (judge(&[]), judge(&["--product", "int8"]));
    let [a, b] = [&numbers, &codes].map(|it| it["perplexity"].as_f64().unwrap());
    assert!((a / b - 1.0).abs() < INT8_AGAINST_NUMBERS, "{a} {b}");
    let tight = judge(&["--product", "int8", "--max-memory", "100MiB", "--threads", "1"]);
    assert_eq!(tight["nll"], codes["nll"]);
    run(&["eval", &text(&source), "--data", &data, "--product", "int8"]).expect(2).says(&["--product", "W8A8"]);
}

/// Codes of 12 bits beside those of bf16's eight.
const BLOCKS_AGAINST_NUMBERS: f64 = 1e-3;

#[test]
fn products_in_blocks_are_near_those_of_numbers_and_f32_has_none() {
    let (model, data) = (text(&fixture("tiny-llama")), text(&fixture("eval.jsonl")));
    let judge = |dtype: &str, product: &str| {
        let arguments =
            ["eval", &model, "--data", &data, "--seq-len", "256", "--max-samples", "16", "--format", "json"];
        let told = run(&[&arguments[..], &["--dtype", dtype, "--product", product]].concat()).expect(0).json();
        told["perplexity"].as_f64().unwrap()
    };
    let (numbers, blocks) = (judge("bf16", "numbers"), judge("bf16", "blocks"));
    assert!((numbers / blocks - 1.0).abs() < BLOCKS_AGAINST_NUMBERS, "{numbers} {blocks}");
    assert_eq!(judge("f32", "numbers"), judge("f32", "blocks"));
}

fn f32_values(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|it| f32::from_le_bytes(*it)).collect()
}
