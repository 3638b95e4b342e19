//! Hooks on containers, attention and linears, under every partition.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use graph::{ModuleId, Policy};
use models::{ErrorKind, HookGuard, Hooks, Run, Tap};

use crate::golden::{Golden, open};
use crate::subgraphs::run_in_parts;

type Log = Arc<Mutex<BTreeMap<(ModuleId, Tap), Vec<Vec<f32>>>>>;

/// Hooks that write down the first value of every tap of every layer, attention and feed-forward block.
fn listen(golden: &Golden, hooks: &Hooks) -> (Log, Vec<HookGuard>) {
    let log = Log::default();
    let tree = golden.model.tree();
    let mut guards = Vec::new();
    for id in tree.ids() {
        let class = tree.class(id);
        let is_attention = class.ends_with("Attention");
        let is_container =
            ["DecoderLayer", "MLP", "SparseMoeBlock", "Model", "Experts"].iter().any(|it| class.ends_with(it));
        let mut taps = if is_attention || is_container { vec![Tap::Input, Tap::Output] } else { vec![] };
        if is_attention {
            taps.extend([Tap::Query, Tap::Key, Tap::Value]);
        }
        for tap in taps {
            let log = Arc::clone(&log);
            guards.push(hooks.add(id, tap, move |observation| {
                let first = observation.first().expect("the first value is there under every partition");
                // Ids are no floats.
                let numbers = first.to_f32().map(std::borrow::Cow::into_owned).unwrap_or_default();
                log.lock().unwrap().entry((observation.module, observation.tap)).or_default().push(numbers);
                Ok(None)
            }));
        }
    }
    (log, guards)
}

#[test]
fn containers_and_attention_are_heard_alike_under_every_partition() {
    for model_type in ["llama", "qwen3_moe"] {
        let golden = open(model_type);
        let hooks = Hooks::new();
        let (log, guards) = listen(&golden, &hooks);
        let run = Run { engine: &golden.engine, hooks: Some(&hooks) };
        golden.model.forward(run, &golden.ids, None).unwrap();
        let whole = std::mem::take(&mut *log.lock().unwrap());
        assert!(whole.len() >= 2 * 9 + 2 && whole.values().all(|heard| heard.len() == 1));
        for targets in [&[][..], &["Linear"]] {
            let targets = golden.model.match_targets(targets).unwrap();
            for policy in [Policy::COMPAT, Policy::BeforeTargets] {
                run_in_parts(&golden, run, &targets, policy, &golden.ids);
                let parts = std::mem::take(&mut *log.lock().unwrap());
                let missing: Vec<_> = whole.keys().filter(|key| !parts.contains_key(key)).collect();
                assert!(missing.is_empty(), "{model_type} {policy:?}: {missing:?}");
                assert!(parts == whole, "{model_type} {policy:?}");
            }
        }
        drop(guards);
        golden.model.forward(run, &golden.ids, None).unwrap();
        assert!(log.lock().unwrap().is_empty());
    }
}

#[test]
fn a_hook_may_replace_what_a_linear_takes_and_gives_but_not_what_a_container_does() {
    let golden = open("llama");
    let hooks = Hooks::new();
    let run = Run { engine: &golden.engine, hooks: Some(&hooks) };
    let tree = golden.model.tree();
    let down = tree.find("model.layers.0.mlp.down_proj").unwrap();
    let budget = golden.engine.budget.clone();
    let zeros = move |observation: &models::Observation<'_>| {
        let shape = observation.first().unwrap().shape().to_vec();
        Ok(Some(budget.tensor(vec![0.0f32; shape.iter().product()], &shape)?))
    };
    let plain = golden.logits(&golden.ids);
    let of_input = {
        let _guard = hooks.add(down, Tap::Input, zeros.clone());
        golden.model.forward(run, &golden.ids, None).unwrap().to_f32().unwrap().into_owned()
    };
    let of_output = {
        let _guard = hooks.add(down, Tap::Output, zeros.clone());
        golden.model.forward(run, &golden.ids, None).unwrap().to_f32().unwrap().into_owned()
    };
    assert_eq!(of_input, of_output);
    assert_ne!(of_input, plain);
    let attention = tree.find("model.layers.0.self_attn").unwrap();
    let of_value = {
        let _guard = hooks.add(attention, Tap::Value, zeros.clone());
        golden.model.forward(run, &golden.ids, None).unwrap().to_f32().unwrap().into_owned()
    };
    assert_ne!(of_value, plain);
    let _guard = hooks.add(attention, Tap::Output, zeros);
    let error = golden.model.forward(run, &golden.ids, None).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Replacement));
    assert_eq!(error.place(), Some("model.layers.0.self_attn"));
}

#[test]
fn a_failing_hook_stops_the_run_at_its_module() {
    let golden = open("llama");
    let hooks = Hooks::new();
    let norm = golden.model.tree().find("model.norm").unwrap();
    let _guard = hooks.add(norm, Tap::Output, |_| Err("too warm".into()));
    let error =
        golden.model.forward(Run { engine: &golden.engine, hooks: Some(&hooks) }, &golden.ids, None).unwrap_err();
    assert_eq!(error.to_string(), "hook: too warm (in `model.norm`)");
}

#[test]
fn a_layer_replayed_on_the_inputs_it_had_gives_what_it_gave() {
    let golden = open("qwen3_moe");
    let hooks = Hooks::new();
    let layer = golden.model.tree().find("model.layers.1").unwrap();
    let kept: Arc<Mutex<Vec<Vec<tensor::Tensor>>>> = Arc::default();
    let guards = [Tap::Input, Tap::Output].map(|tap| {
        let kept = Arc::clone(&kept);
        hooks.add(layer, tap, move |observation| {
            kept.lock().unwrap().push(observation.values.iter().flatten().cloned().collect());
            Ok(None)
        })
    });
    golden.model.forward(Run { engine: &golden.engine, hooks: Some(&hooks) }, &golden.ids, None).unwrap();
    drop(guards);
    let kept = std::mem::take(&mut *kept.lock().unwrap());
    let [inputs, outputs] = kept.as_slice() else { panic!("one call") };
    let again = golden.model.call_module(golden.run(), layer, inputs.clone()).unwrap();
    assert_eq!(again[0].to_f32().unwrap(), outputs[0].to_f32().unwrap());
    let list = golden.model.tree().find("model.layers").unwrap();
    let error = golden.model.call_module(golden.run(), list, inputs.clone()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NotCallable));
}
