//! Cutting models into subgraphs: what is printed, counted and drawn.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tempfile::tempdir;
use testkit::{Goldens, fixture, goldens_dir};

use crate::command::run;

fn text(path: &std::path::Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[track_caller]
fn traced(model: &str, options: &[&str]) -> Value {
    run(&[&["trace", model, "--format", "json"], options].concat()).expect(0).json()
}

fn names(values: &Value) -> Vec<&str> {
    values.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap_or_else(|| it.as_str().unwrap())).collect()
}

/// What each set of inputs consumes: the inputs that no later set holds.
fn consumed<'a>(inputs: &[Vec<&'a str>]) -> Vec<BTreeSet<&'a str>> {
    let is_last = |idx: usize, name: &&str| !inputs[idx + 1..].iter().any(|it| it.contains(name));
    (0..inputs.len()).map(|idx| inputs[idx].iter().copied().filter(|it| is_last(idx, it)).collect()).collect()
}

#[track_caller]
fn check_consumed(trace: &Value) {
    let subgraphs = trace["subgraphs"].as_array().unwrap();
    let inputs: Vec<Vec<&str>> = subgraphs.iter().map(|it| names(&it["inputs"])).collect();
    let found: Vec<BTreeSet<&str>> = subgraphs.iter().map(|it| names(&it["consumed"]).into_iter().collect()).collect();
    assert_eq!(found, consumed(&inputs));
    // What is kept is what exists and is taken later.
    let mut exists: BTreeSet<&str> = names(&subgraphs[0]["inputs"]).into_iter().collect();
    for (idx, subgraph) in subgraphs.iter().enumerate() {
        assert!(inputs[idx].iter().all(|it| exists.contains(it)), "{idx}");
        exists.extend(names(&subgraph["outputs"]));
        let later: BTreeSet<&str> = inputs[idx + 1..].concat().into_iter().collect();
        let kept: BTreeSet<&str> = names(&subgraph["kept"]).into_iter().collect();
        assert_eq!(kept, exists.intersection(&later).copied().collect(), "{idx}");
    }
}

#[test]
fn the_rule_of_consumed_names_is_that_of_the_reference() {
    for case in Goldens::open("core").json("consumed_names.json")["cases"].as_array().unwrap() {
        let sets = |key: &str| case[key].as_array().unwrap().iter().map(names).collect::<Vec<_>>();
        let expected: Vec<BTreeSet<&str>> = sets("consumed").into_iter().map(|it| it.into_iter().collect()).collect();
        assert_eq!(consumed(&sets("inputs")), expected);
    }
}

#[test]
fn the_embedded_model_is_cut_before_its_layers_and_costs_what_its_shapes_say() {
    let model = text(&fixture("tiny-llama"));
    let config: Value =
        serde_json::from_slice(&std::fs::read(fixture("tiny-llama").join("config.json")).unwrap()).unwrap();
    let size = |key: &str| config[key].as_u64().unwrap();
    let (width, n_layers) = (size("hidden_size"), size("num_hidden_layers"));
    let (heads, kv_heads) = (size("num_attention_heads"), size("num_key_value_heads"));
    let head_dim = config["head_dim"].as_u64().unwrap_or(width / heads);
    for partition in ["compat", "before_targets"] {
        let trace = traced(&model, &["--partition", partition, "--seq-len", "101"]);
        check_consumed(&trace);
        assert_eq!((&trace["form"], &trace["partition"]), (&json!(1), &json!(partition)));
        let subgraphs = trace["subgraphs"].as_array().unwrap();
        assert_eq!(subgraphs.len() as u64, n_layers + 1);
        assert_eq!(names(&subgraphs[0]["inputs"]), ["input_ids"]);
        assert_eq!(names(&subgraphs[0]["consumed"]), ["input_ids"]);
        assert_eq!(names(&subgraphs[0]["outputs"])[0], "model_embed_tokens");
        assert_eq!(subgraphs[1]["targets"], json!(["model.layers.0"]));
        assert!(names(&subgraphs[1]["submodules"]).contains(&"model.layers.0.mlp.down_proj"));
        assert_eq!(names(&subgraphs[n_layers as usize]["outputs"]), ["logits"]);
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let linears = 2 * width * (2 * q + 2 * kv + 3 * size("intermediate_size"));
        // 101 tokens see 51 keys in the mean.
        assert_eq!(subgraphs[1]["flop_per_token"], linears + 2 * heads * 51 * 2 * head_dim);
        assert_eq!(subgraphs[1]["n_parameters"], linears / 2 + 2 * width);
        let head = 2 * width * size("vocab_size");
        let sum: u64 = subgraphs.iter().map(|it| it["flop_per_token"].as_u64().unwrap()).sum();
        assert_eq!(trace["totals"]["flop_per_token"], sum);
        assert_eq!(sum, head + n_layers * subgraphs[1]["flop_per_token"].as_u64().unwrap());
        // Hidden states in bf16, cosines and sines in f32.
        assert_eq!(subgraphs[0]["kept_bytes_per_token"], 2 * width + 2 * 4 * (head_dim / 2));
    }
    let wide = traced(&model, &["--partition", "compat", "--targets-per-subgraph", "2"]);
    assert_eq!(wide["subgraphs"].as_array().unwrap().len() as u64, n_layers.div_ceil(2) + 1);
    let fine = traced(&model, &["--targets", "Linear"]);
    assert_eq!(fine["subgraphs"][1]["targets"].as_array().unwrap().len(), 3, "query, key and value in one wave");
    check_consumed(&fine);
    let printed = run(&["trace", &model]).expect(0).out;
    for part in ["takes  input_ids I64[B, T]", "drops  input_ids", "FLOP per token", "total  "] {
        assert!(printed.contains(part), "`{part}` is not in: {printed}");
    }
}

