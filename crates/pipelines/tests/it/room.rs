//! Waiting buffers and what modifiers hold.

use std::sync::{Arc, Mutex};

use lifecycle::{Event, Modifier, ModuleStore, Result, Sample, Settings, State, Tap, TapPoint};
use pipelines::{Partition, Passes, Sequential};
use tensor::{Budget, DType, Routing, Tensor};

use crate::{Nobody, batches, lifecycle_of, model};

/// Writes down how much waits for its next use when it changes a wave.
struct Looker {
    settings: Settings,
    budget: Budget,
    waiting: Arc<Mutex<Vec<u64>>>,
}

impl Modifier for Looker {
    fn type_name(&self) -> &str {
        "LookerModifier"
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn needs_data(&self) -> bool {
        true
    }

    fn writes(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(model.modules().iter().filter(|it| it.name.ends_with("_proj")).map(|it| it.name.clone()).collect())
    }

    fn taps(&self, model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        Ok(self.writes(model)?.into_iter().map(|it| Tap::new(it, TapPoint::Input)).collect())
    }

    fn on_initialize(&mut self, _state: &mut State) -> Result<bool> {
        Ok(true)
    }

    fn on_tap(&mut self, _tap: &Tap, _sample: &Sample<'_>) -> Result<()> {
        Ok(())
    }

    fn on_sequential_epoch_end(&mut self, _state: &mut State, _event: &Event, _modules: &[String]) -> Result<()> {
        self.waiting.lock().unwrap().push(self.budget.waiting_bytes());
        Ok(())
    }
}

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
    let waiting = Arc::default();
    let looker = Looker { settings: Settings::default(), budget: engine.budget.clone(), waiting: Arc::clone(&waiting) };
    let mut lifecycle = lifecycle_of(Box::new(looker), &model, &engine);
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
