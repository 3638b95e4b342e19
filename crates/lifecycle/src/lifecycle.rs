//! [`CompressionLifecycle`]: initialize, events in order, finalize, for all modifiers of a recipe.
//!
//! A pipeline drives it: it fires signals between `initialize` and `finalize`, and while the model runs it
//! feeds tapped values through [`CompressionLifecycle::running`]. Every event carries the step, the batch
//! and, where known, the epoch.

use serde_json::{Map, Value, json};

use crate::{
    Result,
    driver::ModifierDriver,
    error::{Error, ErrorKind},
    event::{Event, EventType},
    hooks::{HookView, Hooks, Tap},
    model::{ModuleStore, Sample},
    modifier::Divisors,
    recipe::{Recipe, RecipeInput, Registry},
    state::{Attachment, State, StateUpdate},
};

/// The order of events within a batch.
pub const EVENT_ORDER: [EventType; 5] = [
    EventType::BatchStart,
    EventType::LossCalculated,
    EventType::OptimPreStep,
    EventType::OptimPostStep,
    EventType::BatchEnd,
];

/// What [`CompressionLifecycle::initialize`] takes.
#[derive(Default)]
pub struct InitializeArgs {
    /// Where the modifiers come from; none means an empty recipe.
    pub recipe: Option<RecipeInput>,
    /// Keeps only stages whose key starts with this.
    pub recipe_stage: Option<String>,
    /// Values for `eval(...)` in the recipe; they replace the recipe's own.
    pub recipe_args: Option<Map<String, Value>>,
    /// Everything for the state.
    pub state: StateUpdate,
}

/// What comes with an event.
#[derive(Clone, Default)]
pub struct EventPayload {
    /// The batch, with [`EventType::BatchStart`].
    pub batch_data: Option<Attachment>,
    /// The loss, which [`EventType::LossCalculated`] needs.
    pub loss: Option<f64>,
    /// Names of the modules of a finished subgraph, which [`EventType::SequentialEpochEnd`] needs.
    pub modules: Option<Vec<String>>,
}

/// An event of a driver with what belongs to it: wrong combinations cannot be written.
#[derive(Clone)]
pub enum Signal {
    /// A batch begins.
    BatchStart {
        /// The batch.
        batch_data: Option<Attachment>,
    },
    /// The loss of the batch is known.
    LossCalculated {
        /// The loss.
        loss: f64,
    },
    /// The optimizer is about to step.
    OptimPreStep,
    /// The optimizer has stepped.
    OptimPostStep,
    /// A batch is done.
    BatchEnd,
    /// Calibration begins.
    CalibrationStart,
    /// One subgraph has seen all batches.
    SequentialEpochEnd {
        /// Names of its modules, parents before children.
        modules: Vec<String>,
    },
    /// Calibration is done.
    CalibrationEnd,
}

impl Signal {
    /// The event type, and what comes with it.
    pub fn into_parts(self) -> (EventType, EventPayload) {
        let payload = EventPayload::default();
        match self {
            Self::BatchStart { batch_data } => (EventType::BatchStart, EventPayload { batch_data, ..payload }),
            Self::LossCalculated { loss } => (EventType::LossCalculated, EventPayload { loss: Some(loss), ..payload }),
            Self::OptimPreStep => (EventType::OptimPreStep, payload),
            Self::OptimPostStep => (EventType::OptimPostStep, payload),
            Self::BatchEnd => (EventType::BatchEnd, payload),
            Self::CalibrationStart => (EventType::CalibrationStart, payload),
            Self::SequentialEpochEnd { modules } => {
                (EventType::SequentialEpochEnd, EventPayload { modules: Some(modules), ..payload })
            }
            Self::CalibrationEnd => (EventType::CalibrationEnd, payload),
        }
    }
}

/// Drives the modifiers of a recipe: `Fresh → Initialized → Finalized`, and back by `reset`.
#[derive(Default)]
pub struct CompressionLifecycle {
    /// What the modifiers share.
    pub state: State,
    /// The recipe in force.
    pub recipe: Recipe,
    registry: Registry,
    modifiers: Vec<ModifierDriver>,
    hooks: Hooks,
    focus: Option<usize>,
    initialized: bool,
    finalized: bool,
    order: OrderGuard,
    counters: Counters,
}

