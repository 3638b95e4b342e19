//! Models and data that do not fit each other: `eval` and `oneshot` refuse both by name, and leave nothing behind.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use testkit::{fixture, goldens_dir};

use crate::{checkpoints::with_header, command::run};

/// A small dense model whose files may be damaged, and a recipe and data for it.
struct Scene {
    dir: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self::of("llama")
    }

    fn of(name: &str) -> Self {
        let dir = tempdir().unwrap();
        let model = dir.path().join("model");
        fs::create_dir(&model).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(goldens_dir("models").join(name).join(file), model.join(file)).unwrap();
        }
        let gptq = json!({"GPTQModifier": {"targets": ["Linear"], "ignore": ["lm_head"], "scheme": "W8A8"}});
        let recipe = json!({"quant_stage": {"quant_modifiers": gptq}});
        fs::write(dir.path().join("recipe.json"), recipe.to_string()).unwrap();
        let row: Vec<usize> = (0..24).map(|it| it * 5 % 128).collect();
        fs::write(dir.path().join("rows.json"), json!([row, row]).to_string()).unwrap();
        let scene = Self { dir };
        scene.data(&format!("{}\n{}\n", json!({"input_ids": row}), json!({"input_ids": row})));
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self, text: &str) -> PathBuf {
        fs::write(self.path("data.jsonl"), text).unwrap();
        self.path("data.jsonl")
    }

    fn change_config(&self, change: impl FnOnce(&mut Value)) {
        let path = self.path("model/config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    /// Changes the header and the bytes of the model's tensors.
    fn change_tensors(&self, change: impl FnOnce(&mut Value, &mut Vec<u8>)) {
        let path = self.path("model/model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let (mut header, mut data) = (serde_json::from_slice(header).unwrap(), data.to_vec());
        change(&mut header, &mut data);
        fs::write(path, with_header(&header.to_string(), data)).unwrap();
    }

    /// Puts NaN into element 3 of a tensor.
    fn poison(&self, tensor: &str) {
        self.change_tensors(|header, data| {
            let start = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
            let nan: &[u8] = if header[tensor]["dtype"] == "F32" { &[0, 0, 0xc0, 0x7f] } else { &[0xc0, 0x7f] };
            data[start + 3 * nan.len()..][..nan.len()].copy_from_slice(nan);
        });
    }

    #[track_caller]
    fn eval_fails(&self, options: &[&str], texts: &[&str]) {
        let model = self.path("model");
        run(&[&["eval", text(&model)], options].concat()).expect(65).says(texts);
    }

    #[track_caller]
    fn oneshot_fails(&self, options: &[&str], texts: &[&str]) {
        let [model, recipe, data, out] = ["model", "recipe.json", "data.jsonl", "out"].map(|it| self.path(it));
        let arguments =
            ["oneshot", text(&model), "--recipe", text(&recipe), "--out", text(&out), "--data", text(&data)];
        run(&[&arguments[..], options].concat()).expect(65).says(texts);
        assert!(!out.exists());
    }

    /// Both commands refuse the model with these texts.
    #[track_caller]
    fn both_fail(&self, texts: &[&str]) {
        self.eval_fails(&["--token-ids", text(&self.path("rows.json"))], texts);
        self.oneshot_fails(&[], texts);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_tensor_that_is_absent_is_named() {
    let scene = Scene::new();
    let name = "model.layers.1.mlp.up_proj.weight";
    scene.change_tensors(|header, _| {
        let header = header.as_object_mut().unwrap();
        let entry = header.remove(name).unwrap();
        header.insert("somewhere.else".to_owned(), entry);
    });
    scene.both_fail(&[name]);
}

#[test]
fn a_tensor_whose_shape_the_config_does_not_imply_is_named_with_both_shapes() {
    let scene = Scene::new();
    scene.change_config(|config| config["intermediate_size"] = json!(96));
    scene.both_fail(&["model.layers.0.mlp.gate_proj.weight", "[96, 32]", "[64, 32]"]);
}

#[test]
fn the_first_module_whose_output_is_no_number_is_named() {
    for (tensor, module) in [
        ("model.layers.0.input_layernorm.weight", "model.layers.0.input_layernorm"),
        ("model.layers.1.input_layernorm.weight", "model.layers.1.input_layernorm"),
        ("model.layers.1.post_attention_layernorm.weight", "model.layers.1.post_attention_layernorm"),
        ("model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.v_proj"),
        ("model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.down_proj"),
    ] {
        let scene = Scene::new();
        scene.poison(tensor);
        scene.both_fail(&[module]);
    }
    let scene = Scene::new();
    scene.poison("model.norm.weight");
    scene.eval_fails(&["--token-ids", text(&scene.path("rows.json"))], &["`model.norm`"]);
}

#[test]
fn a_mapping_that_leaves_out_a_reader_of_what_it_divides_is_refused_with_the_reader() {
    let scene = Scene::new();
    let smoothed_by = |readers: Value| {
        let modifiers = json!({
            "SmoothQuantModifier": {"smoothing_strength": 0.8, "mappings": [[readers, "re:.*input_layernorm"]]},
            "GPTQModifier": {"targets": ["Linear"], "ignore": ["lm_head"], "scheme": "W8A8"},
        });
        let recipe = json!({"quant_stage": {"quant_modifiers": modifiers}});
        fs::write(scene.path("recipe.json"), recipe.to_string()).unwrap();
    };
    smoothed_by(json!(["re:.*q_proj", "re:.*k_proj"]));
    for partition in ["before_targets", "compat"] {
        let texts =
            &["SmoothQuantModifier has changed what `model.layers.0.self_attn.v_proj` gives by", "at most 10 %"];
        scene.oneshot_fails(&["--partition", partition], texts);
    }
    smoothed_by(json!(["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"]));
    let [model, recipe, data, out] = ["model", "recipe.json", "data.jsonl", "out"].map(|it| scene.path(it));
    run(&["oneshot", text(&model), "--recipe", text(&recipe), "--out", text(&out), "--data", text(&data)]).expect(0);
    let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    let moved = report["said"][0]["data"][0]["outputs_moved"].as_f64().unwrap();
    assert!(moved > 0.0 && moved < 0.02, "{moved}");
}

#[test]
fn mappings_of_llm_compressor_that_break_a_model_are_refused_and_ours_leave_what_it_computes() {
    let write = |scene: &Scene, smoothing: Value, group_size: usize| {
        let (weights, mut modifiers) =
            (json!({"num_bits": 8, "strategy": "group", "group_size": group_size}), smoothing);
        modifiers["QuantizationModifier"] = json!({
            "config_groups": {"group_0": {"targets": ["re:.*_proj$"], "weights": weights}},
        });
        let recipe = json!({"quant_stage": {"quant_modifiers": modifiers}});
        fs::write(scene.path("recipe.json"), recipe.to_string()).unwrap();
    };
    let leaves = |name: &str, smoothing: Value| {
        let scene = Scene::of(name);
        write(&scene, smoothing.clone(), 8);
        let [model, recipe, data, out] = ["model", "recipe.json", "data.jsonl", "out"].map(|it| scene.path(it));
        run(&["oneshot", text(&model), "--recipe", text(&recipe), "--out", text(&out), "--data", text(&data)])
            .expect(0);
        let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
        let said = report["said"].as_array().unwrap().iter().flat_map(|it| it["data"].as_array().unwrap());
        let moved: Vec<f64> = said.filter_map(|it| it["outputs_moved"].as_f64()).collect();
        assert!(!moved.is_empty() && moved.iter().all(|it| *it < 1e-5), "{name} {smoothing}: {moved:?}");
    };
    for (name, module) in [
        // The norm behind attention is not what the MLP reads.
        ("gemma2", "model.layers.0.mlp.gate_proj"),
        // The router reads what is smoothed, too.
        ("granitemoe", "model.layers.0.block_sparse_moe"),
    ] {
        let scene = Scene::of(name);
        let mappings = json!([[["re:.*gate_proj", "re:.*up_proj"], "re:.*post_attention_layernorm"]]);
        write(&scene, json!({"SmoothQuantModifier": {"smoothing_strength": 0.8, "mappings": mappings}}), 8);
        scene.oneshot_fails(&[], &[&format!("SmoothQuantModifier has changed what `{module}` gives by")]);
    }
    for name in [
        "gemma2",
        "gemma3_text",
        "glm4_moe",
        "gpt_oss",
        "granitemoe",
        "llama4_text",
        "mixtral",
        "qwen2_moe",
        "qwen3_next",
    ] {
        for smoothing in
            [json!({"SmoothQuantModifier": {"smoothing_strength": 0.8}}), json!({"AWQModifier": {"n_grid": 3}})]
        {
            leaves(name, smoothing);
        }
    }
    // No table has this class, whose norms multiply by 1 + w.
    let mappings = json!([[["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"]]);
    leaves("nemotron", json!({"SmoothQuantModifier": {"smoothing_strength": 0.8, "mappings": mappings}}));
}

#[test]
fn rows_longer_than_the_models_context_are_refused_with_both_lengths() {
    let scene = Scene::new();
    scene.change_config(|config| {
        config["max_position_embeddings"] = json!(20);
        config.as_object_mut().unwrap().retain(|key, _| !key.starts_with("rope"));
    });
    scene.both_fail(&["24 tokens", "20 positions"]);
    let rows = scene.path("rows.json");
    run(&["eval", text(&scene.path("model")), "--token-ids", text(&rows), "--seq-len", "20"]).expect(0);
}

#[test]
fn a_tokenizer_that_knows_more_tokens_than_the_model_is_refused_with_the_token() {
    let scene = Scene::new();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture("tiny-llama").join(file), scene.path("model").join(file)).unwrap();
    }
    let data = scene.data("{\"text\": \"Once upon a time there was a little girl\"}\n");
    let texts = ["128", "token"];
    scene.eval_fails(&["--data", text(&data)], &texts);
    scene.oneshot_fails(&[], &texts);
}

#[test]
fn data_without_rows_or_without_the_column_is_refused_with_the_columns_that_there_are() {
    let scene = Scene::new();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture("tiny-llama").join(file), scene.path("model").join(file)).unwrap();
    }
    for (content, texts) in [
        ("", &["data.jsonl", "no rows"][..]),
        ("{\"body\": \"a\", \"title\": \"b\"}\n", &["`text`", "body", "title", "data.jsonl:1"]),
        ("{\"text\": 3}\n", &["`text`", "a number", "data.jsonl:1"]),
    ] {
        let data = scene.data(content);
        scene.eval_fails(&["--data", text(&data)], texts);
        scene.oneshot_fails(&[], texts);
    }
    // A row of one token has nothing to judge, and can be calibrated on.
    let data = scene.data("{\"text\": \"\"}\n");
    scene.eval_fails(&["--data", text(&data)], &["data.jsonl", "no row of two tokens"]);
}
