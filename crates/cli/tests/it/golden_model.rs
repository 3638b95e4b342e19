//! What `oneshot` makes of the small Llama of the goldens, against what the reference makes of it.

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

    fn oneshot(&self, out: &Path, modifiers: &Value, options: &[&str]) -> Ran {
        let [recipe, data] = ["recipe.yaml", "data.jsonl"].map(|it| self.dir.path().join(it));
        fs::write(&recipe, json!({"quant_stage": {"quant_modifiers": modifiers}}).to_string()).unwrap();
        let [source, out, recipe, data] = [&self.source, out, &recipe, &data].map(|it| it.to_str().unwrap());
        let arguments = ["oneshot", source, "--recipe", recipe, "--out", out, "--data", data, "--no-shuffle"];
        run(&[&arguments, options].concat())
    }

    /// Numbers of an output of the reference.
    fn golden(&self, case: &Value, name: &str) -> Vec<f32> {
        let place = case["outputs"][name].as_str().unwrap();
        let GoldenTensor { dtype, data, .. } = &self.goldens.tensors("model.safetensors")[place];
        numbers(dtype, data)
    }
}

fn case(goldens: &Goldens, id: &str) -> Value {
    let manifest = goldens.json("manifest.json");
    let cases = manifest["cases"].as_array().unwrap().iter();
    cases.filter(|it| it["file"] == "model").find(|it| it["id"] == id).unwrap().clone()
}

fn numbers(dtype: &str, data: &[u8]) -> Vec<f32> {
    match dtype {
        "F32" => data.chunks_exact(4).map(|it| f32::from_le_bytes(it.try_into().unwrap())).collect(),
        "I8" => data.iter().map(|it| f32::from(it.cast_signed())).collect(),
        "F8_E4M3" => data.iter().map(|it| e4m3(*it)).collect(),
        other => panic!("{other}"),
    }
}

fn e4m3(byte: u8) -> f32 {
    let (sign, exponent, mantissa) = (byte >> 7, (byte >> 3) & 15, byte & 7);
    let magnitude = match exponent {
        0 => f32::from(mantissa) * (-9f32).exp2(),
        _ => f32::from(8 + mantissa) * (f32::from(exponent) - 10.0).exp2(),
    };
    if sign == 1 { -magnitude } else { magnitude }
}

#[track_caller]
fn assert_near(found: &[f32], expected: &[f32], tolerance: &Value, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let (rtol, atol) = (tolerance["rtol"].as_f64().unwrap(), tolerance["atol"].as_f64().unwrap_or(0.0));
    for (a, b) in found.iter().zip(expected) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        assert!((a - b).abs() <= atol + rtol * b.abs(), "{what}: {a}, expected {b}");
    }
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
        scene.oneshot(&out, &json!({"QuantizationModifier": fields}), &[]).expect(0);
        assert_eq!(verify(&out, &scene.source)["faults"], json!([]), "{id}");
        let (case, made) = (case(&scene.goldens, id), read_tensors(&out));
        let expected = case["outputs"].as_object().unwrap();
        let is_scale = |it: &&String| {
            it.contains("self_attn.") && ["q", "k", "v"].iter().any(|base| it.ends_with(&format!(".{base}_scale")))
        };
        let found: BTreeSet<&String> = made.keys().filter(is_scale).collect();
        assert_eq!(found, expected.keys().collect(), "{id}");
        for name in expected.keys() {
            let (dtype, _, data) = &made[name];
            assert_eq!(dtype, "F32", "{id} {name}");
            let what = format!("{id} {name}");
            assert_near(&numbers(dtype, data), &scene.golden(&case, name), &case["tol"], &what);
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
    scene
        .oneshot(&refused, &json!({"QuantizationModifier": {"kv_cache_scheme": group}}), &[])
        .expect(65)
        .says(&["a scale per group"]);
    let both = json!({"targets": ["LlamaAttention"], "input_activations": fp8("tensor"), "weights": fp8("tensor")});
    scene
        .oneshot(&refused, &json!({"QuantizationModifier": {"config_groups": {"group_0": both}}}), &[])
        .expect(65)
        .says(&["an attention scheme with `weights`"]);
    assert!(!refused.exists());
}