/// Checks the order of events within batches.
#[derive(Clone, Copy, Debug)]
struct OrderGuard {
    last: EventType,
}

impl Default for OrderGuard {
    fn default() -> Self {
        Self { last: EventType::BatchEnd }
    }
}

impl OrderGuard {
    /// Records an event of a batch that may follow the last one; other events are always accepted.
    fn accept(&mut self, event_type: EventType) -> Result<()> {
        let position = |type_| EVENT_ORDER.iter().position(|it| *it == type_);
        let Some(next) = position(event_type) else { return Ok(()) };
        let accepted = match event_type {
            EventType::BatchStart => self.last != EventType::BatchStart,
            _ => position(self.last).is_none_or(|last| last <= next),
        };
        if !accepted {
            let order = EVENT_ORDER.to_vec();
            return Err(ErrorKind::EventOrder { order, last: self.last, event_type }.into());
        }
        self.last = event_type;
        Ok(())
    }
}

/// Step and batch of the run.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    global_step: i64,
    global_batch: i64,
    /// Whether a batch has started, so that the next start is another batch.
    in_batches: bool,
    /// Whether the optimizer has stepped since the last batch started.
    stepped: bool,
}

impl Counters {
    /// Takes the step that the caller names, or counts it.
    fn advance(&mut self, event_type: EventType, global_step: Option<i64>) {
        if event_type == EventType::BatchStart {
            if self.in_batches {
                self.global_batch = self.global_batch.saturating_add(1);
            }
            if self.stepped && global_step.is_none() {
                self.global_step = self.global_step.saturating_add(1);
            }
            self.in_batches = true;
            self.stepped = false;
        }
        self.stepped |= event_type == EventType::OptimPostStep;
        self.global_step = global_step.unwrap_or(self.global_step);
    }
}

impl CompressionLifecycle {
    /// A fresh lifecycle whose recipes may name the registry's modifiers.
    pub fn new(registry: Registry) -> Self {
        Self { registry, ..Self::default() }
    }

    /// The modifier types that recipes may name.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Whether `initialize` has succeeded.
    pub fn initialized(&self) -> bool {
        self.initialized
    }

    /// Whether `finalize` has succeeded.
    pub fn finalized(&self) -> bool {
        self.finalized
    }

    /// The last event of a batch.
    pub fn last_event_type(&self) -> EventType {
        self.order.last
    }

    /// The step of the last event.
    pub fn global_step(&self) -> i64 {
        self.counters.global_step
    }

    /// The modifiers in the order of execution.
    pub fn modifiers(&self) -> &[ModifierDriver] {
        &self.modifiers
    }

    /// The hooks of this run.
    pub fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    /// Lets events and taps reach one modifier only, or all again. `initialize` and `finalize` always
    /// reach all. The independent pipeline runs one modifier after the other this way.
    pub fn set_focus(&mut self, focus: Option<usize>) {
        self.focus = focus;
    }

    /// The modifier that alone hears events and taps, where one was chosen.
    pub fn focus(&self) -> Option<usize> {
        self.focus
    }

    /// Updates the state and, the first time, builds and initializes the modifiers.
    ///
    /// Gives what the modifiers report, or `None` for a further call, which only updates the state.
    ///
    /// # Errors
    /// A recipe that does not resolve, or a modifier that does not initialize; the lifecycle then stays
    /// uninitialized.
    pub fn initialize(&mut self, args: InitializeArgs) -> Result<Option<Vec<Value>>> {
        self.state.update(args.state);
        if self.initialized {
            return Ok(None);
        }
        if let Some(start) = self.state.start {
            let mut event = self.event_of(EventType::Initialize);
            event.set_current_index(start);
            self.counters.global_step = event.global_step;
            self.counters.global_batch = event.global_batch;
        }
        let input = args.recipe.unwrap_or_default();
        let loaded = input.load(&self.registry, args.recipe_stage.as_deref(), args.recipe_args)?;
        self.recipe = loaded.recipe;
        let wrap = |(position, modifier)| ModifierDriver::new(position, modifier);
        self.modifiers = loaded.modifiers.into_iter().enumerate().map(wrap).collect();
        let mut data = Vec::new();
        for modifier in &mut self.modifiers {
            data.extend(modifier.initialize(&mut self.state)?);
        }
        self.initialized = true;
        tracing::info!(modifiers = self.modifiers.len(), "compression lifecycle initialized");
        Ok(Some(data))
    }

