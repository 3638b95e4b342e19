//! Runs over chosen modules: what they change, what they leave, and what they refuse.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Value, json};
use testkit::fixture;

use crate::{
    checkpoints::{assert_same_contents, config_of, read_tensors},
    command::{Ran, quantize, run, verify},
    oneshot::{Cell, MODELS, PARTITIONS, RECIPES, tied_llama},
};

fn report_of(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap()
}

/// Names of tensors that differ, or that only one of two outputs has.
fn differing(a: &Path, b: &Path) -> BTreeSet<String> {
    let (a, b) = (read_tensors(a), read_tensors(b));
    a.keys().chain(b.keys()).filter(|it| a.get(*it) != b.get(*it)).cloned().collect()
}

fn redo(cell: &Cell, out: &Path, from: &Path, pattern: &str) -> Ran {
    redo_with(cell, out, from, pattern, "")
}

fn redo_with(cell: &Cell, out: &Path, from: &Path, pattern: &str, options: &str) -> Ran {
    cell.run(out, &format!("--redo {pattern} --from {} {options}", from.display()))
}

fn write_recipe(cell: &Cell, modifiers: &Value) {
    fs::write(&cell.recipe, json!({"quant_stage": {"quant_modifiers": modifiers}}).to_string()).unwrap();
}

