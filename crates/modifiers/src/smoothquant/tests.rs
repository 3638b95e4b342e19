//! Smoothing against the reference's runs, and that it leaves a model's function alone.
#![allow(clippy::unwrap_used, reason = "tests")]

use compressed_tensors::numbers::Float;

use super::*;
use crate::{
    ErrorKind,
    goldens::{cases, relative},
};

const CHANNELS: usize = 64;

fn wide(scales: &[f32]) -> Vec<f64> {
    scales.iter().map(|it| f64::from(*it)).collect()
}

#[test]
fn all_runs_of_the_reference_come_out_within_their_tolerances() {
    for case in cases("smooth", "smoothquant", 7) {
        let float = if case.params["dtype"] == "bfloat16" { Float::BF16 } else { Float::F32 };
        let rtol = case.tolerance("rtol");
        let close = |name: &str, found: &[f32]| {
            let golden = case.output(name);
            let floor = golden.iter().fold(0.0f64, |a, b| a.max(f64::from(b.abs()))) * 1e-3;
            let off = relative(found, &golden, floor);
            assert!(off <= rtol, "{} {name}: {off}", case.id);
        };
        let (mut weight, kind) = (case.input("smooth_weight"), case.params["smooth_kind"].as_str().unwrap());
        let mut bias = case.has_input("smooth_bias").then(|| case.input("smooth_bias"));
        let mut range = ChannelRange::new(CHANNELS);
        for i in 0..3 {
            let x = case.input(&format!("x{i}"));
            let output: Vec<f32> = match kind {
                "linear" => linear(&x, &weight),
                _ => x.iter().enumerate().map(|(i, x)| float.round(x * weight[i % CHANNELS])).collect(),
            };
            let bias = bias.as_deref();
            let add = |(i, y): (usize, f32)| bias.map_or(y, |it| float.round(y + it[i % CHANNELS]));
            range.observe(&output.into_iter().enumerate().map(add).collect::<Vec<_>>()).unwrap();
        }
        assert_eq!(range.n_tokens(), 60);
        close("min", range.min());
        close("max", range.max());
        let mut balance: Vec<Vec<f32>> = (0..3).map(|i| case.input(&format!("W{i}"))).collect();
        let mut maxima = vec![0.0; CHANNELS];
        balance.iter().for_each(|it| column_maxima(it, &mut maxima).unwrap());
        let smoothing = match case.params["algorithm"].as_str().unwrap() {
            "smoothquant" => {
                Smoothing::SmoothQuant { strength: case.params["smoothing_strength"].as_f64().unwrap() as f32 }
            }
            _ => Smoothing::LogEqualization,
        };
        let found = scales(smoothing, &range, &maxima, float).unwrap();
        close("scales", &found);
        let found = wide(&found);
        for (i, weight) in balance.iter_mut().enumerate() {
            multiply_columns(float, &found, weight).unwrap();
            close(&format!("W{i}_out"), weight);
        }
        match kind {
            "linear" => divide_rows(float, CHANNELS, &found, &mut weight).unwrap(),
            _ => divide_norm(Norm { offset: 0.0, float }, &found, &mut weight).unwrap(),
        }
        close("smooth_weight_out", &weight);
        if let Some(bias) = &mut bias {
            divide_rows(float, 1, &found, bias).unwrap();
            close("smooth_bias_out", bias);
        }
    }
}

/// x @ w^T for a square weight.
fn linear(x: &[f32], weight: &[f32]) -> Vec<f32> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32;
    x.chunks(CHANNELS).flat_map(|x| weight.chunks(CHANNELS).map(move |w| dot(x, w))).collect()
}

