//! Logits, names and parameters of every architecture (goldens/models), and how the other tests get a model.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;

use models::{ARCHITECTURES, BoxedError, Model, ModelOptions, ParameterInfo, Run, TraceInputs, Weights};
use serde_json::{Value, json};
use tensor::{Budget, DType, Engine, Tensor};
use testkit::{GoldenTensor, Goldens};

/// Tensors of a golden file in place of a checkpoint.
struct Tensors(HashMap<String, GoldenTensor>);

impl Weights for Tensors {
    fn spec(&self, name: &str) -> Option<(DType, Vec<usize>)> {
        let tensor = self.0.get(name)?;
        Some((DType::from_safetensors_name(&tensor.dtype)?, tensor.shape.clone()))
    }

    fn read_into(&self, name: &str, offset_bytes: u64, out: &mut [u8]) -> Result<(), BoxedError> {
        let start = usize::try_from(offset_bytes)?;
        out.copy_from_slice(&self.0[name].data[start..start + out.len()]);
        Ok(())
    }
}

pub(crate) struct Golden {
    pub(crate) model: Model,
    pub(crate) engine: Engine,
    pub(crate) ids: Tensor,
    pub(crate) expected: Rc<HashMap<String, GoldenTensor>>,
    on_disk: Vec<String>,
}

/// Smaller models that turn switches of their configs.
const VARIANTS: &[&str] = &[
    "bloom-odd-heads",
    "deepseek_v2-groups",
    "deepseek_v3-half",
    "falcon-alibi",
    "falcon-grouped",
    "glm4_moe-qk-norm",
    "gpt2-by-depth",
    "gpt_neox-in-turn",
    "gpt_oss-plain-rope",
    "granitemoe-multipliers",
    "llama-dynamic",
    "llama-llama3",
    "llama-yarn",
    "llama4_text-tuned",
    "mamba2-groups",
    "mixtral-window",
    "nemotron-biases",
    "opt-projected",
    "phi-qk-norm",
    "phi3-longrope",
    "phi3-longrope-part",
    "qwen3_next-dense",
];

/// Paths of the goldens of every architecture, and of all variants.
pub(crate) fn everything() -> Vec<String> {
    let models = ARCHITECTURES.iter().map(|it| format!("models/{}", it.model_type));
    models.chain(VARIANTS.iter().map(|name| format!("variants/{name}"))).collect()
}

pub(crate) fn open(model_type: &str) -> Golden {
    open_at(&format!("models/{model_type}"))
}

pub(crate) fn open_at(path: &str) -> Golden {
    open_changed(path, |config| config, ModelOptions::default())
}

pub(crate) fn open_with(model_type: &str, change: impl FnOnce(Value) -> Value, options: ModelOptions) -> Golden {
    open_changed(&format!("models/{model_type}"), change, options)
}

fn open_changed(path: &str, change: impl FnOnce(Value) -> Value, options: ModelOptions) -> Golden {
    let goldens = Goldens::open(path);
    let weights = goldens.tensors("model.safetensors");
    let mut on_disk: Vec<String> = weights.keys().cloned().collect();
    on_disk.sort();
    let config = change(goldens.json("config.json"));
    let model = Model::build(&config, Arc::new(Tensors((*weights).clone())), options).unwrap();
    let engine = Engine::new(Budget::unlimited());
    let expected = goldens.tensors("expected.safetensors");
    let ids = tensor_of(&engine, &expected["input_ids"]);
    Golden { model, engine, ids, expected, on_disk }
}

fn tensor_of(engine: &Engine, golden: &GoldenTensor) -> Tensor {
    let dtype = DType::from_safetensors_name(&golden.dtype).unwrap();
    let fill = |out: &mut [u8]| {
        out.copy_from_slice(&golden.data);
        Ok::<_, tensor::Error>(())
    };
    Tensor::build_bytes(&engine.budget, dtype, &golden.shape, fill).unwrap()
}

