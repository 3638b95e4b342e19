//! Runs over a small model with modifiers that only look, and what a store gives back.
#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene has failed")]

mod choice;
mod divisions;
mod room;

use std::sync::{Arc, Mutex};

use checkpoint::Source;
use lifecycle::{
    Activation, CompressionLifecycle, Event, InitializeArgs, Modifier, ModuleStore, RecipeInput, Registry, Result,
    Sample, Settings, State, StateUpdate, Tap, TapPoint,
};
use models::{Model, ModelOptions, Run, TraceInputs};
use pipelines::{CalibrationBatch, Committer, Error, ModelStore, ModifierData, Partition, Passes, Sequential, Wave};
use serde_json::Value;
use tempfile::TempDir;
use tensor::{Budget, Engine, Routing};
use testkit::goldens_dir;

const FIRST: &str = "model.layers.0.self_attn.q_proj";
const LAST: &str = "model.layers.1.mlp.down_proj";

fn model() -> (TempDir, Arc<Model>, Engine) {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(goldens_dir("models").join("llama").join(file), dir.path().join(file)).unwrap();
    }
    let source = Source::open(dir.path()).unwrap();
    let model = Model::open(Arc::new(source), ModelOptions::default()).unwrap();
    (dir, Arc::new(model), Engine::new(Budget::unlimited()))
}

fn batches(engine: &Engine) -> Vec<CalibrationBatch> {
    let ids = |seed: i64| (0..12).map(|it| (it * 7 + seed * 13) % 128).collect();
    (0..3)
        .map(|seed| CalibrationBatch { ids: engine.budget.tensor::<i64>(ids(seed), &[1, 12]).unwrap(), mask: None })
        .collect()
}

/// What a [`Watcher`] saw: tap, batch, edge, and the sum of the values.
type Seen = Arc<Mutex<Vec<(String, usize, Option<usize>, f64)>>>;

/// Hears inputs of linears and sets the first of them to zero at the end of its wave.
struct Watcher {
    settings: Settings,
    seen: Seen,
    propagates: bool,
    wave: lifecycle::Wave,
    /// How the names end of what it hears.
    targets: &'static str,
    /// Where it puts what it hears of a run in which nothing has been changed.
    unchanged: Option<Seen>,
    /// What it does first at the end of a wave.
    at_end: Box<dyn Fn() + Send>,
}

impl Modifier for Watcher {
    fn type_name(&self) -> &str {
        "WatcherModifier"
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn needs_data(&self) -> bool {
        true
    }

    fn propagates_error(&self) -> bool {
        self.propagates
    }

    fn wave(&self) -> lifecycle::Wave {
        self.wave
    }

    fn hears_unchanged(&self) -> bool {
        self.unchanged.is_some()
    }

    fn writes(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(model.modules().iter().filter(|it| it.name.ends_with(self.targets)).map(|it| it.name.clone()).collect())
    }

    fn taps(&self, model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        Ok(self.writes(model)?.into_iter().map(|it| Tap::new(it, TapPoint::Input)).collect())
    }

    fn on_initialize(&mut self, _state: &mut State) -> Result<bool> {
        Ok(true)
    }

    fn on_tap(&mut self, tap: &Tap, sample: &Sample<'_>) -> Result<()> {
        let put = |seen: &Seen, value: &dyn Activation| -> Result<()> {
            let shape = value.shape().to_vec();
            let mut values = vec![0.0; shape.iter().product()];
            value.read_rows(0..values.len() / shape.last().unwrap(), &mut values)?;
            let sum = values.iter().map(|it| f64::from(*it)).sum();
            seen.lock().unwrap().push((tap.module.clone(), sample.batch_idx, sample.edge, sum));
            Ok(())
        };
        put(&self.seen, sample.value)?;
        let unchanged = self.unchanged.as_ref().zip(sample.unchanged);
        unchanged.map_or(Ok(()), |(seen, value)| put(seen, value))
    }

    fn on_sequential_epoch_end(&mut self, state: &mut State, _event: &Event, modules: &[String]) -> Result<()> {
        (self.at_end)();
        if modules.iter().any(|it| it == FIRST) {
            state.model_mut()?.write_rows(&format!("{FIRST}.weight"), 0..32, &[0.0; 32 * 32])?;
        }
        Ok(())
    }
}

/// Keeps nothing.
struct Nobody;

impl Committer for Nobody {
    type Error = Error;

    fn concerns(&self, _wave: &Wave) -> bool {
        true
    }