#[test]
fn every_architecture_is_cut_by_both_partitions() {
    let mut n_models = 0;
    for dir in std::fs::read_dir(goldens_dir("models")).unwrap() {
        let model = text(&dir.unwrap().path());
        for partition in ["compat", "before_targets"] {
            let trace = traced(&model, &["--partition", partition]);
            check_consumed(&trace);
            assert!(trace["subgraphs"].as_array().unwrap().len() > 1, "{model}");
            let parameters = trace["totals"]["n_parameters"].as_u64().unwrap();
            // Experts that a token is not handed to and tables cost nothing, everything else a product at least.
            let flop = trace["totals"]["flop_per_token"].as_u64().unwrap();
            assert!(flop > parameters / 4, "{model}: {flop} of {parameters}");
        }
        n_models += 1;
    }
    assert_eq!(n_models, 38);
}

#[test]
fn no_weight_is_read() {
    let dir = tempdir().unwrap();
    let fixture = fixture("tiny-llama");
    for entry in std::fs::read_dir(&fixture).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let before = traced(&text(&fixture), &[])["subgraphs"].clone();
    // All bytes behind the header become a hole; bf16 zeros are no fault that a header shows.
    let shard = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&shard).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    std::fs::write(&shard, [&bytes[..header], &vec![0xff; bytes.len() - header]].concat()).unwrap();
    assert_eq!(traced(&text(dir.path()), &[])["subgraphs"], before);
}

#[test]
fn the_picture_is_well_formed_and_needs_nothing_outside() {
    let dir = tempdir().unwrap();
    let model = text(&fixture("tiny-llama"));
    for (name, options) in [("waves.svg", &["--targets", "Linear"][..]), ("layers.html", &["--partition", "compat"])] {
        let path = dir.path().join(name);
        run(&[&["trace", &model, "--picture", &text(&path)], options].concat()).expect(0);
        let drawn = std::fs::read_to_string(&path).unwrap();
        let body = drawn.trim_start_matches("<!DOCTYPE html>\n");
        assert!(is_well_formed(body), "{drawn}");
        assert!(drawn.contains("model.layers.0") && drawn.contains("class=\"parameters\""));
        let outside = drawn.replace("http://www.w3.org/2000/svg", "");
        assert!(!["http", "href", "src=", "url(", "@import", "<script"].iter().any(|it| outside.contains(it)));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no partial file is left");
}

/// Whether every element ends where it should, and no text holds what would be markup.
fn is_well_formed(text: &str) -> bool {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let Some(end) = rest.find('>') else { return false };
        if rest[..at].contains('>') || rest[..at].split('&').skip(1).any(|it| !it.contains(';')) {
            return false;
        }
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        let quotes = tag.matches('"').count();
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap_or_default();
        if !quotes.is_multiple_of(2) || name.is_empty() {
            return false;
        }
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) if open.pop() != Some(name) => return false,
            (false, false) => open.push(name),
            _ => {}
        }
    }
    open.is_empty() && !rest.contains('>')
}

#[test]
fn what_cannot_be_cut_is_refused_with_what_would_do() {
    let dir = tempdir().unwrap();
    let model = text(&fixture("tiny-llama"));
    let nearest = ["model.layers.0.self_attn.q_prj", "nearest are", "q_proj"];
    run(&["trace", &model, "--targets", "model.layers.0.self_attn.q_prj"]).expect(65).says(&nearest);
    run(&["trace", &model, "--partition", "compat", "--targets-per-subgraph", "0"]).expect(2);
    run(&["trace", &model, "--targets-per-subgraph", "2"]).expect(2).says(&["compat"]);
    run(&["trace", &model, "--seq-len", "0"]).expect(2).says(&["--seq-len"]);
    let picture = text(&dir.path().join("waves.png"));
    run(&["trace", &model, "--picture", &picture]).expect(2).says(&[".svg", ".html"]);
    let nowhere = text(&dir.path().join("absent").join("waves.svg"));
    run(&["trace", &model, "--picture", &nowhere]).expect(66).says(&["waves.svg"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    std::fs::write(dir.path().join("config.json"), "{\"model_type\": \"martian\"}").unwrap();
    std::fs::copy(fixture("tiny-llama").join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    run(&["trace", &text(dir.path())]).expect(65).says(&["martian", "llama", "model-free-ptq"]);
}
