//! Scales of keys, values and queries that `oneshot` finds, against the reference's.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use testkit::{GoldenTensor, Goldens};

use crate::{
    checkpoints::{config_of, read_tensors, with_header},
    command::{Ran, run, verify},
};

/// The golden's Llama, its data, and its cases.
struct Scene {
    dir: TempDir,
    source: PathBuf,
    goldens: Goldens,
}

impl Scene {
    fn new() -> Self {
        let dir = tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        let goldens = Goldens::open("modifiers");
        let tensors = goldens.tensors("model.safetensors");
        let own: BTreeMap<&str, &GoldenTensor> =
            tensors.iter().filter_map(|(name, it)| Some((name.strip_prefix("llama.")?, it))).collect();
        let (mut header, mut at) = (serde_json::Map::new(), 0);
        for (name, it) in &own {
            let end = at + it.data.len();
            header.insert((*name).to_owned(), json!({"dtype": it.dtype, "shape": it.shape, "data_offsets": [at, end]}));
            at = end;
        }
        let data = own.values().flat_map(|it| it.data.iter().copied());
        fs::write(source.join("model.safetensors"), with_header(&Value::Object(header).to_string(), data)).unwrap();
        let mut config = case(&goldens, "forward")["params"]["config"].clone();
        let more = json!({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
            "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "dtype": "float32"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        fs::write(source.join("config.json"), config.to_string()).unwrap();
        let ids = &tensors["ids"];
        let rows = ids.data.chunks_exact(8 * ids.shape[1]).map(|row| {
            let ids = row.chunks_exact(8).map(|it| i64::from_le_bytes(it.try_into().unwrap()));
            json!({"input_ids": ids.collect::<Vec<_>>()}).to_string() + "\n"
        });
        fs::write(dir.path().join("data.jsonl"), rows.collect::<String>()).unwrap();
        Self { dir, source, goldens }
    }

    fn oneshot(&self, out: &Path, fields: &Value) -> Ran {
        let [recipe, data] = ["recipe.yaml", "data.jsonl"].map(|it| self.dir.path().join(it));
        let modifiers = json!({"QuantizationModifier": fields});
        fs::write(&recipe, json!({"quant_stage": {"quant_modifiers": modifiers}}).to_string()).unwrap();
        let [source, out, recipe, data] = [&self.source, out, &recipe, &data].map(|it| it.to_str().unwrap());
        run(&["oneshot", source, "--recipe", recipe, "--out", out, "--data", data, "--no-shuffle"])
    }
}

fn case(goldens: &Goldens, id: &str) -> Value {
    let manifest = goldens.json("manifest.json");
    let cases = manifest["cases"].as_array().unwrap().iter();
    cases.filter(|it| it["file"] == "model").find(|it| it["id"] == id).unwrap().clone()
}

fn numbers(data: &[u8]) -> Vec<f32> {
    data.chunks_exact(4).map(|it| f32::from_le_bytes(it.try_into().unwrap())).collect()
}

fn fp8(strategy: &str) -> Value {
    json!({"num_bits": 8, "type": "float", "strategy": strategy, "dynamic": false, "symmetric": true})
}

#[test]
fn scales_of_keys_values_and_queries_are_those_of_the_reference() {
    let scene = Scene::new();
    let group = json!({"targets": ["LlamaAttention"], "input_activations": fp8("tensor")});
    let linears = json!({"targets": ["Linear"], "scheme": "FP8_DYNAMIC", "ignore": ["lm_head"],
        "kv_cache_scheme": fp8("tensor")});
    let cases = [
        ("kv_fp8_tensor", linears),
        ("kv_fp8_attn_head", json!({"kv_cache_scheme": fp8("attn_head")})),
        ("attn_fp8", json!({"config_groups": {"group_0": group}})),
    ];
    for (id, fields) in cases {
        let out = scene.dir.path().join(id);
        scene.oneshot(&out, &fields).expect(0);
        assert_eq!(verify(&out, &scene.source)["faults"], json!([]), "{id}");
        let (case, made) = (case(&scene.goldens, id), read_tensors(&out));
        let (rtol, atol) = (case["tol"]["rtol"].as_f64().unwrap(), case["tol"]["atol"].as_f64().unwrap());
        let expected = case["outputs"].as_object().unwrap();
        let is_scale = |it: &&String| {
            it.contains("self_attn.") && ["q", "k", "v"].iter().any(|base| it.ends_with(&format!(".{base}_scale")))
        };
        let found: BTreeSet<&String> = made.keys().filter(is_scale).collect();
        assert_eq!(found, expected.keys().collect(), "{id}");
        for (name, golden) in expected {
            let golden = &scene.goldens.tensors("model.safetensors")[golden.as_str().unwrap()];
            let (dtype, shape, data) = &made[name];
            assert_eq!((dtype, shape), (&golden.dtype, &golden.shape), "{id} {name}");
            for (a, b) in numbers(data).into_iter().zip(numbers(&golden.data)) {
                let (a, b) = (f64::from(a), f64::from(b));
                assert!((a - b).abs() <= atol + rtol * b.abs(), "{id} {name}: {a}, expected {b}");
            }
        }
        let section = &config_of(&out)["quantization_config"];
        assert_eq!(section["kv_cache_scheme"]["num_bits"], 8, "{id}: {section}");
        assert_eq!(
            section["config_groups"].as_object().map_or(0, serde_json::Map::len),
            usize::from(id != "kv_fp8_attn_head"),
            "{id}"
        );
    }
    // Scales per head need to know how many there are; a strategy without scales of its own is none.
    let refused = scene.dir.path().join("refused");
    let group = json!({"num_bits": 8, "type": "float", "strategy": "group", "group_size": 8, "dynamic": false});
    scene.oneshot(&refused, &json!({"kv_cache_scheme": group})).expect(65).says(&["a scale per group"]);
    let both = json!({"targets": ["LlamaAttention"], "input_activations": fp8("tensor"), "weights": fp8("tensor")});
    scene
        .oneshot(&refused, &json!({"config_groups": {"group_0": both}}))
        .expect(65)
        .says(&["an attention scheme with `weights`"]);
    assert!(!refused.exists());
}