/// Other ids of another shape.
pub(crate) fn other_ids(engine: &Engine) -> Tensor {
    let ids = (0..3 * 7).map(|i| i64::from((i * 37 + 11) % 48)).collect::<Vec<i64>>();
    engine.budget.tensor(ids, &[3, 7]).unwrap()
}

impl Golden {
    pub(crate) fn run(&self) -> Run<'_> {
        Run { engine: &self.engine, hooks: None }
    }

    pub(crate) fn logits(&self, ids: &Tensor) -> Vec<f32> {
        self.model.forward(self.run(), ids, None).unwrap().to_f32().unwrap().into_owned()
    }
}

/// Largest distance, as a share of the standard deviation of what is expected.
fn distance(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let wide = || expected.iter().map(|&x| f64::from(x));
    let mean = wide().sum::<f64>() / expected.len() as f64;
    let variance = wide().map(|x| (x - mean).powi(2)).sum::<f64>() / expected.len() as f64;
    let largest = found.iter().zip(wide()).map(|(&x, y)| (f64::from(x) - y).abs()).fold(0.0, f64::max);
    largest / variance.sqrt()
}

#[test]
fn logits_of_every_architecture_and_switch_are_those_of_the_reference() {
    let mut failed = Vec::new();
    for path in everything() {
        let golden = open_at(&path);
        let expected = tensor_of(&golden.engine, &golden.expected["logits"]);
        let found = distance(&golden.logits(&golden.ids), &expected.to_f32().unwrap());
        println!("{path}: {found:.2e}");
        if found.is_nan() || found > 1e-4 {
            failed.push((path, found));
        }
    }
    assert!(failed.is_empty(), "largest distance in standard deviations: {failed:?}");
}

#[test]
fn half_precision_stays_near_the_reference() {
    for dtype in [DType::BF16, DType::F16] {
        for path in everything() {
            let golden =
                open_changed(&path, |config| config, ModelOptions { dtype: Some(dtype), ..ModelOptions::default() });
            let expected = tensor_of(&golden.engine, &golden.expected["logits"]);
            let logits = golden.model.forward(golden.run(), &golden.ids, None).unwrap();
            assert_eq!(logits.dtype(), dtype, "{path}");
            let vocabulary = logits.shape()[2];
            let (found, expected) = (logits.to_f32().unwrap(), expected.to_f32().unwrap());
            let noise = |(x, y): (&[f32], &[f32])| {
                let squares = x.iter().zip(y).map(|(x, y)| (x - y).powi(2)).sum::<f32>();
                (squares / y.iter().map(|y| y * y).sum::<f32>()).sqrt()
            };
            let mut noises: Vec<f32> = found.chunks(vocabulary).zip(expected.chunks(vocabulary)).map(noise).collect();
            // A router's near tie may fall the other way for a token, so that the median counts.
            noises.sort_by(f32::total_cmp);
            let noise = noises[noises.len() / 2];
            println!("{path} {dtype}: {noise:.2e}");
            let most = if dtype == DType::BF16 { 5e-2 } else { 6e-3 };
            assert!(noise < most, "{path} in {dtype}: {noise}");
            let graph = golden.model.trace_operations(TraceInputs::IdsAndMask).unwrap();
            assert!(graph.nodes().len() > 10);
        }
    }
}

#[test]
fn modules_have_the_names_and_classes_of_hugging_face_in_its_order() {
    for architecture in ARCHITECTURES {
        let model = open(architecture.model_type).model;
        let modules = Goldens::open(&format!("models/{}", architecture.model_type)).json("modules.json");
        assert_eq!(json!(architecture.class), modules["model_class"]);
        assert_eq!(json!(architecture.no_split), modules["no_split_modules"]);
        let tree = model.tree();
        // On disk each expert has linears of its own where transformers 5 has one tensor for all.
        let is_expert =
            |path: &str| path.split('.').skip_while(|part| *part != "experts").nth(1).is_some_and(|it| it != "act_fn");
        let found: Vec<_> = tree
            .ids()
            .skip(1)
            .filter(|&id| !is_expert(tree.path(id)))
            .map(|id| json!([tree.path(id), tree.class(id)]))
            .collect();
        assert_eq!(json!(found), modules["modules"], "{}", architecture.model_type);
        let experts: Vec<_> = tree.ids().filter(|&id| is_expert(tree.path(id)) && model.linear(id).is_some()).collect();
        assert!(experts.iter().all(|&id| tree.class(id) == "Linear"));
        assert_eq!(!experts.is_empty(), !model.links().experts.is_empty());
    }
}

