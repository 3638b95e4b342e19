//! `quantization_config` of the whole models in `goldens/formats/models.json`: read, rebuilt, written.

use compressed_tensors::{
    Reader,
    args::{ArgsBuilder, QuantizationArgs, QuantizationStrategy},
    config::{
        Attention, CheckpointConfig, FORMAT_VERSION, ModuleRecord, QuantizationConfig, QuantizationStatus, SchemeTable,
        build_config, write_section,
    },
    kv_cache::{attention_scale_shape, cache_scheme, is_cached_attention},
    presets::preset,
    scheme::QuantizationScheme,
    target::NamedModule,
};
use serde_json::{Value, json};
use testkit::Goldens;

const N_MODELS: usize = 11;

fn models() -> Vec<(String, Value)> {
    let file = Goldens::open("formats").json("models.json");
    let found: Vec<_> = file.as_object().unwrap().iter().map(|(name, it)| (name.clone(), it.clone())).collect();
    assert_eq!(found.len(), N_MODELS);
    found
}

/// Modules of the two-layer Llama of the goldens, in definition order.
fn llama() -> Vec<(String, &'static str)> {
    let mut modules = vec![
        (String::new(), "LlamaForCausalLM"),
        ("model".to_owned(), "LlamaModel"),
        ("model.embed_tokens".to_owned(), "Embedding"),
        ("model.layers".to_owned(), "ModuleList"),
    ];
    for layer in 0..2 {
        let parts = [
            ("", "LlamaDecoderLayer"),
            (".self_attn", "LlamaAttention"),
            (".self_attn.q_proj", "Linear"),
            (".self_attn.k_proj", "Linear"),
            (".self_attn.v_proj", "Linear"),
            (".self_attn.o_proj", "Linear"),
            (".mlp", "LlamaMLP"),
            (".mlp.gate_proj", "Linear"),
            (".mlp.up_proj", "Linear"),
            (".mlp.down_proj", "Linear"),
            (".mlp.act_fn", "SiLUActivation"),
            (".input_layernorm", "LlamaRMSNorm"),
            (".post_attention_layernorm", "LlamaRMSNorm"),
        ];
        modules.extend(parts.map(|(suffix, class)| (format!("model.layers.{layer}{suffix}"), class)));
    }
    modules.extend([
        ("model.norm".to_owned(), "LlamaRMSNorm"),
        ("model.rotary_emb".to_owned(), "LlamaRotaryEmbedding"),
        ("lm_head".to_owned(), "Linear"),
    ]);
    modules
}

/// What the recipe of a golden model says: groups, ignores, cache.
fn recipe(model: &str) -> QuantizationConfig {
    let linear = || vec!["Linear".to_owned()];
    let named = |name: &str| vec![preset(name, linear()).unwrap()];
    let observed = |draft: ArgsBuilder| draft.observer("minmax").build().unwrap();
    let fp8 = || ArgsBuilder::float(8).build().unwrap();
    let (mut schemes, ignore, kv): (_, &[&str], _) = match model {
        "w4a16" => (named("W4A16"), &["lm_head"], None),
        "w4a16_asym_partial" => (named("W4A16_ASYM"), &["lm_head", "re:.*down_proj"], None),
        "w4a8" => (named("W4A8"), &["lm_head"], None),
        "fp8_static_kv" => (named("FP8"), &["lm_head"], Some(fp8())),
        "fp8_block" => (named("FP8_BLOCK"), &["lm_head"], None),
        "nvfp4" => (named("NVFP4"), &["lm_head"], None),
        "mxfp4" => (named("MXFP4"), &["lm_head"], None),
        "mixed" => {
            let attention = preset("FP8_DYNAMIC", vec!["re:.*self_attn.*_proj$".to_owned()]).unwrap();
            let mut mlp = QuantizationScheme::unquantized(vec!["re:.*mlp.*".to_owned()]);
            mlp.weights = Some(ArgsBuilder::int(4).group_size(32).build().unwrap());
            (vec![mlp, attention], &["lm_head"], None)
        }
        "attention_head" => {
            let mut scheme = cache_scheme(observed(ArgsBuilder::float(8).strategy(QuantizationStrategy::AttnHead)));
            scheme.targets = vec!["LlamaAttention".to_owned()];
            (vec![scheme], &[], None)
        }
        "kv_only" => (vec![], &[], Some(fp8())),
        "int8_static_io" => {
            let mut scheme = QuantizationScheme::unquantized(linear());
            let weights = ArgsBuilder::int(8).strategy(QuantizationStrategy::Channel);
            scheme.weights = Some(weights.build().unwrap());
            scheme.input_activations = Some(observed(ArgsBuilder::int(8).asymmetric()));
            scheme.output_activations = Some(observed(ArgsBuilder::int(8)));
            (vec![scheme], &["lm_head"], None)
        }
        other => panic!("no recipe for `{other}`"),
    };
    for weights in schemes.iter_mut().filter_map(|it| it.weights.as_mut()) {
        weights.observer = Some("memoryless_minmax".to_owned());
    }
    QuantizationConfig {
        config_groups: schemes.into_iter().enumerate().map(|(i, it)| (format!("of_the_user_{i}"), it)).collect(),
        ignore: ignore.iter().map(|&it| it.to_owned()).collect(),
        kv_cache_scheme: kv,
        ..QuantizationConfig::default()
    }
}