    fn is_done(&self, _wave: &Wave) -> bool {
        false
    }

    fn replay(&mut self, _wave: &Wave, _lifecycle: &mut CompressionLifecycle) -> Result<Option<Value>, Error> {
        Ok(None)
    }

    fn commit(&mut self, _: &Wave, _: &mut CompressionLifecycle, _: Vec<ModifierData>) -> Result<(), Error> {
        Ok(())
    }

    fn release(&mut self, _wave: &Wave, _lifecycle: &mut CompressionLifecycle) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        Ok(())
    }
}

fn watch(
    propagates: bool,
    wave: lifecycle::Wave,
    partition: Partition,
    window: usize,
) -> Vec<(String, usize, Option<usize>, f64)> {
    watch_beside(None, propagates, wave, partition, window)
}

fn watch_beside(
    unchanged: Option<Seen>,
    propagates: bool,
    wave: lifecycle::Wave,
    partition: Partition,
    window: usize,
) -> Vec<(String, usize, Option<usize>, f64)> {
    let (_dir, model, engine) = model();
    let seen = Seen::default();
    let targets = "_proj";
    let settings = Settings::default();
    let watcher =
        Watcher { settings, seen: Arc::clone(&seen), propagates, wave, targets, unchanged, at_end: Box::new(|| ()) };
    let mut lifecycle = watched_by(watcher, &model, &engine);
    let batches = batches(&engine);
    let run = Sequential { model, engine, partition, routing: Routing::All, window, spill: None, passes: Passes::Own };
    run.run(&mut lifecycle, batches, &mut Nobody).unwrap();
    lifecycle.finalize().unwrap();
    let seen = seen.lock().unwrap();
    seen.clone()
}

fn watched_by(watcher: Watcher, model: &Arc<Model>, engine: &Engine) -> CompressionLifecycle {
    let mut lifecycle = CompressionLifecycle::new(Registry::default());
    let store = ModelStore::new(Arc::clone(model), engine.clone()).unwrap();
    let state = StateUpdate { model: Some(Box::new(store)), ..StateUpdate::default() };
    let recipe = Some(RecipeInput::Modifier(Box::new(watcher)));
    lifecycle.initialize(InitializeArgs { recipe, state, ..InitializeArgs::default() }).unwrap();
    lifecycle
}

#[test]
fn a_layer_without_targets_begins_a_wave_that_no_other_layer_before_it_is_part_of() {
    let (_dir, model, engine) = model();
    let (wave, targets) = (lifecycle::Wave::Targets, "layers.1.mlp.down_proj");
    let (settings, seen) = (Settings::default(), Seen::default());
    let lifecycle = watched_by(
        Watcher { settings, seen, propagates: true, wave, targets, unchanged: None, at_end: Box::new(|| ()) },
        &model,
        &engine,
    );
    let (routing, passes, partition) = (Routing::All, Passes::Own, Partition::BeforeTargets);
    let run = Sequential { model, engine, partition, routing, window: 1, spill: None, passes };
    let waves = run.waves(&lifecycle, TraceInputs::Ids).unwrap().waves;
    let holding = |name: &str| waves.iter().position(|it| it.modules.iter().any(|it| it == name)).unwrap();
    assert_eq!(["model.embed_tokens", FIRST, "model.layers.1.self_attn.q_proj", LAST].map(holding), [0, 1, 1, 2]);
}

#[test]
fn every_linear_is_heard_once_a_batch_and_neighbours_share_their_edge() {
    use lifecycle::Wave::{Layer, Targets};
    for (wave, partition) in
        [(Targets, Partition::BeforeTargets), (Layer, Partition::BeforeTargets), (Targets, Partition::Compat)]
    {
        let seen = watch(true, wave, partition, 1);
        assert_eq!(seen.len(), 2 * 7 * 3, "{wave:?} {partition:?}");
        let edge = |name: &str, batch: usize| seen.iter().find(|it| it.0 == name && it.1 == batch).unwrap().2;
        for batch in 0..3 {
            assert_eq!(edge(FIRST, batch), edge("model.layers.0.self_attn.v_proj", batch));
            assert_eq!(edge(FIRST, 0), edge(FIRST, batch));
        }
        assert_ne!(edge("model.layers.0.mlp.up_proj", 0), edge("model.layers.0.mlp.down_proj", 0));
        // Batches come in order at every tap.
        let order: Vec<usize> = seen.iter().filter(|it| it.0 == LAST).map(|it| it.1).collect();
        assert_eq!(order, [0, 1, 2]);
    }
}