#[test]
fn parameters_are_exactly_the_tensors_on_disk() {
    for path in everything() {
        let Golden { model, on_disk, .. } = open_at(&path);
        let tensor = |info: &ParameterInfo| info.stacked_in.clone().unwrap_or_else(|| info.name.clone());
        let mut found: Vec<_> = model.store().parameters().map(|(_, info)| tensor(info)).collect();
        found.sort();
        found.dedup();
        assert_eq!(found, on_disk, "{path}");
    }
}

#[test]
fn parameters_are_written_under_the_names_that_the_reference_writes() {
    let mut n_compared = 0;
    for architecture in ARCHITECTURES {
        // The reference cannot compress a model whose linears are all transposed, nor the experts of Llama 4.
        let dir = testkit::goldens_dir("models").join(architecture.model_type);
        if !dir.join("written_fp8_dynamic.json").exists() {
            continue;
        }
        let Golden { model, .. } = open(architecture.model_type);
        let written = Goldens::open(&format!("models/{}", architecture.model_type)).json("written_fp8_dynamic.json");
        let is_qparam = |name: &str| name.ends_with("_scale") || name.ends_with("_zero_point");
        let expected: BTreeMap<&str, &Value> = written["tensors"]
            .as_object()
            .unwrap()
            .iter()
            .filter(|(name, _)| !is_qparam(name))
            .map(|(name, it)| (name.as_str(), &it[1]))
            .collect();
        let found: BTreeMap<&str, Value> =
            model.store().parameters().map(|(_, info)| (info.written.as_str(), json!(info.shape))).collect();
        assert!(found.keys().eq(expected.keys()), "{}: {:?}", architecture.model_type, found.keys());
        assert!(found.values().eq(expected.into_values()), "{}", architecture.model_type);
        n_compared += 1;
    }
    assert_eq!(n_compared, ARCHITECTURES.len() - 2);
}

#[test]
fn a_checkpoint_under_the_names_that_are_written_gives_the_same_bits() {
    for path in everything() {
        let golden = open_at(&path);
        let store = golden.model.store();
        let tensor = |(id, info): (models::ParameterId, &ParameterInfo)| {
            let original = store.original(&golden.engine, id).unwrap();
            let dtype = store.stored_dtype(id).unwrap().safetensors_name().to_owned();
            let data = original.as_bytes().unwrap().to_vec();
            (info.written.clone(), GoldenTensor { dtype, shape: info.shape.clone(), data })
        };
        let weights: HashMap<String, GoldenTensor> = store.parameters().map(tensor).collect();
        let config = Goldens::open(&path).json("config.json");
        let written = Model::build(&config, Arc::new(Tensors(weights)), ModelOptions::default()).unwrap();
        assert!(written.store().parameters().all(|(_, info)| info.stacked_in.is_none()));
        let found = written.forward(golden.run(), &golden.ids, None).unwrap();
        assert_eq!(found.to_f32().unwrap(), golden.logits(&golden.ids), "{path}");
    }
}