#[test]
fn every_written_config_is_read_and_written_again_the_same() {
    for (name, golden) in models() {
        let section = &golden["quantization_config"];
        let config = json!({ "quantization_config": section });
        let found = CheckpointConfig::from_model_config(&config).unwrap().unwrap();
        let quantization = found.quantization.unwrap();
        assert_eq!(found.version.as_deref(), Some(FORMAT_VERSION), "{name}");
        let written = write_section(Some(&quantization), found.transforms.as_ref(), FORMAT_VERSION).unwrap();
        assert_eq!(written.to_string(), section.to_string(), "{name}");
        assert_eq!(QuantizationConfig::from_json(section).unwrap(), quantization, "{name}");
    }
}

#[test]
fn the_config_of_every_model_follows_from_its_recipe_and_its_modules() {
    for (name, golden) in models() {
        let recipe = recipe(&name);
        let table = SchemeTable::new(&recipe).unwrap();
        let cache = recipe.kv_cache_scheme.clone().map(cache_scheme);
        let modules = llama();
        let records: Vec<ModuleRecord<'_>> = modules
            .iter()
            .map(|(module, class)| {
                let children: &[&str] = if *class == "LlamaAttention" { &["q_proj", "k_proj"] } else { &[] };
                let assigned = table.assign(NamedModule { name: module, classes: &[class] }).unwrap();
                let attends = is_cached_attention(class, children);
                let (scheme, attention) = match assigned.map(|it| it.scheme) {
                    Some(scheme) if attends => (Some(scheme), Attention::Hooked),
                    None if attends => (cache.as_ref(), Attention::Cached),
                    scheme => (scheme.filter(|_| *class == "Linear"), Attention::None),
                };
                ModuleRecord { name: module, class, scheme, attention }
            })
            .collect();
        let built = build_config(records, QuantizationStatus::Compressed, None).unwrap();
        let written = write_section(Some(&built), None, FORMAT_VERSION).unwrap();
        assert_eq!(written.to_string(), golden["quantization_config"].to_string(), "{name}");
    }
}

#[test]
fn attention_scales_have_one_value_per_head_where_the_strategy_says_so() {
    let mut n_checks = 0;
    for (name, golden) in models() {
        let args = &golden["quantization_config"]["kv_cache_scheme"];
        if args.is_null() {
            continue;
        }
        let args = QuantizationArgs::from_json(args).unwrap();
        let tensors = &golden["tensors_layer0_and_top"];
        for (scale, n_heads) in [("q_scale", 4), ("k_scale", 2), ("v_scale", 2)] {
            if let Some(stored) = tensors.get(format!("model.layers.0.self_attn.{scale}")) {
                assert_eq!(json!(attention_scale_shape(&args, n_heads)), stored[1], "{name} {scale}");
                n_checks += 1;
            }
        }
    }
    assert_eq!(n_checks, 7);
}

/// Numbers from a seed, for mutations that come out the same on every machine.
fn lcg(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

#[test]
fn a_damaged_config_is_refused_or_read_as_something_that_can_be_written() {
    let mut state = 20_260_801;
    let (mut n_read, mut n_refused) = (0, 0);
    for (_, golden) in models() {
        let text = golden["quantization_config"].to_string();
        for _ in 0..150 {
            let mut bytes = text.clone().into_bytes();
            for _ in 0..1 + lcg(&mut state) % 3 {
                let at = lcg(&mut state) % bytes.len();
                match lcg(&mut state) % 3 {
                    0 => bytes[at] = b"0-9[]{}\",:.ntfex"[lcg(&mut state) % 16],
                    1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let Ok(damaged) = String::from_utf8(bytes) else { continue };
            match QuantizationConfig::parse(&damaged, Reader::Checkpoint) {
                Ok(config) => {
                    let again = QuantizationConfig::from_checkpoint_json(&config.to_json()).unwrap();
                    assert_eq!(again.to_json(), config.to_json(), "{damaged}");
                    n_read += 1;
                }
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    n_refused += 1;
                }
            }
        }
    }
    assert!(n_read > 20 && n_refused > 500, "{n_read} read, {n_refused} refused");
}
