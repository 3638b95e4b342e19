//! The contract of a [`Modifier`]: declared facts, callbacks, carried state.
//!
//! A modifier hears events and changes modules; it knows no pipeline and no engine. It sees the model
//! through [`ModuleStore`] in [`State`], and activations through
//! [`Sample`]s at the [`Tap`]s it asked for. A pipeline drives it only through
//! [`CompressionLifecycle`](crate::CompressionLifecycle), which wraps it in a
//! [`ModifierDriver`](crate::ModifierDriver): the one place that checks the order of calls.
//!
//! What a pipeline asks before it starts:
//! * [`needs_data`](Modifier::needs_data) chooses between a calibrated and a data-free run;
//! * [`propagates_error`](Modifier::propagates_error) says whether the next wave may see changed weights;
//! * [`targets`](Modifier::targets) and [`wave`](Modifier::wave) cut the model into waves;
//! * [`reads`](Modifier::reads) and [`writes`](Modifier::writes) say when a module has no writer left;
//! * [`taps`](Modifier::taps) say what to feed to [`on_tap`](Modifier::on_tap);
//! * [`divisions`](Modifier::divisions) and [`divisible`](Modifier::divisible) say when values that one modifier divides may
//!   have been heard by those after it before: they are told by [`divide`](Modifier::divide);
//! * [`rescales`](Modifier::rescales) says that it leaves what the model computes, which is checked on a batch.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    Result,
    error::Error,
    event::{Event, EventType},
    hooks::Tap,
    model::{ModuleStore, Sample},
    state::State,
};

/// Fields of a modifier as a recipe says them, in order.
pub type Fields = Map<String, Value>;

/// The fields that every modifier has: place in the recipe and schedule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Position among the model's modifiers.
    pub index: Option<i64>,
    /// Name of the group in the recipe.
    pub group: Option<String>,
    /// First index at which the modifier works.
    pub start: Option<f64>,
    /// First index at which it no longer works.
    pub end: Option<f64>,
    /// Interval between updates.
    pub update: Option<f64>,
}

/// Which stretch of the model a modifier must see as one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wave {
    /// Its targets: every target is changed from its own inputs alone.
    Targets,
    /// The decoder layer: it writes into modules before those it measured.
    Layer,
}

/// A value of which a modifier divides every channel by a positive number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Division {
    /// The module that gives the value.
    pub module: String,
    /// The modules that are changed so that they make of the divided value what they made of it before.
    pub balanced: Vec<String>,
}

/// By what a modifier has divided a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Divisors {
    /// The module that gives the value.
    pub module: String,
    /// A positive number for every channel.
    pub by: Vec<f32>,
}

/// A step of a recipe that changes a model.
///
/// Only [`type_name`](Self::type_name), [`settings`](Self::settings) and
/// [`on_initialize`](Self::on_initialize) must be written; everything else has a default that does
/// nothing or declares nothing.
pub trait Modifier: Send {
    /// The type's name, the key in a recipe.
    fn type_name(&self) -> &str;

    /// Place in the recipe and schedule.
    fn settings(&self) -> &Settings;

    /// The modifier's own fields as a recipe says them, defaults written out, resolved values included;
    /// without those of [`Settings`].
    fn fields(&self) -> Fields {
        Fields::new()
    }

    /// Whether the modifier needs calibration data.
    fn needs_data(&self) -> bool {
        false
    }

    /// Whether waves after a changed one should see its changes. One modifier that says no decides for
    /// its run.
    fn propagates_error(&self) -> bool {
        true
    }

    /// Patterns of the modules that the modifier works on.
    fn targets(&self) -> Vec<String> {
        Vec::new()
    }

    /// Which stretch of the model it must see as one piece.
    fn wave(&self) -> Wave {
        Wave::Targets
    }