#[test]
fn a_config_of_transformers_4_gives_the_same_bits() {
    let mut n_changed = 0;
    for path in everything() {
        let mut is_changed = false;
        let old = |mut config: Value| {
            let is_neox = config["model_type"] == "gpt_neox";
            let keys = config.as_object_mut().unwrap();
            if let Some(dtype) = keys.remove("dtype") {
                keys.insert("torch_dtype".into(), dtype);
            }
            let Some(Value::Object(mut rope)) = keys.remove("rope_parameters") else { return config };
            let Some(theta) = rope.remove("rope_theta") else {
                // Gemma 3 had a base of its own for layers with a window.
                keys.insert("rope_theta".into(), rope["full_attention"]["rope_theta"].clone());
                keys.insert("rope_local_base_freq".into(), rope["sliding_attention"]["rope_theta"].clone());
                return config;
            };
            keys.insert(if is_neox { "rotary_emb_base" } else { "rope_theta" }.into(), theta);
            if let Some(share) = rope.remove("partial_rotary_factor") {
                keys.insert(if is_neox { "rotary_pct" } else { "partial_rotary_factor" }.into(), share);
            }
            let kind = rope.remove("rope_type").unwrap();
            if kind == "default" {
                keys.insert("rope_scaling".into(), Value::Null);
            } else {
                rope.insert("type".into(), kind);
                keys.insert("rope_scaling".into(), rope.into());
            }
            is_changed = true;
            config
        };
        let old = open_changed(&path, old, ModelOptions::default());
        let new = open_at(&path);
        assert!(new.logits(&new.ids) == old.logits(&old.ids), "{path}");
        n_changed += usize::from(is_changed);
    }
    assert!(n_changed > 40, "{n_changed}");
}

#[test]
fn a_larger_model_runs_on_text_by_the_language_model_inside_of_it() {
    let plain = open("gemma3_text");
    let expected = plain.logits(&plain.ids);
    let goldens = Goldens::open("models/gemma3_text");
    let mut text = goldens.json("config.json");
    let dtype = text.as_object_mut().unwrap().remove("dtype").unwrap();
    let config = json!({"model_type": "gemma3", "dtype": dtype, "text_config": text, "vision_config": {}});
    for before in ["model.language_model.", "language_model.model.", "model."] {
        let path = format!("{before}layers.1.mlp.up_proj");
        let rename = |name: &str| match (before, name.strip_prefix("model.")) {
            (_, Some(rest)) => format!("{before}{rest}"),
            ("language_model.model.", None) => format!("language_model.{name}"),
            (_, None) => name.to_owned(),
        };
        let mut weights: HashMap<String, GoldenTensor> =
            goldens.tensors("model.safetensors").iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect();
        let vision = weights.values().next().unwrap().clone();
        weights.insert("vision_tower.embeddings.weight".to_owned(), vision);
        let model = Model::build(&config, Arc::new(Tensors(weights)), ModelOptions::default()).unwrap();
        assert!(model.linear(model.tree().find(&path).unwrap()).is_some());
        let found = model.forward(plain.run(), &plain.ids, None).unwrap();
        assert_eq!(found.to_f32().unwrap(), expected, "{path}");
        let targets = model.match_targets::<&str>(&[]).unwrap();
        assert!(model.subgraphs(&targets, TraceInputs::Ids, graph::Policy::COMPAT).unwrap().len() > 1);
    }
    let unknown = json!({"model_type": "gemma3", "text_config": {"model_type": "abacus"}});
    let weights = Arc::new(Tensors(HashMap::new()));
    let error = Model::build(&unknown, weights, ModelOptions::default()).err().unwrap().to_string();
    assert!(error.starts_with("model_type `abacus` is not supported"), "{error}");
}