    /// Asks all modifiers whether calibration can start.
    ///
    /// # Errors
    /// What the first of them refuses.
    pub fn check(&self) -> Result<()> {
        self.modifiers.iter().try_for_each(|it| it.check(&self.state))
    }

    /// Finalizes all modifiers.
    ///
    /// # Errors
    /// A call before `initialize`, a second call, or what a modifier reports.
    pub fn finalize(&mut self) -> Result<Vec<Value>> {
        self.check_running("finalize")?;
        let mut data = Vec::new();
        for modifier in &mut self.modifiers {
            data.extend(modifier.finalize(&mut self.state)?);
        }
        self.finalized = true;
        tracing::info!(modifiers = self.modifiers.len(), "compression lifecycle finalized");
        Ok(data)
    }

    /// Hands an event to all modifiers and gives what they report.
    ///
    /// `global_step` is the step of the event; `None` keeps the step, and counts it up at the first batch
    /// after an optimizer step.
    ///
    /// # Errors
    /// In this order: a call before `initialize` or after `finalize`; an event that is a method; an event
    /// out of [`EVENT_ORDER`]; a loss event without a loss, whose type is recorded all the same; and what
    /// a modifier reports.
    pub fn event(
        &mut self,
        event_type: EventType,
        global_step: Option<i64>,
        payload: EventPayload,
    ) -> Result<Vec<Value>> {
        self.check_running("invoke an event")?;
        if matches!(event_type, EventType::PreInit | EventType::Initialize | EventType::Finalize) {
            return Err(ErrorKind::NotAnEvent { event_type }.into());
        }
        self.order.accept(event_type)?;
        if event_type == EventType::LossCalculated {
            let missing = ErrorKind::MissingArgument { event_type, argument: "loss" };
            self.state.loss = Some(payload.loss.ok_or(missing)?);
        }
        if payload.batch_data.is_some() {
            self.state.batch_data = payload.batch_data;
        }
        self.counters.advance(event_type, global_step);
        let event = self.event_of(event_type);
        tracing::debug!(event = %event_type, step = event.global_step, "handling event");
        let mut data = Vec::new();
        for modifier in focused(&mut self.modifiers, self.focus) {
            data.extend(modifier.update_event(&mut self.state, &self.hooks, &event, payload.modules.as_deref())?);
        }
        Ok(data)
    }

    /// Hands a typed event to all modifiers; steps are counted.
    ///
    /// # Errors
    /// As [`CompressionLifecycle::event`].
    pub fn signal(&mut self, signal: Signal) -> Result<Vec<Value>> {
        let (event_type, payload) = signal.into_parts();
        self.event(event_type, None, payload)
    }

    /// By what a modifier divided values when it last changed a wave.
    pub fn take_divisors(&mut self, modifier: usize) -> Vec<Divisors> {
        self.modifiers.get_mut(modifier).map(|it| it.modifier_mut().take_divisors()).unwrap_or_default()
    }

    /// Tells a modifier that a value which it has heard at taps is divided since.
    ///
    /// # Errors
    /// What the modifier reports.
    pub fn divide(&mut self, modifier: usize, taps: &[Tap], divisors: &[f32]) -> Result<()> {
        self.modifiers.get_mut(modifier).map_or(Ok(()), |it| it.divide(taps, divisors))
    }

    /// The model and the sink for its tapped values, for a pipeline to run the one and feed the other.
    pub fn running(&mut self) -> (Option<&mut dyn ModuleStore>, TapSink<'_>) {
        let sink = TapSink { modifiers: &mut self.modifiers, hooks: &self.hooks, focus: self.focus };
        (self.state.model.as_deref_mut(), sink)
    }