#[test]
fn a_norm_with_an_offset_keeps_the_function_of_the_layer() {
    let normed = [0.3f32, -1.25, 2.0, 0.875];
    let original = [0.5f32, -0.25, 0.0, 3.0];
    let by = [2.0f64, 0.3, 7.0, 1.0];
    for offset in [0.0f32, 1.0] {
        let mut weight = original;
        divide_norm(Norm { offset, float: Float::F32 }, &by, &mut weight).unwrap();
        for i in 0..4 {
            let before = f64::from(normed[i] * (offset + original[i]));
            let after = f64::from(normed[i] * (offset + weight[i])) * by[i];
            assert!((before - after).abs() <= 1e-6 * before.abs().max(1.0), "{offset} {i}: {before} {after}");
        }
    }
    // Dividing the stored weight instead would give another function.
    let mut wrong = original;
    divide_norm(Norm { offset: 0.0, float: Float::F32 }, &by, &mut wrong).unwrap();
    let (before, after) = (normed[0] * (1.0 + original[0]), normed[0] * (1.0 + wrong[0]) * 2.0);
    assert!((before - after).abs() > 0.1);
}

#[test]
fn only_the_last_rows_of_a_fused_linear_are_divided() {
    let mut weight = [1.0f32; 6];
    divide_rows(Float::F32, 2, &[2.0, 4.0], &mut weight).unwrap();
    assert_eq!(weight, [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]);
    let error = divide_rows(Float::F32, 6, &[2.0, 4.0], &mut weight).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Length { found: 1, expected: 2, .. }), "{error}");
}

#[test]
fn ranges_divided_afterwards_are_ranges_of_the_divided_activation() {
    let tokens = [1.0f32, -8.0, 3.0, 2.0, 0.5, -4.0];
    let by = [2.0, 0.5];
    let mut after = ChannelRange::new(2);
    after.observe(&tokens).unwrap();
    after.divide(&by).unwrap();
    let divided: Vec<f32> = tokens.iter().enumerate().map(|(i, x)| x / by[i % 2] as f32).collect();
    let mut before = ChannelRange::new(2);
    before.observe(&divided).unwrap();
    assert_eq!(after, before);
}

/// How far an element of second moments that were divided may be from one of the smoothed input, as a share of what the two
/// channels allow: values of 8 bits are rounded before and behind, mostly not the same way.
const MOMENTS: f64 = 1e-3;

#[test]
fn second_moments_that_are_divided_are_those_of_the_smoothed_input() {
    let (profile, float) = (kernels::Profile::detect(), Float::BF16);
    let (channels, n_tokens) = (24usize, 640usize);
    let mut seed = 3u64;
    let mut random = || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((seed >> 33) as f32 / (1u64 << 30) as f32) - 1.0
    };
    let normed: Vec<f32> = (0..channels * n_tokens).map(|_| 2.0 * random()).collect();
    let balance: Vec<f32> = (0..channels * 16).map(|_| float.round(0.1 * random())).collect();
    for offset in [0.0f32, 1.0] {
        // Every fifth channel has large values, which smoothing is for.
        let weight = |channel: usize| if channel.is_multiple_of(5) { 40.0 } else { 1.0 } - offset;
        let before: Vec<f32> = (0..channels).map(|it| float.round(weight(it) + 0.3 * random())).collect();
        let given = |weight: &[f32]| -> Vec<f32> {
            normed.iter().enumerate().map(|(i, x)| float.round(x * (offset + weight[i % channels]))).collect()
        };
        let moments = |x: &[f32]| {
            let mut hessian = crate::gptq::Hessian::new(channels);
            hessian.accumulate(profile, kernels::Mat::new(x, n_tokens, channels).unwrap(), 1).unwrap();
            hessian
        };
        let mut range = ChannelRange::new(channels);
        range.observe(&given(&before)).unwrap();
        let mut maxima = vec![0.0; channels];
        column_maxima(&balance, &mut maxima).unwrap();
        let found = scales(Smoothing::SmoothQuant { strength: 0.8 }, &range, &maxima, float).unwrap();
        let (norm, mut after) = (Norm { offset, float }, before.clone());
        divide_norm(norm, &wide(&found), &mut after).unwrap();
        let of_smoothed = moments(&given(&after));
        let largest = |by: &[f32]| {
            let mut divided = moments(&given(&before));
            divided.divide_inputs(by).unwrap();
            let (divided, expected) = (divided.sum(), of_smoothed.sum());
            let at = |i: usize, j: usize| i * channels + j;
            let pairs = (0..channels).flat_map(|i| (i..channels).map(move |j| (i, j)));
            let off = |(i, j): (usize, usize)| {
                let whole = f64::from(expected[at(i, i)]).sqrt() * f64::from(expected[at(j, j)]).sqrt();
                f64::from(divided[at(i, j)] - expected[at(i, j)]).abs() / whole
            };
            pairs.map(off).fold(0.0, f64::max)
        };
        let off = largest(&divisors(norm, &found, &before, &after).unwrap());
        assert!(off < MOMENTS, "{offset}: {off}");
        // The scales alone do not know how the norm's weight was rounded.
        assert!(largest(&found) > 2.0 * MOMENTS, "{offset}");
    }
    let nothing = divisors(Norm { offset: 0.0, float }, &[3.0], &[0.0], &[0.0]).unwrap();
    assert_eq!(nothing, [3.0]);
}