#[test]
fn a_mask_hides_padding_and_only_padding() {
    for model_type in
        ["llama", "gpt2", "opt", "bloom", "falcon", "deepseek_v3", "gpt_oss", "llama4_text", "qwen3_next", "mamba2"]
    {
        let golden = open(model_type);
        let ids = other_ids(&golden.engine);
        let with_mask = |ids: &Tensor, mask: Vec<i64>| {
            let mask = golden.engine.budget.tensor(mask, &[3, 7]).unwrap();
            golden.model.forward(golden.run(), ids, Some(&mask)).unwrap().to_f32().unwrap().into_owned()
        };
        let full = with_mask(&ids, vec![1; 21]);
        assert_eq!(full, golden.logits(&ids), "{model_type}");
        let left: Vec<i64> = (0..21).map(|i| i64::from(i % 7 >= 2)).collect();
        let masked = with_mask(&ids, left.clone());
        // What stands in a hidden position does not reach the others.
        let mut changed = ids.as_slice::<i64>().unwrap().to_vec();
        (0..3).for_each(|row| changed[row * 7] = 5);
        let again = with_mask(&golden.engine.budget.tensor(changed, &[3, 7]).unwrap(), left);
        let visible = |logits: &[f32]| -> Vec<f32> {
            logits.chunks(128).enumerate().filter(|(i, _)| i % 7 >= 2).flat_map(|(_, row)| row.to_vec()).collect()
        };
        assert_eq!(visible(&masked), visible(&again), "{model_type}");
        assert_ne!(visible(&masked), visible(&full), "{model_type}");
    }
}

#[test]
fn positions_count_from_the_first_token_that_is_not_hidden() {
    for model_type in ["opt", "bloom", "llama", "mamba2", "qwen3_next"] {
        let golden = open(model_type);
        let budget = &golden.engine.budget;
        let ids = budget.tensor(vec![1i64, 1, 17, 90, 4, 33, 8], &[1, 7]).unwrap();
        let mask = budget.tensor(vec![0i64, 0, 1, 1, 1, 1, 1], &[1, 7]).unwrap();
        let padded = golden.model.forward(golden.run(), &ids, Some(&mask)).unwrap().to_f32().unwrap().into_owned();
        let alone = golden.logits(&budget.tensor(vec![17i64, 90, 4, 33, 8], &[1, 5]).unwrap());
        let found = distance(&padded[2 * 128..], &alone);
        assert!(found < 1e-4, "{model_type}: {found}");
    }
}

#[test]
fn the_fixture_runs_from_disk_in_its_own_type() {
    let source = Arc::new(checkpoint::Source::open(testkit::fixture("tiny-llama")).unwrap());
    let model = Model::open(source, ModelOptions::default()).unwrap();
    assert_eq!(model.store().dtype(), DType::BF16);
    let engine = Engine::new(Budget::unlimited());
    let ids = engine.budget.tensor((0..24i64).map(|i| i * 83 % 2048).collect::<Vec<i64>>(), &[2, 12]).unwrap();
    let run = Run { engine: &engine, hooks: None };
    let logits = model.forward(run, &ids, None).unwrap();
    assert_eq!((logits.shape(), logits.dtype()), (&[2, 12, 2048][..], DType::BF16));
    let half = logits.to_f32().unwrap().into_owned();
    assert!(half.iter().all(|x| x.is_finite()));
    let source = Arc::new(checkpoint::Source::open(testkit::fixture("tiny-llama")).unwrap());
    let model = Model::open(source, ModelOptions { dtype: Some(DType::F32), ..ModelOptions::default() }).unwrap();
    let full = model.forward(run, &ids, None).unwrap().to_f32().unwrap().into_owned();
    let found = distance(&half, &full);
    assert!(found < 0.1, "{found}");
}

