//! [`ModifierDriver`]: the one wrapper that checks in which order a modifier is called.

use serde_json::Value;

use crate::{
    Result,
    error::{Error, ErrorKind, Place},
    event::{Event, EventType},
    hooks::{HookGuard, Hooks, Tap},
    model::Sample,
    modifier::{Modifier, is_calibration_event},
    state::State,
};

/// How far a modifier has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not initialized, or its initialization said no.
    Fresh,
    /// Between initialize and finalize.
    Initialized,
    /// Done.
    Finalized,
}

/// Which callbacks the calibration events have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CalibrationEvents {
    /// `on_calibration_start`, `on_sequential_epoch_end` and `on_calibration_end`.
    #[default]
    Callbacks,
    /// None but `on_event`: the contract of releases 0.5 to 0.12.
    OnEventOnly,
}

/// A modifier with its phase, its schedule's progress and its registered taps.
pub struct ModifierDriver {
    modifier: Box<dyn Modifier>,
    position: usize,
    phase: Phase,
    started: bool,
    ended: bool,
    calibration_events: CalibrationEvents,
    guards: Vec<HookGuard>,
}

impl ModifierDriver {
    /// Wraps a fresh modifier at a position of the recipe.
    pub fn new(position: usize, modifier: Box<dyn Modifier>) -> Self {
        Self {
            modifier,
            position,
            phase: Phase::Fresh,
            started: false,
            ended: false,
            calibration_events: CalibrationEvents::default(),
            guards: Vec::new(),
        }
    }

    /// The same, with the given callbacks for calibration events.
    #[must_use]
    pub fn with_calibration_events(self, calibration_events: CalibrationEvents) -> Self {
        Self { calibration_events, ..self }
    }

    /// The modifier.
    pub fn modifier(&self) -> &dyn Modifier {
        &*self.modifier
    }

    /// The modifier, to restore a snapshot or take its data.
    pub fn modifier_mut(&mut self) -> &mut dyn Modifier {
        &mut *self.modifier
    }

    /// Position in the recipe, from 0; the owner number of its hooks.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How far the modifier has come.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether `initialize` has succeeded, finalized or not.
    pub fn initialized(&self) -> bool {
        self.phase != Phase::Fresh
    }

    /// Whether the schedule has started, or calibration has.
    pub fn started(&self) -> bool {
        self.started
    }

    /// Whether the schedule has ended, or calibration has.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Whether `finalize` has succeeded.
    pub fn finalized(&self) -> bool {
        self.phase == Phase::Finalized
    }

    /// Initializes the modifier, and starts it where step 0 is in its schedule.
    ///
    /// # Errors
    /// A second call, or what the modifier reports.
    pub fn initialize(&mut self, state: &mut State) -> Result<Option<Value>> {
        match self.phase {
            Phase::Fresh => {}
            Phase::Initialized => return self.refuse("initialize", "is initialized"),
            Phase::Finalized => return self.refuse("initialize", "is finalized"),
        }
        self.placed(|it| {
            if it.modifier.on_initialize(state)? {
                it.phase = Phase::Initialized;
            }
            let event = Event::of(EventType::BatchStart);
            if it.modifier.should_start(&event)? {
                it.modifier.on_start(state, &event)?;
                it.started = true;
            }
            Ok(())
        })
    }

    /// Asks the modifier whether calibration can start.
    ///
    /// # Errors
    /// What the modifier refuses.
    pub fn check(&self, state: &State) -> Result<()> {
        self.modifier.check(state).map_err(|error| error.at(self.place()))
    }

    /// Finalizes the modifier and drops its taps.
    ///
    /// # Errors
    /// A call before initialization, a second call, or what the modifier reports.
    pub fn finalize(&mut self, state: &mut State) -> Result<Option<Value>> {
        match self.phase {
            Phase::Initialized => {}
            Phase::Fresh => return self.refuse("finalize", "is not initialized"),
            Phase::Finalized => return self.refuse("finalize", "is finalized"),
        }
        self.guards.clear();
        self.placed(|it| {
            if it.modifier.on_finalize(state)? {
                it.phase = Phase::Finalized;
            }
            Ok(())
        })
    }

