//! Subgraphs in order are the model, bit for bit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use graph::{Extent, ModuleId, Policy};
use models::{Hooks, Run, Tap, TraceInputs};
use tensor::{Routing, Tensor};

use crate::golden::{Golden, everything, open, open_at, other_ids};

const POLICIES: [Policy; 2] = [Policy::COMPAT, Policy::BeforeTargets];

/// Runs subgraphs in order over a cache that forgets what is consumed, holding their parameters one after the other.
pub(crate) fn run_in_parts(
    golden: &Golden,
    run: Run<'_>,
    targets: &BTreeSet<ModuleId>,
    policy: Policy,
    ids: &Tensor,
) -> Vec<f32> {
    let subgraphs = golden.model.subgraphs(targets, TraceInputs::Ids, policy).unwrap();
    let mut cache = BTreeMap::from([("input_ids".to_owned(), ids.clone())]);
    let mut logits = None;
    for subgraph in &subgraphs {
        let held = golden.model.hold(subgraph).unwrap();
        let produced =
            golden.model.run_subgraph(run, subgraph, |name| cache.get(name).cloned(), &Extent::Whole).unwrap();
        // An embedding is read by row, all else is kept while it is held.
        let reads = |id: &ModuleId| {
            let is_embedding = golden.model.tree().class(*id).ends_with("Embedding");
            golden.model.linear(*id).is_some() || !golden.model.own_parameters(*id).is_empty() && !is_embedding
        };
        let has_weights = subgraph.submodules(golden.model.tree()).iter().any(reads);
        assert_eq!(golden.model.store().resident_bytes() > 0, has_weights);
        drop(held);
        assert_eq!(golden.model.store().resident_bytes(), 0);
        cache.extend(produced.carried);
        cache.retain(|name, _| !subgraph.consumed_names.contains(name));
        logits = produced.outputs.get("logits").cloned().or(logits);
    }
    assert!(cache.is_empty(), "left over: {:?}", cache.keys());
    logits.unwrap().to_f32().unwrap().into_owned()
}

#[test]
fn subgraphs_in_order_equal_the_model_for_every_architecture_policy_and_shape() {
    for path in everything() {
        let golden = open_at(&path);
        for targets in [&[][..], &["Linear"], &[r"re:.*(o_proj|out_proj|dense|c_proj)$", "lm_head"]] {
            let targets = golden.model.match_targets(targets).unwrap();
            for ids in [golden.ids.clone(), other_ids(&golden.engine)] {
                let whole = golden.logits(&ids);
                for policy in POLICIES {
                    let parts = run_in_parts(&golden, golden.run(), &targets, policy, &ids);
                    assert!(parts == whole, "{path} {policy:?}");
                }
            }
        }
    }
}

#[test]
fn the_graph_of_operations_alone_equals_the_model() {
    for model_type in ["llama", "qwen3_moe"] {
        let golden = open(model_type);
        let graph = golden.model.trace_operations(TraceInputs::Ids).unwrap();
        assert!(graph.nodes().all(|(_, node)| node.modules().is_empty()));
        let parts = [graph.nodes().map(|(id, _)| id).collect()];
        let subgraph = graph::partition_graph(&graph, &parts).unwrap().remove(0);
        let produced =
            golden.model.run_subgraph(golden.run(), &subgraph, |_| Some(golden.ids.clone()), &Extent::Whole).unwrap();
        assert_eq!(produced.outputs["logits"].to_f32().unwrap(), golden.logits(&golden.ids));
    }
}

#[test]
fn the_reference_cuts_a_decoder_into_head_and_layers() {
    let golden = open("llama");
    let targets = golden.model.match_targets::<&str>(&[]).unwrap();
    let subgraphs = golden.model.subgraphs(&targets, TraceInputs::IdsAndMask, Policy::COMPAT).unwrap();
    let names: Vec<Vec<&str>> = subgraphs
        .iter()
        .map(|subgraph| {
            subgraph.graph.nodes().map(|(_, node)| node.name.as_str()).filter(|it| *it != "output").collect()
        })
        .collect();
    assert_eq!(names[0], ["input_ids", "attention_mask", "model_embed_tokens", "key_mask", "model_rotary_emb"]);
    let layer = |n: usize| format!("model_layers_{n}");
    let tables = ["model_rotary_emb", "model_rotary_emb#1", "key_mask"];
    assert_eq!(names[1], [&["model_embed_tokens"][..], &tables, &[&layer(0)]].concat());
    assert_eq!(names[2], [&[layer(0).as_str()][..], &tables, &[&layer(1), "model_norm", "lm_head"]].concat());
    assert!(subgraphs[1].consumed_names.contains("model_embed_tokens"));
    assert!(!subgraphs[1].consumed_names.contains("key_mask"));
}