#[test]
fn what_cannot_be_built_is_refused_by_name() {
    let weights = || Arc::new(Tensors((*Goldens::open("models/llama").tensors("model.safetensors")).clone()));
    let config = |key: &str, value: Value| {
        let mut config = Goldens::open("models/llama").json("config.json");
        config[key] = value;
        config
    };
    let refused = |config: Value| Model::build(&config, weights(), ModelOptions::default()).err().unwrap().to_string();
    let unknown = refused(config("model_type", json!("abacus")));
    assert!(unknown.starts_with("model_type `abacus` is not supported, known are bloom, cohere, cohere2"), "{unknown}");
    let cases = [
        ("hidden_size", json!("wide"), "found \"wide\", expected a positive integer (in `config.json: hidden_size`)"),
        (
            "num_key_value_heads",
            json!(3),
            "found 3, expected a divisor of num_attention_heads 4 (in `config.json: num_key_value_heads`)",
        ),
        (
            "num_hidden_layers",
            json!(3),
            "the checkpoint has no such tensor (in `model.layers.2.self_attn.q_proj.weight`)",
        ),
        (
            "num_hidden_layers",
            json!(4_000_000),
            "found 4000000, expected at most 4096 (in `config.json: num_hidden_layers`)",
        ),
        ("head_dim", json!(1 << 20), "found 1048576, expected at most 65536 (in `config.json: head_dim`)"),
        (
            "intermediate_size",
            json!(65),
            "shape [64, 32], expected [65, 32] by the config (in `model.layers.0.mlp.gate_proj.weight`)",
        ),
    ];
    for (key, value, text) in cases {
        assert_eq!(refused(config(key, value)), text);
    }
}

#[test]
fn switches_that_nobody_computes_are_refused_by_name() {
    let cases = [
        ("bloom", "apply_residual_connection_post_layernorm", json!(true), "found true, expected nothing or false"),
        ("deepseek_v2", "topk_method", json!("noaux_tc"), "found noaux_tc, expected greedy or group_limited_greedy"),
        ("deepseek_v2", "norm_topk_prob", json!(true), "found true, expected nothing or false"),
        ("deepseek_v2", "num_key_value_heads", json!(2), "found 2, expected the 4 heads of the query"),
        ("deepseek_v3", "scoring_func", json!("softmax"), "found softmax, expected sigmoid"),
        ("deepseek_v3", "topk_group", json!(0), "found 0, expected a positive integer"),
        ("deepseek_v3", "topk_group", json!(3), "found 3, expected groups that hold 2 experts"),
        ("deepseek_v3", "n_group", json!(3), "found 3, expected a divisor of the 8 experts"),
        ("glm4_moe", "moe_layer_freq", json!(2), "found 2, expected 1"),
        ("gpt2", "add_cross_attention", json!(true), "found true, expected nothing or false"),
        ("llama4_text", "no_rope_layers", json!([1]), "found 1, expected 2 entries"),
        (
            "llama4_text",
            "layer_types",
            json!(["chunked_attention", "round"]),
            "found round, expected chunked_attention",
        ),
        ("mamba2", "expand", json!(3), "found 96, expected 64 channels of all heads over hidden_size"),
        ("mamba2", "time_step_limit", json!([1.0, 0.0]), "found [1.0,0.0], expected two rising numbers"),
        ("mamba2", "n_groups", json!(3), "found 3, expected a divisor of the 8 heads"),
        ("mixtral", "num_experts_per_tok", json!(5), "found 5, expected at most the 4 experts"),
        ("opt", "activation_function", json!("snake"), "found snake, expected silu, gelu"),
        ("phi3", "rope_parameters", json!({"rope_type": "longrope"}), "found 0 numbers, expected 2"),
        ("qwen3_next", "layer_types", json!(["linear_attention"]), "found 1 entries, expected 2, one a layer"),
        ("qwen3_next", "linear_num_key_heads", json!(3), "found 3, expected a divisor of the 4 value heads"),
    ];
    for (model_type, key, value, expected) in cases {
        let goldens = Goldens::open(&format!("models/{model_type}"));
        let mut config = goldens.json("config.json");
        config[key] = value;
        let weights = Arc::new(Tensors((*goldens.tensors("model.safetensors")).clone()));
        let error = Model::build(&config, weights, ModelOptions::default()).err().unwrap();
        assert!(error.to_string().starts_with(expected), "{model_type} {key}: {error}");
        assert!(error.place().unwrap().starts_with(&format!("config.json: {key}")), "{model_type}: {error}");
    }
}

