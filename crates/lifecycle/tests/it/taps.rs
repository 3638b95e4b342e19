//! Taps, focus and snapshots: what a pipeline does while the model runs.

use std::sync::{Arc, Mutex};

use lifecycle::{
    CompressionSession, Event, HookView, InitializeArgs, MemoryModel, Modifier, ModuleStore, RecipeInput, Result,
    Sample, Settings, Signal, State, StateUpdate, Tap, TapPoint, error::Error, f32_array,
};
use serde_json::{Value, json};

use crate::toys::kind;

/// Sums what its taps show, and says at each end what it has.
struct Summing {
    settings: Settings,
    points: Vec<Tap>,
    sum: f64,
    ended: bool,
    fails: bool,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Modifier for Summing {
    fn type_name(&self) -> &str {
        "SummingModifier"
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn needs_data(&self) -> bool {
        true
    }

    fn taps(&self, model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        for tap in &self.points {
            model.module(&tap.module)?;
        }
        Ok(self.points.clone())
    }

    fn on_tap(&mut self, tap: &Tap, sample: &Sample<'_>) -> Result<()> {
        let [rows, columns] = *sample.value.shape() else { return Err(Error::failed("expected a matrix")) };
        let mut values = vec![0.0; rows * columns];
        sample.value.read_rows(0..rows, &mut values)?;
        self.sum += values.iter().map(|it| f64::from(*it)).sum::<f64>();
        self.seen.lock().unwrap().push(format!("{tap}#{}", sample.batch_idx));
        Ok(())
    }

    fn snapshot(&self) -> Result<Value> {
        Ok(json!({"sum": self.sum}))
    }

    fn restore(&mut self, snapshot: &Value) -> Result<()> {
        self.sum = snapshot["sum"].as_f64().ok_or_else(|| Error::failed("no sum"))?;
        Ok(())
    }

    fn take_data(&mut self) -> Option<Value> {
        std::mem::take(&mut self.ended).then(|| json!(self.sum))
    }

    fn on_initialize(&mut self, _: &mut State) -> Result<bool> {
        Ok(true)
    }

    fn on_calibration_end(&mut self, _: &mut State, _: &Event) -> Result<()> {
        self.ended = true;
        if self.fails { Err(Error::failed("no use")) } else { Ok(()) }
    }
}

type Seen = Arc<Mutex<Vec<String>>>;

fn session(points: Vec<Vec<Tap>>, fails: bool) -> (CompressionSession, Vec<Seen>) {
    let weight = || [("weight", f32_array(&[vec![1.0, 2.0]]).unwrap())];
    let model = MemoryModel::new().with_module("up", "Linear", weight()).with_module("down", "Linear", weight());
    let seen: Vec<Seen> = points.iter().map(|_| Seen::default()).collect();
    let inputs: Vec<Box<dyn Modifier>> = points
        .iter()
        .zip(&seen)
        .map(|(points, seen)| -> Box<dyn Modifier> {
            let (points, seen) = (points.clone(), Arc::clone(seen));
            Box::new(Summing { settings: Settings::default(), points, sum: 0.0, ended: false, fails, seen })
        })
        .collect();
    let mut session = CompressionSession::default();
    let state = StateUpdate { model: Some(Box::new(model)), ..StateUpdate::default() };
    let recipe = Some(RecipeInput::from(inputs));
    session.initialize(InitializeArgs { recipe, state, ..InitializeArgs::default() }).unwrap();
    (session, seen)
}

/// Shows a value at both modules' inputs, as a running model does.
fn run(session: &mut CompressionSession, batch_idx: usize, view: &HookView<'_>) -> Result<()> {
    let value = f32_array(&[vec![1.0, 2.0], vec![3.0, 4.0]]).unwrap();
    let (model, mut sink) = session.lifecycle.running();
    let names: Vec<String> = model.unwrap().modules().iter().map(|it| it.name.clone()).collect();
    for name in names {
        let tap = Tap::new(name, TapPoint::Input);
        if sink.wants(&tap, view) {
            let sample = Sample { batch_idx, call_idx: 0, edge: None, value: &value, unchanged: None, mask: None };
            assert!(sample.value.downcast_ref::<compressed_tensors::Array>().is_some());
            sink.feed(&tap, &sample, view)?;
        }
    }
    Ok(())
}

#[test]
fn values_reach_those_who_listen_between_start_and_end_of_calibration() {
    let (up, down) = (Tap::new("up", TapPoint::Input), Tap::new("down", TapPoint::Input));
    let (mut session, seen) = session(vec![vec![up.clone()], vec![up, down]], false);
    run(&mut session, 0, &HookView::ALL).unwrap();
    session.lifecycle.signal(Signal::CalibrationStart).unwrap();
    assert_eq!(session.lifecycle.hooks().len(), 3);
    run(&mut session, 1, &HookView::ALL).unwrap();
    run(&mut session, 2, &HookView::NONE).unwrap();
    session.lifecycle.set_focus(Some(1));
    run(&mut session, 3, &HookView::ALL).unwrap();
    session.lifecycle.set_focus(None);
    let data = session.lifecycle.signal(Signal::CalibrationEnd).unwrap();
    assert_eq!(data, [json!(10.0), json!(40.0)]);
    assert!(session.lifecycle.hooks().is_empty());
    run(&mut session, 4, &HookView::ALL).unwrap();
    assert_eq!(*seen[0].lock().unwrap(), ["up:input#1"]);
    assert_eq!(*seen[1].lock().unwrap(), ["up:input#1", "down:input#1", "up:input#3", "down:input#3"]);
}

#[test]
fn under_focus_events_reach_one_modifier_and_finalize_reaches_all() {
    let up = Tap::new("up", TapPoint::Input);
    let (mut session, _) = session(vec![vec![up.clone()], vec![up]], false);
    session.lifecycle.set_focus(Some(1));
    session.callbacks().calibration_start().unwrap();
    let started: Vec<bool> = session.lifecycle.modifiers().iter().map(|it| it.started()).collect();
    assert_eq!(started, [false, true]);
    assert_eq!(session.lifecycle.hooks().len(), 1);
    session.finalize().unwrap();
    assert!(session.lifecycle.modifiers().iter().all(|it| it.finalized()));
    assert!(session.lifecycle.hooks().is_empty());
}

#[test]
fn a_snapshot_carries_a_run_over_to_a_fresh_session_of_the_same_recipe() {
    let up = Tap::new("up", TapPoint::Input);
    let (mut first, _) = session(vec![vec![up.clone()]], false);
    first.callbacks().calibration_start().unwrap();
    run(&mut first, 0, &HookView::ALL).unwrap();
    let snapshot = first.lifecycle.snapshot().unwrap();
    let (mut second, _) = session(vec![vec![up.clone()]], false);
    second.lifecycle.restore(&snapshot).unwrap();
    assert_eq!(second.lifecycle.snapshot().unwrap(), snapshot);
    let (mut other, _) = session(vec![vec![up.clone()], vec![up]], false);
    assert!(other.lifecycle.restore(&snapshot).is_err());
    assert!(second.lifecycle.restore(&json!({})).is_err());
}

#[test]
fn faults_name_the_modifier_and_a_reset_survives_them() {
    let (mut session, _) = session(vec![vec![Tap::new("gone", TapPoint::Output)]], true);
    let error = session.callbacks().calibration_start().err().unwrap();
    assert_eq!(error.to_string(), "modifier 0 (SummingModifier): the model has no module `gone`");
    assert_eq!(kind(&error), "AttributeError");
    assert!(session.callbacks().calibration_end().is_err());
    session.reset();
    assert!(!session.lifecycle.initialized() && session.lifecycle.modifiers().is_empty());
    assert!(session.state().model.is_none());
    assert_eq!(session.get_serialized_recipe(), None);
}

#[test]
fn a_session_serializes_the_recipe_of_its_modifiers() {
    let (session, _) = session(vec![Vec::new()], false);
    let yaml = session.get_serialized_recipe().unwrap();
    assert_eq!(yaml, "default_stage:\n  default_modifiers:\n    SummingModifier: {requires_calibration_data: true}\n");
}