#[test]
fn waves_of_linears_begin_at_the_norm_the_gate_and_the_router() {
    let golden = open("qwen3_moe");
    let tree = golden.model.tree();
    let targets: BTreeSet<ModuleId> =
        golden.model.match_targets(&["Linear"]).unwrap().into_iter().filter(|&id| tree.path(id) != "lm_head").collect();
    let subgraphs = golden.model.subgraphs(&targets, TraceInputs::Ids, Policy::BeforeTargets).unwrap();
    let waves: Vec<BTreeSet<&str>> = subgraphs
        .iter()
        .map(|subgraph| {
            let called = subgraph.graph.nodes().flat_map(|(_, node)| node.modules());
            called.map(|&id| tree.path(id)).filter(|path| !path.contains(".layers.1.")).collect()
        })
        .collect();
    let of = |suffixes: &[&str]| suffixes.iter().map(|it| format!("model.layers.0.{it}")).collect::<BTreeSet<_>>();
    let owned = |wave: &BTreeSet<&str>| wave.iter().map(|it| (*it).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(subgraphs.len(), 1 + 2 * 4);
    let attention = [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.q_norm",
        "self_attn.k_norm",
    ];
    assert_eq!(owned(&waves[1]), of(&attention));
    assert_eq!(owned(&waves[2]), of(&["self_attn.o_proj"]));
    assert!(waves[3].contains("model.layers.0.post_attention_layernorm"));
    assert!(waves[3].contains("model.layers.0.mlp.gate"));
    assert_eq!(waves[3].len(), 2 + 2 * 6);
    assert_eq!(waves[4].len(), 6);
}

#[test]
fn a_run_up_to_the_targets_hears_their_inputs_and_calls_none_of_them() {
    for model_type in ["llama", "qwen3_moe"] {
        let golden = open(model_type);
        let targets = golden.model.match_targets(&["Linear"]).unwrap();
        let heard = |is_calibrating: bool| {
            let hooks = Hooks::new();
            let log: Arc<Mutex<BTreeMap<ModuleId, Vec<f32>>>> = Arc::default();
            let outputs: Arc<Mutex<usize>> = Arc::default();
            let mut guards = Vec::new();
            for &module in &targets {
                let (log, outputs) = (Arc::clone(&log), Arc::clone(&outputs));
                guards.push(hooks.add(module, Tap::Input, move |observation| {
                    let input = observation.first().unwrap().to_f32()?.into_owned();
                    log.lock().unwrap().insert(observation.module, input);
                    Ok(None)
                }));
                guards.push(hooks.add(module, Tap::Output, move |_| {
                    *outputs.lock().unwrap() += 1;
                    Ok(None)
                }));
            }
            let run = Run { engine: &golden.engine, hooks: Some(&hooks) };
            if is_calibrating {
                let subgraphs = golden.model.subgraphs(&targets, TraceInputs::Ids, Policy::BeforeTargets).unwrap();
                let mut cache = BTreeMap::from([("input_ids".to_owned(), golden.ids.clone())]);
                for subgraph in &subgraphs {
                    let look = |name: &str| cache.get(name).cloned();
                    golden.model.run_subgraph(run, subgraph, look, &Extent::InputsOf(targets.clone())).unwrap();
                    let whole = golden.model.run_subgraph(golden.run(), subgraph, look, &Extent::Whole).unwrap();
                    cache.extend(whole.carried);
                }
            } else {
                golden.model.forward(run, &golden.ids, None).unwrap();
            }
            drop(guards);
            assert!(hooks.is_empty());
            let n_outputs = *outputs.lock().unwrap();
            let log = std::mem::take(&mut *log.lock().unwrap());
            (log, n_outputs)
        };
        let (calibrated, n_called) = heard(true);
        let (whole, n_whole) = heard(false);
        assert_eq!(calibrated, whole);
        assert_eq!((n_called, n_whole), (0, whole.len()));
    }
}

#[test]
fn every_architecture_with_experts_keeps_its_bits_when_all_of_them_see_all_rows() {
    let mut n_compared = 0;
    for path in everything() {
        let golden = open_at(&path);
        if golden.model.links().experts.is_empty() {
            continue;
        }
        let engine = golden.engine.with_routing(Routing::All);
        let all = golden.model.forward(Run { engine: &engine, hooks: None }, &golden.ids, None).unwrap();
        assert_eq!(all.to_f32().unwrap(), golden.logits(&golden.ids), "{path}");
        n_compared += 1;
    }
    assert!(n_compared >= 18);
}

#[test]
fn all_experts_see_all_rows_and_the_result_keeps_its_bits() {
    let golden = open("qwen3_moe");
    let engine = golden.engine.with_routing(Routing::All);
    let run = Run { engine: &engine, hooks: None };
    let chosen = golden.logits(&golden.ids);
    let all = golden.model.forward(run, &golden.ids, None).unwrap();
    assert_eq!(all.to_f32().unwrap(), chosen);
    let targets = golden.model.match_targets(&["Linear"]).unwrap();
    for policy in POLICIES {
        assert_eq!(run_in_parts(&golden, run, &targets, policy, &golden.ids), chosen);
    }
    let hooks = Hooks::new();
    let seen: Arc<Mutex<Vec<(usize, usize)>>> = Arc::default();
    let (_, experts) = &golden.model.links().experts[0];
    let mut guards = Vec::new();
    for expert in experts {
        for &part in &expert[..2] {
            let seen = Arc::clone(&seen);
            guards.push(hooks.add(part, Tap::Input, move |observation| {
                let x = observation.first().unwrap();
                seen.lock().unwrap().push((x.shape()[0], x.storage_id()));
                Ok(None)
            }));
        }
    }
    golden.model.forward(Run { engine: &engine, hooks: Some(&hooks) }, &golden.ids, None).unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2 * 6);
    // One tensor serves them all, so that statistics can be shared.
    assert!(seen.iter().all(|it| *it == (2 * 13, seen[0].1)), "{seen:?}");
}