#[test]
fn later_waves_see_a_change_only_of_a_modifier_that_propagates() {
    let last = |propagates, wave, partition| -> Vec<f64> {
        watch(propagates, wave, partition, 1).into_iter().filter(|it| it.0 == LAST).map(|it| it.3).collect()
    };
    use lifecycle::Wave::{Layer, Targets};
    let untouched = last(false, Targets, Partition::BeforeTargets);
    let touched = last(true, Targets, Partition::BeforeTargets);
    assert_ne!(untouched, touched);
    // Layers differ in what is heard within the first, not in what the second is given.
    assert_eq!(last(false, Layer, Partition::Compat), untouched);
    assert_eq!(last(true, Layer, Partition::Compat), touched);
}

#[test]
fn beside_what_has_become_of_a_value_a_modifier_hears_what_it_was() {
    use lifecycle::Wave::{Layer, Targets};
    for (wave, partition) in [(Targets, Partition::BeforeTargets), (Layer, Partition::Compat)] {
        for window in [1, 2] {
            let unchanged = Seen::default();
            let touched = watch_beside(Some(Arc::clone(&unchanged)), true, wave, partition, window);
            assert_eq!(touched, watch(true, wave, partition, window));
            assert_eq!(*unchanged.lock().unwrap(), watch(false, wave, partition, window), "{wave:?} {window}");
        }
    }
}

#[test]
fn a_window_of_batches_shows_each_as_it_is_alone() {
    for wave in [lifecycle::Wave::Targets, lifecycle::Wave::Layer] {
        let alone = watch(true, wave, Partition::BeforeTargets, 1);
        assert_eq!(watch(true, wave, Partition::BeforeTargets, 2).len(), alone.len());
        let sorted = |mut it: Vec<(String, usize, Option<usize>, f64)>| {
            it.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
            it
        };
        assert_eq!(sorted(watch(true, wave, Partition::BeforeTargets, 2)), sorted(alone));
    }
}

#[test]
fn rows_written_in_part_are_read_back_and_forgotten() {
    let (_dir, model, engine) = model();
    let mut store = ModelStore::new(Arc::clone(&model), engine.clone()).unwrap();
    let name = format!("{FIRST}.weight");
    let (mut before, mut after) = (vec![0.0; 32 * 32], vec![0.0; 32 * 32]);
    store.read_rows(&name, 0..32, &mut before).unwrap();
    store.write_rows(&name, 3..5, &[2.5; 64]).unwrap();
    assert!(store.is_changed(&name));
    store.read_rows(&name, 0..32, &mut after).unwrap();
    assert_eq!(after[3 * 32..5 * 32], [2.5; 64]);
    assert_eq!((&after[..96], &after[160..]), (&before[..96], &before[160..]));
    let id = model.store().find(&name).unwrap();
    assert_eq!(model.store().get(&engine, id).unwrap().to_f32().unwrap()[96], 2.5);
    store.forget(FIRST);
    store.read_rows(&name, 0..32, &mut after).unwrap();
    assert_eq!(after, before);
    assert!(store.write_rows(&name, 31..33, &[0.0; 64]).is_err());
    assert!(store.read_rows(&name, 0..1, &mut [0.0; 31]).is_err());
    assert!(store.rerun(FIRST, &[0], &[], &|_, _| Ok(())).is_err(), "nothing was kept");
    let ids = engine.budget.tensor::<i64>(vec![1, 2], &[1, 2]).unwrap();
    model.forward(Run { engine: &engine, hooks: None }, &ids, None).unwrap();
}

#[test]
fn what_is_added_to_a_module_is_a_parameter_until_it_is_forgotten() {
    let (_dir, model, engine) = model();
    let mut store = ModelStore::new(model, engine).unwrap();
    let array = lifecycle::f32_array(&[vec![1.0, 2.0]]).unwrap();
    let name = format!("{FIRST}.weight_scale");
    store.set_array(&name, array.clone()).unwrap();
    assert_eq!(store.array(&name).unwrap(), array);
    assert_eq!(store.module(FIRST).unwrap().parameters["weight_scale"].shape, [1, 2]);
    store.forget_added(FIRST);
    assert!(store.array(&name).is_err() && !store.module(FIRST).unwrap().parameters.contains_key("weight_scale"));
    assert!(store.module(FIRST).unwrap().parameters.contains_key("weight"));
    assert!(store.set_array("model.layers.9.x.weight_scale", array).is_err());
}