#[test]
fn a_channel_without_tokens_or_with_nan_is_refused_by_number() {
    let smoothing = Smoothing::SmoothQuant { strength: 0.5 };
    let nothing = scales(smoothing, &ChannelRange::new(2), &[1.0, 1.0], Float::F32).unwrap_err();
    assert!(matches!(nothing.kind(), ErrorKind::NonFinite { channel: 0, .. }));
    let mut range = ChannelRange::new(2);
    range.observe(&[1.0, 2.0, 3.0, f32::NAN, 0.0, 1.0]).unwrap();
    let error = scales(smoothing, &range, &[1.0, 1.0], Float::F32).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NonFinite { channel: 1, .. }), "{error}");
}

fn modules(names: &[String]) -> Vec<compressed_tensors::target::NamedModule<'_>> {
    names.iter().map(|name| compressed_tensors::target::NamedModule { name, classes: &[] }).collect()
}

/// Names of a decoder whose first layer is dense and whose second routes between two experts.
fn mixed() -> Vec<String> {
    let mut names = vec![String::new(), "model".to_owned()];
    for (layer, is_dense) in [true, false].into_iter().enumerate() {
        let mut add = |it: &str| names.push(format!("model.layers.{layer}{it}"));
        ["", ".input_layernorm", ".self_attn", ".self_attn.q_proj", ".self_attn.v_proj", ".self_attn.o_proj"]
            .iter()
            .chain(&[".post_attention_layernorm", ".mlp"])
            .for_each(|it| add(it));
        let experts = [".mlp.experts.0", ".mlp.experts.1"];
        let (gate, parents): (&[&str], &[&str]) = if is_dense { (&[], &[".mlp"]) } else { (&[".mlp.gate"], &experts) };
        gate.iter().for_each(|it| add(it));
        for parent in parents {
            [".gate_proj", ".up_proj", ".down_proj"].iter().for_each(|it| add(&format!("{parent}{it}")));
        }
    }
    names
}

#[test]
fn a_router_that_a_dense_layer_lacks_does_not_tie_two_layers_together() {
    let names = mixed();
    let mapping =
        Mapping::new("re:.*post_attention_layernorm$", ["re:.*mlp.gate$", "re:.*gate_proj$", "re:.*up_proj$"]);
    let found = mapping.resolve(&modules(&names)).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].balance, ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"]);
    assert_eq!(found[1].balance[0], "model.layers.1.mlp.gate");
    assert_eq!(found[1].balance.len(), 5);
}

#[test]
fn each_expert_is_paired_with_itself() {
    let names = mixed();
    let found = Mapping::new("re:.*up_proj$", ["re:.*down_proj$"]).resolve(&modules(&names)).unwrap();
    let pairs: Vec<(&str, &str)> = found.iter().map(|it| (it.smooth.as_str(), it.balance[0].as_str())).collect();
    assert_eq!(
        pairs,
        [
            ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"),
            ("model.layers.1.mlp.experts.0.up_proj", "model.layers.1.mlp.experts.0.down_proj"),
            ("model.layers.1.mlp.experts.1.up_proj", "model.layers.1.mlp.experts.1.down_proj"),
        ]
    );
}