/// The codes of packed weights of 4 bits.
fn codes(data: &[u8]) -> Vec<f32> {
    let words = data.chunks_exact(4).map(|it| u32::from_le_bytes(it.try_into().unwrap()));
    words.flat_map(|it| (0..8).map(move |at| ((it >> (4 * at)) & 15) as f32 - 8.0)).collect()
}

#[test]
fn scales_weights_and_norms_of_whole_recipes_are_those_of_the_reference() {
    let scene = Scene::new();
    let linears = |scheme: &str| json!({"targets": ["Linear"], "scheme": scheme, "ignore": ["lm_head"]});
    let weights = json!({"num_bits": 4, "type": "int", "symmetric": false, "strategy": "group", "group_size": 32});
    let groups = json!({"targets": ["Linear"], "ignore": ["lm_head"],
        "config_groups": {"g": {"targets": ["Linear"], "weights": weights}}});
    let smoothed = json!({"SmoothQuantModifier": {"smoothing_strength": 0.7}, "QuantizationModifier": linears("W8A8")});
    let compat = ["--partition", "compat"];
    for (id, modifiers, options) in [
        ("fp8_static", json!({"QuantizationModifier": linears("FP8")}), compat),
        ("nvfp4", json!({"QuantizationModifier": linears("NVFP4")}), compat),
        ("gptq_w4g32_asym", json!({"GPTQModifier": groups}), compat),
        ("smoothquant_w8a8", smoothed, ["--pipeline", "independent"]),
    ] {
        let out = scene.dir.path().join(id);
        scene.oneshot(&out, &modifiers, &options).expect(0);
        assert_eq!(verify(&out, &scene.source)["faults"], json!([]), "{id}");
        let (case, made) = (case(&scene.goldens, id), read_tensors(&out));
        let (mut n_equal, mut n_codes) = (0, 0);
        for name in case["outputs"].as_object().unwrap().keys() {
            let expected = scene.golden(&case, name);
            let linear = name.strip_suffix(".weight").filter(|it| it.ends_with("_proj"));
            match (id, linear) {
                ("gptq_w4g32_asym", Some(linear)) => {
                    let of = |local: &str| scene.golden(&case, &format!("{linear}.{local}"));
                    let (scales, zero_points) = (of("weight_scale"), of("weight_zero_point"));
                    let found = codes(&made[&format!("{linear}.weight_packed")].2);
                    assert_eq!(found.len(), expected.len(), "{name}");
                    for (idx, (code, weight)) in found.iter().zip(&expected).enumerate() {
                        let (scale, zero_point) = (scales[idx / 32], zero_points[idx / 32]);
                        n_equal += usize::from((weight / scale).round() + zero_point == *code);
                        n_codes += 1;
                    }
                }
                ("gptq_w4g32_asym", None) => {}
                // What was smoothed and then rounded.
                (_, Some(linear)) => {
                    let (_, shape, data) = &made[name];
                    let (dtype, _, scales) = &made[&format!("{linear}.weight_scale")];
                    let scales = numbers(dtype, scales);
                    for (idx, (code, weight)) in numbers("I8", data).iter().zip(&expected).enumerate() {
                        let scale = scales[idx / shape[1]];
                        assert!((code * scale - weight).abs() <= 0.5001 * scale, "{name}: {code} of {weight}");
                    }
                }
                (_, None) if name.ends_with("zero_point") => assert!(!made.contains_key(name), "{name}"),
                (_, None) => {
                    let (dtype, _, data) = &made[name];
                    assert_near(&numbers(dtype, data), &expected, &case["tol"], &format!("{id} {name}"));
                }
            }
        }
        if let Some(least) = case["tol"]["min_identical"].as_f64() {
            assert!(n_codes > 0 && n_equal as f64 >= least * n_codes as f64, "{id}: {n_equal} of {n_codes}");
        }
    }
}