    /// All that the run carries beside the model: counters and the modifiers' own snapshots.
    ///
    /// # Errors
    /// What a modifier reports.
    pub fn snapshot(&self) -> Result<Value> {
        let one =
            |it: &ModifierDriver| Ok(json!({"type": it.modifier().type_name(), "state": it.modifier().snapshot()?}));
        let modifiers = self.modifiers.iter().map(one).collect::<Result<Vec<_>>>()?;
        let Counters { global_step, global_batch, .. } = self.counters;
        Ok(json!({"global_step": global_step, "global_batch": global_batch, "modifiers": modifiers}))
    }

    /// Takes up a [`snapshot`](Self::snapshot) after `initialize` with the same recipe.
    ///
    /// # Errors
    /// A snapshot of another recipe, or what a modifier reports.
    pub fn restore(&mut self, snapshot: &Value) -> Result<()> {
        let parts = snapshot["modifiers"].as_array().filter(|it| it.len() == self.modifiers.len());
        let other = || Error::failed("the snapshot belongs to another recipe");
        let parts = parts.ok_or_else(other)?;
        for (modifier, part) in self.modifiers.iter_mut().zip(parts) {
            if part["type"] != modifier.modifier().type_name() {
                return Err(other());
            }
            modifier.modifier_mut().restore(&part["state"])?;
        }
        let counter = |name: &str| snapshot[name].as_i64().ok_or_else(other);
        self.counters.global_step = counter("global_step")?;
        self.counters.global_batch = counter("global_batch")?;
        Ok(())
    }

    /// Finalizes what is still running, ignoring faults, and starts afresh with the same registry.
    pub fn reset(&mut self) {
        for modifier in &mut self.modifiers {
            if !modifier.initialized() || modifier.finalized() {
                continue;
            }
            if let Err(error) = modifier.finalize(&mut self.state) {
                tracing::warn!(%error, "a modifier failed to finalize during reset");
            }
        }
        *self = Self::new(std::mem::take(&mut self.registry));
    }

    /// Allows a further stage: keeps model, recipe and modifiers.
    pub fn reset_stage(&mut self) {
        self.initialized = false;
        self.finalized = false;
    }

    fn event_of(&self, type_: EventType) -> Event {
        Event {
            steps_per_epoch: self.state.steps_per_epoch,
            batches_per_step: self.state.batches_per_step,
            global_step: self.counters.global_step,
            global_batch: self.counters.global_batch,
            ..Event::of(type_)
        }
    }

    fn check_running(&self, operation: &'static str) -> Result<()> {
        if !self.initialized {
            return Err(ErrorKind::NotInitialized { operation }.into());
        }
        if self.finalized {
            return Err(ErrorKind::AlreadyFinalized { operation }.into());
        }
        Ok(())
    }
}

fn focused(modifiers: &mut [ModifierDriver], focus: Option<usize>) -> impl Iterator<Item = &mut ModifierDriver> {
    modifiers.iter_mut().filter(move |it| focus.is_none_or(|position| it.position() == position))
}

/// Takes the values that a running model shows at its taps.
pub struct TapSink<'a> {
    modifiers: &'a mut [ModifierDriver],
    hooks: &'a Hooks,
    focus: Option<usize>,
}

impl TapSink<'_> {
    /// Whether anybody listens: a value that nobody wants need not be prepared.
    pub fn wants(&self, tap: &Tap, view: &HookView<'_>) -> bool {
        match self.focus {
            None => self.hooks.any_at(tap, view),
            Some(position) => self.hooks.at(tap, view).iter().any(|it| it.owner == position),
        }
    }

    /// Hands a value to those who listen, in the order of registration.
    ///
    /// # Errors
    /// What a modifier reports.
    pub fn feed(&mut self, tap: &Tap, sample: &Sample<'_>, view: &HookView<'_>) -> Result<()> {
        for hook in self.hooks.at(tap, view) {
            if self.focus.is_some_and(|position| position != hook.owner) {
                continue;
            }
            if let Some(modifier) = self.modifiers.get_mut(hook.owner) {
                modifier.on_tap(tap, sample)?;
            }
        }
        Ok(())
    }
}
