//! Waiting buffers and what modifiers hold.

use std::sync::{Arc, Mutex};

use lifecycle::{Settings, Wave};
use pipelines::{Partition, Passes, Sequential};
use tensor::{DType, Routing, Tensor};

use crate::{Nobody, Seen, Watcher, batches, model, watched_by};

#[test]
fn waiting_buffers_make_way_for_what_modifiers_hold_while_they_change_a_wave() {
    let (_dir, model, engine) = model();
    let held: Vec<Tensor> = (0..8)
        .map(|_| Tensor::build_bytes(&engine.budget, DType::U8, &[100 << 10], |_| Ok::<_, tensor::Error>(())).unwrap())
        .collect();
    drop(held);
    // The model is so small that no buffer of its own is accounted.
    let before = engine.budget.waiting_bytes();
    assert!(before >= 800 << 10);
    let waiting: Arc<Mutex<Vec<u64>>> = Arc::default();
    let (seen, budget) = (Arc::clone(&waiting), engine.budget.clone());
    let at_end = Box::new(move || seen.lock().unwrap().push(budget.waiting_bytes()));
    let (settings, wave, targets, seen) = (Settings::default(), Wave::Targets, "_proj", Seen::default());
    let watcher = Watcher { settings, seen, propagates: true, wave, targets, unchanged: None, at_end };
    let mut lifecycle = watched_by(watcher, &model, &engine);
    let (batches, partition) = (batches(&engine), Partition::BeforeTargets);
    let (routing, passes) = (Routing::All, Passes::Own);
    Sequential { model, engine, partition, routing, window: 1, spill: None, passes }
        .run(&mut lifecycle, batches, &mut Nobody)
        .unwrap();
    let waiting = waiting.lock().unwrap();
    // Nothing is changed in the first wave, which has the embedding.
    assert_eq!(waiting[0], before);
    assert!(waiting[1..].iter().all(|it| (1..before).contains(it)), "{before}: {waiting:?}");
}
