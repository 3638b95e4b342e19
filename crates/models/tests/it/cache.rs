//! Tokens one by one over kept keys and values, against all tokens at once.

use models::{Hooks, KvCache, Run, Uncached};
use tensor::indices;

use crate::golden::{Golden, everything, open, open_at};

/// Logits after each of `ids` from the `first` on: the front in one run, then token by token.
fn step_by_step(golden: &Golden, ids: &[u32], first: usize) -> Vec<Vec<f32>> {
    let hooks = Hooks::new();
    let cache = KvCache::open(&golden.model, &hooks, &golden.engine.budget, ids.len())
        .unwrap()
        .unwrap_or_else(|why| panic!("{why}"));
    let run = Run { engine: &golden.engine, hooks: Some(&hooks) };
    let mut logits = Vec::new();
    for end in first..=ids.len() {
        let new = &ids[cache.len()..end];
        assert_eq!(new.len(), if end == first { first } else { 1 });
        logits.push(golden.model.next_logits(run, Some(&cache), new).unwrap().to_f32().unwrap().into_owned());
    }
    assert_eq!(cache.len(), ids.len());
    drop(cache);
    assert!(hooks.is_empty());
    logits
}

fn row(golden: &Golden) -> Vec<u32> {
    let n_tokens = golden.ids.shape()[1];
    indices(&golden.ids, usize::MAX).unwrap()[..n_tokens].to_vec()
}

#[test]
fn a_token_over_the_cache_equals_all_tokens_at_once_bit_for_bit_for_every_architecture() {
    let (mut n_cached, mut uncached) = (0, Vec::new());
    for path in everything() {
        let golden = open_at(&path);
        let ids = row(&golden);
        if let Some(why) = golden.model.uncached(ids.len()).unwrap() {
            uncached.push(format!("{path}: {why}"));
            continue;
        }
        let first = ids.len() / 3;
        for (end, found) in (first..).zip(step_by_step(&golden, &ids, first)) {
            let whole = golden.model.next_logits(golden.run(), None, &ids[..end]).unwrap();
            assert!(whole.to_f32().unwrap()[..] == found, "{path} after {end} tokens");
        }
        n_cached += 1;
    }
    assert_eq!(uncached.len() + n_cached, everything().len());
    let without = ["models/mamba2: ", "models/qwen3_next: ", "variants/mamba2-groups: ", "variants/qwen3_next-dense: "];
    let (states, others): (Vec<_>, Vec<_>) = uncached.iter().partition(|it| it.contains("carries a state"));
    assert_eq!(states.len(), without.len(), "{states:?}");
    assert!(without.iter().all(|name| states.iter().any(|it| it.starts_with(name))), "{states:?}");
    assert!(others.iter().all(|it| it.contains("frequencies of rotation")), "{others:?}");
    assert!(n_cached >= 50, "{n_cached}, without: {uncached:?}");
}

#[test]
fn rows_beyond_a_block_of_keys_and_beyond_a_window_keep_to_the_bit() {
    for path in ["models/llama", "models/gemma2", "models/gemma3_text", "variants/mixtral-window"] {
        let golden = open_at(path);
        let ids: Vec<u32> = (0..150).map(|i| (i * 37 + 11) % 48).collect();
        for (end, found) in (120..).zip(step_by_step(&golden, &ids, 120)) {
            let whole = golden.model.next_logits(golden.run(), None, &ids[..end]).unwrap();
            assert!(whole.to_f32().unwrap()[..] == found, "{path} after {end} tokens");
        }
    }
}

#[test]
fn frequencies_that_change_with_the_row_allow_a_cache_up_to_there() {
    let golden = open_at("variants/llama-dynamic");
    let Some(Uncached::Frequencies { after }) = golden.model.uncached(usize::MAX).unwrap() else { panic!("no limit") };
    assert_eq!(golden.model.uncached(after).unwrap(), None);
    assert!(golden.model.uncached(after + 1).unwrap().is_some());
}

#[test]
fn a_step_computes_the_rows_of_its_own_token_alone() {
    let golden = open("llama");
    let (hooks, ids) = (Hooks::new(), row(&golden));
    let cache = KvCache::open(&golden.model, &hooks, &golden.engine.budget, ids.len()).unwrap().unwrap();
    let heard = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let module = golden.model.tree().find("model.layers.1.mlp.down_proj").unwrap();
    let log = std::sync::Arc::clone(&heard);
    let _guard = hooks.add(module, models::Tap::Input, move |it| {
        log.lock().unwrap().push(it.first().unwrap().shape()[1]);
        Ok(None)
    });
    let run = Run { engine: &golden.engine, hooks: Some(&hooks) };
    golden.model.next_logits(run, Some(&cache), &ids[..5]).unwrap();
    golden.model.next_logits(run, Some(&cache), &ids[5..6]).unwrap();
    assert_eq!(*heard.lock().unwrap(), [5, 1]);
}