    /// Names of the modules whose weights or activations it reads.
    ///
    /// # Errors
    /// Targets that match nothing.
    fn reads(&self, _model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Names of the modules that it may still change.
    ///
    /// # Errors
    /// Targets that match nothing.
    fn writes(&self, _model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Where it taps values from the start of calibration to its end.
    ///
    /// # Errors
    /// Targets that match nothing.
    fn taps(&self, _model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        Ok(Vec::new())
    }

    /// Whether it is to hear beside each value that of a run in which nothing has been changed.
    fn hears_unchanged(&self) -> bool {
        false
    }

    /// Names of the modules that it runs again at the end of a wave, so that their inputs must be kept.
    ///
    /// # Errors
    /// Targets that match nothing.
    fn reruns(&self, _model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Values that it divides when it changes their wave.
    ///
    /// # Errors
    /// Targets that match nothing.
    fn divisions(&self, _model: &dyn ModuleStore) -> Result<Vec<Division>> {
        Ok(Vec::new())
    }

    /// Names of the modules whose outputs it changes, where everything that reads these makes up for it, so that all other modules
    /// give what they gave; none where it does not promise that. A pipeline holds it to the promise.
    ///
    /// # Errors
    /// Targets that match nothing.
    fn rescales(&self, _model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Taps of which it can [`divide`](Self::divide) afterwards what it has heard.
    ///
    /// # Errors
    /// Targets that match nothing.
    fn divisible(&self, _model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        Ok(Vec::new())
    }

    /// By what it divided values when it last changed a wave.
    fn take_divisors(&mut self) -> Vec<Divisors> {
        Vec::new()
    }

    /// Makes statistics of a value those of the value divided, channel by channel; the taps are among those that it calls
    /// divisible, and all show this value.
    ///
    /// # Errors
    /// Divisors of another number than channels.
    fn divide(&mut self, _taps: &[Tap], _divisors: &[f32]) -> Result<()> {
        Ok(())
    }

    /// Takes a tapped value. Called in the order of batches, while the model is running: the state is
    /// out of reach.
    ///
    /// # Errors
    /// A value that the modifier cannot use.
    fn on_tap(&mut self, _tap: &Tap, _sample: &Sample<'_>) -> Result<()> {
        Ok(())
    }

    /// All that the modifier carries between two waves: statistics, random generators, thresholds.
    ///
    /// # Errors
    /// State that cannot be written.
    fn snapshot(&self) -> Result<Value> {
        Ok(Value::Null)
    }

    /// Takes up a [`snapshot`](Self::snapshot).
    ///
    /// # Errors
    /// A snapshot of another modifier or version.
    fn restore(&mut self, snapshot: &Value) -> Result<()> {
        match snapshot {
            Value::Null => Ok(()),
            _ => Err(Error::failed(format_args!("{} carries no state to restore", self.type_name()))),
        }
    }

    /// What the modifier has to say about its last call, for the report.
    fn take_data(&mut self) -> Option<Value> {
        None
    }

    /// Whether the modifier starts at this event.
    ///
    /// # Errors
    /// An event without an index.
    fn should_start(&self, event: &Event) -> Result<bool> {
        let Settings { start, end, .. } = self.settings();
        let Some(start) = *start else { return Ok(false) };
        let index = event.current_index()?;
        Ok(start <= index && end.is_none_or(|end| index < end))
    }

    /// Whether the modifier ends at this event.
    ///
    /// # Errors
    /// An event without an index.
    fn should_end(&self, event: &Event) -> Result<bool> {
        let Some(end) = self.settings().end else { return Ok(false) };
        Ok(event.current_index()? >= end)
    }

    /// Resolves targets and prepares modules. `false` leaves the modifier uninitialized.
    ///
    /// # Errors
    /// A model or configuration that does not fit.
    fn on_initialize(&mut self, state: &mut State) -> Result<bool>;

    /// Looks, once all modifiers of the recipe are initialized, for what would stop calibration: heard before anything is
    /// written.
    ///
    /// # Errors
    /// A model, a scheme of another modifier, or data that it cannot work with.
    fn check(&self, _state: &State) -> Result<()> {
        Ok(())
    }

    /// Cleans up. `false` leaves the modifier unfinalized.
    ///
    /// # Errors
    /// Work that could not be finished.
    fn on_finalize(&mut self, _state: &mut State) -> Result<bool> {
        Ok(true)
    }

    /// Hears every event, before the callbacks below.
    ///
    /// # Errors
    /// Any fault of the modifier.
    fn on_event(&mut self, _state: &mut State, _event: &Event) -> Result<()> {
        Ok(())
    }

    /// The schedule has reached `start`.
    ///
    /// # Errors
    /// Any fault of the modifier.
    fn on_start(&mut self, _state: &mut State, _event: &Event) -> Result<()> {
        Ok(())
    }

    /// An event between start and end, both included.
    ///
    /// # Errors
    /// Any fault of the modifier.
    fn on_update(&mut self, _state: &mut State, _event: &Event) -> Result<()> {
        Ok(())
    }

    /// The schedule has reached `end`.
    ///
    /// # Errors
    /// Any fault of the modifier.
    fn on_end(&mut self, _state: &mut State, _event: &Event) -> Result<()> {
        Ok(())
    }

    /// Calibration begins. The taps are registered right after.
    ///
    /// # Errors
    /// Any fault of the modifier.
    fn on_calibration_start(&mut self, _state: &mut State, _event: &Event) -> Result<()> {
        Ok(())
    }

    /// All batches have run through `modules`: time to change them.
    ///
    /// # Errors
    /// Any fault of the modifier.
    fn on_sequential_epoch_end(&mut self, _state: &mut State, _event: &Event, _modules: &[String]) -> Result<()> {
        Ok(())
    }

    /// Calibration is done. The taps are gone right after.
    ///
    /// # Errors
    /// Any fault of the modifier.
    fn on_calibration_end(&mut self, _state: &mut State, _event: &Event) -> Result<()> {
        Ok(())
    }
}

/// All fields that a saved recipe shows for a modifier: settings and own fields, without nulls, without
/// names that end in `_`, and without `group`, which the recipe's structure says.
pub fn recipe_fields(modifier: &dyn Modifier) -> Fields {
    let own = modifier.fields();
    let settings = modifier.settings();
    let base = [
        ("requires_calibration_data", Value::Bool(modifier.needs_data())),
        ("index", settings.index.into()),
        ("start", settings.start.into()),
        ("end", settings.end.into()),
        ("update", settings.update.into()),
    ];
    // A modifier that lists a base field itself decides where it stands.
    let base = base.into_iter().filter(|(name, _)| !own.contains_key(*name));
    let mut fields: Fields = base.map(|(name, value)| (name.to_owned(), value)).collect();
    fields.extend(own);
    fields.retain(|name, value| !value.is_null() && !name.ends_with('_') && name != "group");
    fields
}

/// Names of the calibration events that step 2 of the driver hands to callbacks of their own.
pub(crate) fn is_calibration_event(event_type: EventType) -> bool {
    matches!(event_type, EventType::CalibrationStart | EventType::SequentialEpochEnd | EventType::CalibrationEnd)
}