    /// Hands an event to the modifier's callbacks. `modules` are those of a finished subgraph.
    ///
    /// # Errors
    /// A call before initialization or after finalization, a [`EventType::SequentialEpochEnd`] without
    /// modules, or what the modifier reports.
    pub fn update_event(
        &mut self,
        state: &mut State,
        hooks: &Hooks,
        event: &Event,
        modules: Option<&[String]>,
    ) -> Result<Option<Value>> {
        match self.phase {
            Phase::Initialized => {}
            Phase::Fresh => return self.refuse("update", "is not initialized"),
            Phase::Finalized => return self.refuse("update", "is finalized"),
        }
        self.placed(|it| {
            it.modifier.on_event(state, event)?;
            match event.type_ {
                Some(type_) if is_calibration_event(type_) && it.calibration_events == CalibrationEvents::Callbacks => {
                    it.calibration_event(type_, state, hooks, event, modules)
                }
                Some(EventType::BatchStart) if !it.started && it.modifier.should_start(event)? => {
                    it.modifier.on_start(state, event)?;
                    it.started = true;
                    it.modifier.on_update(state, event)
                }
                Some(EventType::BatchEnd) if !it.ended && it.modifier.should_end(event)? => {
                    it.modifier.on_end(state, event)?;
                    it.ended = true;
                    it.modifier.on_update(state, event)
                }
                _ if it.started && !it.ended => it.modifier.on_update(state, event),
                _ => Ok(()),
            }
        })
    }

    /// Hands a tapped value to the modifier.
    ///
    /// # Errors
    /// What the modifier reports.
    pub fn on_tap(&mut self, tap: &Tap, sample: &Sample<'_>) -> Result<()> {
        let place = self.place();
        self.modifier.on_tap(tap, sample).map_err(|error| error.at(place))
    }

    /// Tells the modifier that a value which it has heard at taps is divided since.
    ///
    /// # Errors
    /// What the modifier reports.
    pub fn divide(&mut self, taps: &[Tap], divisors: &[f32]) -> Result<()> {
        let place = self.place();
        self.modifier.divide(taps, divisors).map_err(|error| error.at(place))
    }

    fn calibration_event(
        &mut self,
        type_: EventType,
        state: &mut State,
        hooks: &Hooks,
        event: &Event,
        modules: Option<&[String]>,
    ) -> Result<()> {
        match type_ {
            EventType::CalibrationStart => {
                self.modifier.on_calibration_start(state, event)?;
                self.started = true;
                if let Some(model) = &state.model {
                    let taps = self.modifier.taps(&**model)?;
                    self.guards = taps.into_iter().map(|tap| hooks.register(self.position, tap)).collect();
                }
                Ok(())
            }
            EventType::SequentialEpochEnd => {
                let missing = || ErrorKind::MissingArgument { event_type: type_, argument: "modules" };
                self.modifier.on_sequential_epoch_end(state, event, modules.ok_or_else(missing)?)
            }
            _ => {
                self.modifier.on_calibration_end(state, event)?;
                self.ended = true;
                self.guards.clear();
                Ok(())
            }
        }
    }

    /// Runs a call; its faults carry the modifier's place, its data is handed back.
    fn placed(&mut self, call: impl FnOnce(&mut Self) -> Result<()>) -> Result<Option<Value>> {
        let place = self.place();
        call(self).map_err(|error| error.at(place))?;
        Ok(self.modifier.take_data())
    }

    fn refuse<T>(&self, operation: &'static str, state: &'static str) -> Result<T> {
        Err(Error::from(ErrorKind::ModifierPhase { operation, state }).at(self.place()))
    }

    fn place(&self) -> Place {
        Place::Modifier { index: self.position, type_name: self.modifier.type_name().to_owned() }
    }
}