#[test]
fn a_parameter_is_found_by_each_of_its_names() {
    let model = open("mixtral").model;
    let id = model.store().find("model.layers.0.mlp.experts.1.up_proj.weight").unwrap();
    let info = model.store().info(id);
    assert_eq!(info.name, "model.layers.0.block_sparse_moe.experts.1.w3.weight");
    assert_eq!(info.written, "model.layers.0.block_sparse_moe.experts.1.up_proj.weight");
    assert_eq!([&info.name, &info.written].map(|name| model.store().find(name)), [Some(id); 2]);
}

#[test]
fn an_id_beyond_the_vocabulary_is_refused_at_the_embedding() {
    let golden = open("llama");
    let ids = golden.engine.budget.tensor(vec![3i64, 128], &[1, 2]).unwrap();
    let error = golden.model.forward(golden.run(), &ids, None).unwrap_err();
    assert_eq!(error.place(), Some("model.embed_tokens"));
    let negative = golden.engine.budget.tensor(vec![-1i64], &[1, 1]).unwrap();
    assert!(golden.model.forward(golden.run(), &negative, None).is_err());
}

#[test]
fn a_printed_trace_reads_like_the_model() {
    let golden = open("llama");
    let targets = golden.model.match_targets(&["Linear"]).unwrap();
    let graph = golden.model.trace(&targets, TraceInputs::Ids).unwrap();
    let printed = graph.display(golden.model.tree()).to_string();
    let q = "%model_layers_0_self_attn_q_proj: F32[B, T, 32] = \
             call_module model.layers.0.self_attn.q_proj(%model_layers_0_input_layernorm)";
    assert!(printed.contains(q), "{printed}");
    assert!(
        printed.contains(
            "%rope: F32[B, T, 4, 8] = call_function rope(%split_heads, %model_rotary_emb, %model_rotary_emb#1)"
        )
    );
    assert!(printed.ends_with("return logits=%lm_head\n"), "{printed}");
}

#[test]
fn likelihoods_in_tiles_are_those_of_the_logits() {
    for model_type in ["llama", "granite", "qwen3"] {
        let golden = open(model_type);
        let logits = golden.logits(&golden.ids);
        let found = golden.model.next_token_nll(golden.run(), &golden.ids, None).unwrap();
        let ids = golden.ids.as_slice::<i64>().unwrap();
        assert_eq!(found.len(), 2 * 12);
        for (idx, found) in found.iter().enumerate() {
            let at = idx / 12 * 13 + idx % 12;
            let row: Vec<f64> = logits[at * 128..][..128].iter().map(|&x| f64::from(x)).collect();
            let target = row[usize::try_from(ids[at + 1]).unwrap()];
            let expected = row.iter().map(|x| x.exp()).sum::<f64>().ln() - target;
            assert!((found - expected).abs() < 1e-5, "{model_type} {idx}: {found} {expected}");
        }
        let beyond = golden.model.nll(golden.run(), &golden.ids, &[128]).unwrap_err();
        assert_eq!(beyond.place(), Some("lm_head"));
    }
}

#[test]
fn bits_depend_neither_on_threads_nor_on_how_rows_are_batched() {
    for (model_type, dtype) in [("llama", DType::F32), ("qwen3_moe", DType::F32), ("qwen3_moe", DType::BF16)] {
        let golden =
            open_with(model_type, |config| config, ModelOptions { dtype: Some(dtype), ..ModelOptions::default() });
        let whole = golden.logits(&golden.ids);
        for threads in [1, 2, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (model, engine, ids) = (&golden.model, &golden.engine, &golden.ids);
            let found = pool.install(|| model.forward(Run { engine, hooks: None }, ids, None).unwrap());
            assert_eq!(found.to_f32().unwrap(), whole, "{model_type} with {threads} threads");
        }
        let rows: Vec<f32> = (0..2).flat_map(|row| golden.logits(&golden.ids.slice(0, row, 1).unwrap())).collect();
        assert_eq!(rows, whole, "{model_type} row by row");
    }
}