#[test]
fn a_pattern_that_matches_nothing_is_refused_by_name() {
    let names = mixed();
    for mapping in
        [Mapping::new("re:.*no_norm$", ["re:.*q_proj$"]), Mapping::new("re:.*input_layernorm$", ["re:.*w1$"])]
    {
        let error = mapping.resolve(&modules(&names)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Mapping { smooth, .. } if *smooth == mapping.smooth), "{error}");
    }
}

#[test]
fn of_the_entry_of_a_class_counts_what_a_model_has() {
    const OWN: &[NamedMapping] = &[
        NamedMapping { smooth: "re:.*q_a_layernorm$", balance: &["re:.*q_b_proj$"] },
        NamedMapping { smooth: "re:.*input_layernorm$", balance: &["re:.*q_proj$", "re:.*w1$"] },
    ];
    let names = mixed();
    let modules = modules(&names);
    let found =
        |class, entry| mappings::of_class(&[("LlamaForCausalLM", OWN), ("Own", entry)], class, &modules).unwrap();
    assert_eq!(found("Own", OWN), [Mapping::new("re:.*input_layernorm$", ["re:.*q_proj$"])]);
    // Where there is none of them, and of an entry that is not the class's own, all are kept to be refused by name.
    assert_eq!(found("Own", &OWN[..1]).len(), 1);
    assert_eq!(found("Another", OWN).len(), 2);
}

#[test]
fn the_table_agrees_with_the_grouping_of_the_reference_where_that_is_sound() {
    use compressed_tensors::target::{Matcher, Rematch, match_modules_set};
    let names: Vec<String> = mixed().into_iter().filter(|it| !it.contains("layers.1")).collect();
    let mut names_of_two = names.clone();
    names_of_two.extend(names.iter().filter(|it| it.contains("layers.0")).map(|it| it.replace("layers.0", "layers.1")));
    names_of_two.extend((0..2).map(|it| format!("model.layers.{it}.self_attn.k_proj")));
    names_of_two.sort_by_key(|it| it.contains("layers.1"));
    let modules = modules(&names_of_two);
    for mapping in mappings::mappings_for("LlamaForCausalLM", &modules).unwrap() {
        let mut targets = mapping.balance.clone();
        targets.push(mapping.smooth.clone());
        let matcher = Matcher::compile(&targets, &[] as &[&str]).unwrap();
        let sets = match_modules_set(modules.iter().copied(), &matcher, Rematch::Error).unwrap();
        let found = mapping.resolve(&modules).unwrap();
        assert_eq!(found.len(), sets.len());
        for (found, set) in found.iter().zip(sets) {
            let (smooth, balance) = set.split_last().unwrap();
            assert_eq!(vec![found.smooth.as_str()], *smooth);
            assert_eq!(found.balance, balance.concat());
        }
    }
}

#[test]
fn every_table_entry_is_a_pattern_and_hybrid_layers_are_told_by_their_names() {
    assert_eq!(mappings::MAPPINGS.len(), 38);
    for (class, entries) in mappings::MAPPINGS {
        let all: Vec<&str> = entries.iter().flat_map(|it| it.balance.iter().copied().chain([it.smooth])).collect();
        assert!(compressed_tensors::target::Patterns::compile(&all).is_ok(), "{class}");
    }
    let names: Vec<String> =
        ["0.linear_attn", "1.self_attn", "10.self_attn"].map(|it| format!("model.layers.{it}")).into();
    let hybrid = mappings::mappings_for("Qwen3_5ForCausalLM", &modules(&names)).unwrap();
    assert_eq!(hybrid[0].smooth, "re:.*layers\\.(1|10)\\.input_layernorm$");
    let error = mappings::mappings_for("Qwen3_5MoeForCausalLM", &modules(&names[..1])).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Mapping { .. }));
}
