//! A modifier that records its callbacks, a model that has a name, and readers of golden cases.

use std::sync::{Arc, Mutex};

use lifecycle::{
    Event, EventType, Modifier, ModifierDriver, ModuleFacts, ModuleStore, ReferenceKind, Result, Settings, State,
    error::Error,
};
use serde_json::Value;
use testkit::Goldens;

/// The cases of a golden file; their number is part of the test, so that none is skipped silently.
pub(crate) fn cases(file: &str, count: usize) -> Vec<Value> {
    let golden = Goldens::open("core").json(file);
    let cases = golden["cases"].as_array().unwrap().clone();
    assert_eq!(cases.len(), count, "{file}");
    cases
}

/// The outcome of a golden case: `{"ok": value}` or `{"error": kind}`.
pub(crate) fn outcome(result: Result<Value>) -> Value {
    match result {
        Ok(value) => serde_json::json!({"ok": value}),
        Err(error) => serde_json::json!({"error": kind(&error)}),
    }
}

/// The reference's name of an error's kind.
pub(crate) fn kind(error: &Error) -> &'static str {
    ReferenceKind::name(error.reference_kind())
}

/// Equality that takes 2 and 2.0 for the same number, as the reference does.
pub(crate) fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => left.as_f64() == right.as_f64(),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, value)| right.get(key).is_some_and(|other| same(value, other)))
        }
        (left, right) => left == right,
    }
}

/// The event type of a golden letter.
pub(crate) fn letter(letter: &str) -> EventType {
    match letter {
        "S" => EventType::BatchStart,
        "L" => EventType::LossCalculated,
        "P" => EventType::OptimPreStep,
        "Q" => EventType::OptimPostStep,
        "E" => EventType::BatchEnd,
        "c" => EventType::CalibrationStart,
        "s" => EventType::SequentialEpochEnd,
        "d" => EventType::CalibrationEnd,
        other => panic!("no event {other}"),
    }
}

/// What the toy's callbacks wrote down.
pub(crate) type Calls = Arc<Mutex<Vec<&'static str>>>;

/// A modifier that writes its callbacks down.
pub(crate) struct Toy {
    pub(crate) settings: Settings,
    pub(crate) calls: Calls,
    pub(crate) init_result: bool,
    pub(crate) final_result: bool,
}

impl Toy {
    pub(crate) fn new(start: Option<f64>, end: Option<f64>) -> Self {
        let settings = Settings { start, end, ..Settings::default() };
        Self { settings, calls: Calls::default(), init_result: true, final_result: true }
    }

    fn call(&self, name: &'static str) {
        self.calls.lock().unwrap().push(name);
    }
}

impl Modifier for Toy {
    fn type_name(&self) -> &str {
        "ToyModifier"
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn on_initialize(&mut self, _: &mut State) -> Result<bool> {
        self.call("initialize");
        Ok(self.init_result)
    }

    fn on_finalize(&mut self, _: &mut State) -> Result<bool> {
        self.call("finalize");
        Ok(self.final_result)
    }

    fn on_event(&mut self, _: &mut State, _: &Event) -> Result<()> {
        self.call("event");
        Ok(())
    }

    fn on_start(&mut self, _: &mut State, _: &Event) -> Result<()> {
        self.call("start");
        Ok(())
    }

    fn on_update(&mut self, _: &mut State, _: &Event) -> Result<()> {
        self.call("update");
        Ok(())
    }

    fn on_end(&mut self, _: &mut State, _: &Event) -> Result<()> {
        self.call("end");
        Ok(())
    }

    fn on_calibration_start(&mut self, _: &mut State, _: &Event) -> Result<()> {
        self.call("calibration_start");
        Ok(())
    }

    fn on_sequential_epoch_end(&mut self, _: &mut State, _: &Event, _: &[String]) -> Result<()> {
        self.call("sequential_epoch_end");
        Ok(())
    }

    fn on_calibration_end(&mut self, _: &mut State, _: &Event) -> Result<()> {
        self.call("calibration_end");
        Ok(())
    }
}

/// The golden flags initialized, started, ended, finalized.
pub(crate) fn flags(driver: &ModifierDriver) -> String {
    let all = [driver.initialized(), driver.started(), driver.ended(), driver.finalized()];
    all.iter().map(|it| if *it { '1' } else { '0' }).collect()
}

/// A model of which only the name matters.
pub(crate) struct NamedModel(pub(crate) &'static str, pub(crate) Vec<ModuleFacts>);

impl NamedModel {
    pub(crate) fn boxed(name: &'static str) -> Box<dyn ModuleStore> {
        Box::new(Self(name, Vec::new()))
    }
}

impl ModuleStore for NamedModel {
    fn modules(&self) -> &[ModuleFacts] {
        &self.1
    }

    fn read_rows(&self, _: &str, _: std::ops::Range<usize>, _: &mut [f32]) -> Result<()> {
        Err(Error::failed("no weights"))
    }

    fn write_rows(&mut self, _: &str, _: std::ops::Range<usize>, _: &[f32]) -> Result<()> {
        Err(Error::failed("no weights"))
    }

    fn array(&self, _: &str) -> Result<compressed_tensors::Array> {
        Err(Error::failed("no weights"))
    }

    fn set_array(&mut self, _: &str, _: compressed_tensors::Array) -> Result<()> {
        Err(Error::failed("no weights"))
    }

    fn remove(&mut self, _: &str) -> Result<()> {
        Err(Error::failed("no weights"))
    }
}