/// GPTQ with 8 bits and a scale per channel.
fn wider() -> Value {
    let weights = json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel"});
    json!({"GPTQModifier": {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"]}})
}

#[test]
fn to_redo_by_the_same_recipe_is_the_same_run() {
    let [llama, experts, tiny] = &MODELS;
    let [gptq, smoothed, awq, nearest] = &RECIPES;
    let [targets, layers] = PARTITIONS;
    let second = "model.layers.1";
    let cases = [
        (llama, gptq, targets, &["re:.*", second][..]),
        (llama, gptq, layers, &[second]),
        (llama, smoothed, targets, &["re:.*", second]),
        (llama, smoothed, layers, &[second]),
        (llama, awq, targets, &["re:.*", second]),
        (llama, nearest, targets, &["re:.*", second]),
        (experts, gptq, targets, &[second]),
        (experts, smoothed, layers, &[second]),
        (tiny, gptq, targets, &["re:.*layers\\.[02]$"]),
    ];
    for (model, recipe, partition, patterns) in cases {
        let cell = Cell::new(model, recipe, partition);
        let whole = cell.out("whole");
        cell.run(&whole, "").expect(0);
        for (idx, pattern) in patterns.iter().enumerate() {
            let again = cell.out(&format!("again-{idx}"));
            redo(&cell, &again, &whole, pattern).expect(0);
            assert_same_contents(&whole, &again);
        }
    }
}

#[test]
fn to_redo_a_layer_changes_its_tensors_alone() {
    let cell = Cell::new(&MODELS[0], &RECIPES[0], PARTITIONS[0]);
    let (whole, out) = (cell.out("whole"), cell.out("out"));
    cell.run(&whole, "").expect(0);
    write_recipe(&cell, &wider());
    redo(&cell, &out, &whole, "model.layers.1").expect(0);
    let changed = differing(&whole, &out);
    assert!(!changed.is_empty() && changed.iter().all(|it| it.starts_with("model.layers.1.")), "{changed:?}");
    assert_eq!(verify(&out, &cell.source)["faults"], json!([]));
    // A class among the targets would take the fused layers of all groups.
    let groups = config_of(&out)["quantization_config"]["config_groups"].clone();
    for (idx, bits) in [4, 8].into_iter().enumerate() {
        let group = &groups[format!("group_{idx}")];
        let linears = ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"];
        let names: Vec<String> = linears.iter().map(|it| format!("model.layers.{idx}.{it}_proj")).collect();
        assert_eq!((&group["weights"]["num_bits"], &group["targets"]), (&json!(bits), &json!(names)));
    }
    // The report has both: what was kept, and what was done.
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("7 compressed modules by model.layers.1; 7 taken over from"));
    let (before, after) = (report_of(&whole), report_of(&out));
    assert_eq!(after["scope"]["compressed"].as_array().unwrap().len(), 7);
    assert_eq!(after["scope"]["n_kept"], json!(7));
    let modules = |report: &Value| report["modules"].as_array().unwrap().clone();
    assert_eq!(modules(&before)[..7], modules(&after)[..7]);
    for (old, new) in modules(&before)[7..].iter().zip(&modules(&after)[7..]) {
        assert_eq!(old["module"], new["module"]);
        let error = |it: &Value| it["weight"]["relative_error"].as_f64().unwrap();
        assert!(error(new) < error(old) / 4.0, "{new}");
    }
}

#[test]
fn a_killed_redo_goes_on_to_the_same_bytes_and_never_on_another_output() {
    let cell = Cell::new(&MODELS[0], &RECIPES[1], PARTITIONS[0]);
    let (whole, clean, out) = (cell.out("whole"), cell.out("clean"), cell.out("out"));
    cell.run(&whole, "").expect(0);
    write_recipe(&cell, &wider());
    let options = format!("--redo model.layers.1 --from {}", whole.display());
    cell.run(&clean, &options).expect(0);
    let points = [(0, 0), (1, 0), (3, 20), (6, 0)];
    let n_killed: usize =
        points.map(|(lines, polls)| usize::from(cell.kill_with(&options, &out, lines, polls))).iter().sum();
    assert!(n_killed >= 2, "only {n_killed} runs were killed before they were done");
    cell.run(&out, &options).expect(0);
    assert_same_contents(&clean, &out);
    // Threads and memory decide nothing.
    let refused = cell.run(&cell.out("refused"), &format!("{options} --max-memory 1MiB")).expect(77);
    let least = refused.err.split("--max-memory ").last().unwrap().trim().to_owned();
    let spare = cell.out("spare");
    cell.run(&spare, &format!("{options} --threads 2 --max-memory {least}")).expect(0);
    assert_same_contents(&clean, &spare);
    let stopped = cell.out("stopped");
    while !cell.kill_with(&options, &stopped, 1, 0) {
        fs::remove_dir_all(&stopped).unwrap();
    }
    cell.run(&stopped, &options.replace("layers.1", "layers.0")).expect(77).says(&["`layout`, `redo` changed"]);
    let shard = whole.join("model.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, bytes).unwrap();
    cell.run(&stopped, &options).expect(77).says(&["`from` changed"]);
    assert!(!stopped.join("config.json").exists());
}

#[test]
fn to_take_up_some_layers_only_is_to_ignore_the_others() {
    for recipe in [&RECIPES[0], &RECIPES[1], &RECIPES[3]] {
        let cell = Cell::new(&MODELS[0], recipe, PARTITIONS[0]);
        let (chosen, ignoring) = (cell.out("chosen"), cell.out("ignoring"));
        cell.run(&chosen, "--only-layers re:.*layers\\.1\\.").expect(0);
        let text = fs::read_to_string(&cell.recipe).unwrap();
        let text = text.replace("\"lm_head\"", "\"lm_head\", \"re:.*layers\\\\.0\\\\.\"");
        let smooth = "\"smoothing_strength\":0.8";
        let text = text.replace(smooth, &format!("{smooth},\"ignore\":[\"re:.*layers\\\\.0\\\\.\"]"));
        fs::write(&cell.recipe, text).unwrap();
        cell.run(&ignoring, "").expect(0);
        assert_eq!(differing(&chosen, &ignoring), BTreeSet::new(), "{}", recipe.name);
        assert_eq!(config_of(&chosen), config_of(&ignoring), "{}", recipe.name);
        let ignored = config_of(&chosen)["quantization_config"]["ignore"].to_string();
        assert!(ignored.contains("model.layers.0.mlp.down_proj") && !ignored.contains("layers.1"), "{ignored}");
        assert_eq!(report_of(&chosen)["scope"]["from"], Value::Null);
    }
}

#[test]
fn what_cannot_be_parted_or_gone_on_from_is_refused_and_nothing_is_written() {
    let cell = Cell::new(&MODELS[0], &RECIPES[1], PARTITIONS[0]);
    let (smoothed, plain, out) = (cell.out("smoothed"), cell.out("plain"), cell.out("out"));
    cell.run(&smoothed, "").expect(0);
    let smoothing = fs::read_to_string(&cell.recipe).unwrap();
    write_recipe(&cell, &wider());
    cell.run(&plain, "").expect(0);
    let refused = |from: &Path, pattern: &str, code: i32, texts: &[&str]| {
        redo(&cell, &out, from, pattern).expect(code).says(texts);
        assert!(!out.exists());
    };
    refused(&smoothed, "re:.*1.self_attn.q_proj", 77, &["1.self_attn.q_proj` is chosen", "1.input_layernorm` is not"]);
    refused(&plain, "model.layer.1", 65, &["model.layer.1", "nearest are model.layers.0"]);
    refused(&plain, "model.norm", 65, &["no modifier of the recipe writes to a chosen module"]);
    refused(&cell.out("absent"), "re:.*", 66, &["absent"]);
    redo(&cell, &plain, &plain, "re:.*").expect(2).says(&["--from", "which is --out too"]);
    // One scheme, and then another.
    redo(&cell, &cell.out("alone"), &plain, "re:.*1.self_attn.q_proj").expect(0);
    let narrow = json!({"targets": ["Linear"], "ignore": ["lm_head"], "scheme": "W8A8"});
    write_recipe(&cell, &json!({"QuantizationModifier": narrow}));
    refused(&plain, "re:.*1.self_attn.q_proj", 77, &["1.self_attn.q_proj` is chosen", "1.self_attn.k_proj` is not"]);
    let only = |pattern: &str| cell.run(&out, &format!("--only-layers {pattern}"));
    only("re:.*1.mlp.up_proj").expect(77).says(&["1.mlp.up_proj` is chosen", "1.mlp.gate_proj` is not", "one scheme"]);
    let cache = json!({"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": true, "dynamic": false});
    let mut with_cache = narrow.clone();
    with_cache["kv_cache_scheme"] = cache;
    write_recipe(&cell, &json!({"QuantizationModifier": with_cache}));
    refused(&plain, "model.layers.1", 65, &["kv_cache_scheme", "all layers"]);
    fs::write(&cell.recipe, smoothing).unwrap();
    refused(&plain, "re:.*1.self_attn", 65, &["1.self_attn.q_proj` is chosen", "1.input_layernorm` is not"]);
    only("re:.*1.self_attn").expect(65).says(&["1.input_layernorm` is not"]);
    // An output of another command, one that is not finished, and one of another model.
    let other = cell.out("other");
    quantize(&cell.source, &other, "--scheme FP8_DYNAMIC").expect(0);
    refused(&other, "re:.*", 65, &["no report of `llmcompressor oneshot`"]);
    fs::create_dir(plain.join(".llmc")).unwrap();
    refused(&plain, "re:.*", 77, &["plain", "not finished"]);
    fs::remove_dir(plain.join(".llmc")).unwrap();
    let config = fs::read_to_string(cell.source.join("config.json")).unwrap();
    fs::write(cell.source.join("config.json"), config + "\n").unwrap();
    refused(&plain, "re:.*", 77, &["plain", "made from", "source"]);
}

#[test]
fn a_head_that_is_the_embedding_is_not_parted_by_a_redo() {
    let cell = Cell::new(&MODELS[0], &RECIPES[0], PARTITIONS[0]);
    tied_llama(&cell.source);
    let (tied, parted, out) = (cell.out("tied"), cell.out("parted"), cell.out("out"));
    cell.run(&tied, "").expect(0);
    redo(&cell, &cell.out("again"), &tied, "re:.*").expect(0);
    assert_same_contents(&tied, &cell.out("again"));
    write_recipe(&cell, &json!({"QuantizationModifier": {"targets": ["Linear"], "scheme": "W8A8"}}));
    redo(&cell, &out, &tied, "lm_head").expect(77).says(&["lm_head", "model.embed_tokens.weight", "one weight"]);
    cell.run(&parted, "").expect(0);
    redo(&cell, &out, &parted, "model.layers.0").expect(77).says(&["output head has a weight of its own"]);
    assert!(!out.exists());
}

#[test]
fn a_layer_that_is_redone_with_more_bits_brings_the_perplexity_nearer_to_the_dense_one() {
    let cell = Cell::new(&MODELS[2], &RECIPES[0], PARTITIONS[0]);
    let options = "--seq-len 128 --num-samples 12";
    let weights = json!({"num_bits": 3, "type": "int", "symmetric": true, "strategy": "group", "group_size": 128});
    let groups = json!({"group_0": {"targets": ["Linear"], "weights": weights}});
    write_recipe(&cell, &json!({"GPTQModifier": {"config_groups": groups, "ignore": ["lm_head"]}}));
    fs::copy(fixture("calib.jsonl"), cell.data.as_ref().unwrap()).unwrap();
    let (whole, out) = (cell.out("whole"), cell.out("out"));
    cell.run(&whole, options).expect(0);
    write_recipe(&cell, &wider());
    redo_with(&cell, &out, &whole, "model.layers.3", options).expect(0);
    let judged = |model: &Path| {
        let (model, data) = (model.to_str().unwrap().to_owned(), fixture("eval.jsonl"));
        let data = data.to_str().unwrap();
        let ran = run(&["eval", &model, "--data", data, "--seq-len", "128", "--max-samples", "8", "--format", "json"]);
        ran.expect(0).json()["perplexity"].as_f64().unwrap()
    };
    let [dense, redone, before] = [&cell.source, &out, &whole].map(|it| judged(it));
    assert!(dense < redone && redone - dense < 0.7 * (before - dense), "{dense} {redone} {before}");
}

#[test]
fn a_cache_scheme_stays_and_a_module_that_the_recipe_leaves_out_becomes_dense() {
    let cell = Cell::new(&MODELS[0], &RECIPES[0], PARTITIONS[0]);
    let (whole, out) = (cell.out("whole"), cell.out("out"));
    let cache = json!({"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": true, "dynamic": false});
    let eight = json!({"targets": ["Linear"], "ignore": ["lm_head"], "scheme": "W8A8", "kv_cache_scheme": cache});
    write_recipe(&cell, &json!({"QuantizationModifier": eight}));
    cell.run(&whole, "").expect(0);
    let left = ["lm_head", "re:.*down_proj"];
    let same = json!({"targets": ["Linear"], "ignore": left, "scheme": "W8A8"});
    write_recipe(&cell, &json!({"QuantizationModifier": same}));
    redo(&cell, &out, &whole, "model.layers.1").expect(0);
    assert_eq!(verify(&out, &cell.source)["faults"], json!([]));
    let (before, after, source) = (read_tensors(&whole), read_tensors(&out), read_tensors(&cell.source));
    for scale in ["k_scale", "v_scale"] {
        let name = format!("model.layers.1.self_attn.{scale}");
        assert_eq!(before[&name], after[&name]);
    }
    let down = "model.layers.1.mlp.down_proj";
    assert_eq!(after[&format!("{down}.weight")], source[&format!("{down}.weight")]);
    assert!(!after.contains_key(&format!("{down}.weight_scale")));
    // The group of the output covers what was done again, and is as it was.
    let [old, new] = [&whole, &out].map(|it| config_of(it)["quantization_config"].clone());
    assert_eq!(old["kv_cache_scheme"]["num_bits"], json!(8));
    assert_eq!((&old["kv_cache_scheme"], &old["config_groups"]), (&new["kv_cache_scheme"], &new["config_groups"]));
    assert_eq!(new["ignore"], json!([down, "lm_head"]));
}

#[test]
fn experts_of_a_layer_keep_one_scheme() {
    let cell = Cell::new(&MODELS[1], &RECIPES[0], PARTITIONS[0]);
    let (whole, out) = (cell.out("whole"), cell.out("out"));
    cell.run(&whole, "").expect(0);
    redo(&cell, &cell.out("same"), &whole, "model.layers.1.mlp.experts.0").expect(0);
    write_recipe(&cell, &wider());
    let parted = redo(&cell, &out, &whole, "model.layers.1.mlp.experts.0").expect(77);
    parted.says(&["experts.0.gate_proj` is chosen", "experts.1.gate_proj` is not", "one scheme"]);
    assert!(!out.exists());
    redo(&cell, &out, &whole, "model.layers.1.mlp.experts").expect(0);
}
