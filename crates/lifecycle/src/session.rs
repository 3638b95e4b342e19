//! [`CompressionSession`]: a lifecycle as one value, and [`LifecycleCallbacks`] to drive it.
//!
//! Nothing is global: whoever owns the session owns the run.

use serde_json::Value;

use crate::{
    Result,
    event::EventType,
    lifecycle::{CompressionLifecycle, EventPayload, InitializeArgs, Signal},
    metrics::Metrics,
    model::ModuleStore,
    recipe::Registry,
    state::{Attachment, State},
};

/// One compression run.
#[derive(Default)]
pub struct CompressionSession {
    /// The lifecycle that the session drives.
    pub lifecycle: CompressionLifecycle,
}

/// What a call of the session leaves behind.
pub struct ModifiedState<'a> {
    /// The model.
    pub model: Option<&'a mut dyn ModuleStore>,
    /// The optimizer.
    pub optimizer: Option<Attachment>,
    /// The loss, which a modifier may have changed.
    pub loss: Option<f64>,
    /// What the modifiers report; `None` where none was called.
    pub modifier_data: Option<Vec<Value>>,
}

impl CompressionSession {
    /// A fresh session whose recipes may name the registry's modifiers.
    pub fn new(registry: Registry) -> Self {
        Self { lifecycle: CompressionLifecycle::new(registry) }
    }

    /// What the modifiers share.
    pub fn state(&self) -> &State {
        &self.lifecycle.state
    }

    /// What the modifiers share, to change.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.lifecycle.state
    }

    /// Initializes the run, or updates the state of a running one.
    ///
    /// # Errors
    /// As [`CompressionLifecycle::initialize`].
    pub fn initialize(&mut self, args: InitializeArgs) -> Result<ModifiedState<'_>> {
        let data = self.lifecycle.initialize(args)?;
        Ok(self.modified(data))
    }

    /// Finalizes the run.
    ///
    /// # Errors
    /// As [`CompressionLifecycle::finalize`].
    pub fn finalize(&mut self) -> Result<ModifiedState<'_>> {
        let data = self.lifecycle.finalize()?;
        Ok(self.modified(Some(data)))
    }

    /// Hands an event to the modifiers and logs its loss.
    ///
    /// # Errors
    /// As [`CompressionLifecycle::event`].
    pub fn event(
        &mut self,
        event_type: EventType,
        global_step: Option<i64>,
        payload: EventPayload,
    ) -> Result<ModifiedState<'_>> {
        let data = self.lifecycle.event(event_type, global_step, payload)?;
        if event_type == EventType::LossCalculated {
            self.log_loss()?;
        }
        Ok(self.modified(Some(data)))
    }

    /// The calls of a training or calibration loop.
    pub fn callbacks(&mut self) -> LifecycleCallbacks<'_> {
        LifecycleCallbacks { session: self }
    }

    /// Ends the run whatever its phase, and starts afresh.
    pub fn reset(&mut self) {
        self.lifecycle.reset();
    }

    /// Allows a further stage on the same model; recipe and modifiers stay.
    pub fn reset_stage(&mut self) {
        self.lifecycle.reset_stage();
    }

    /// The recipe as YAML, or `None` with a warning where the run has no modifiers.
    pub fn get_serialized_recipe(&self) -> Option<String> {
        if self.lifecycle.recipe.stages.is_empty() {
            tracing::warn!("no recipe found in the session");
            return None;
        }
        Some(self.lifecycle.recipe.yaml())
    }

    fn log_loss(&mut self) -> Result<()> {
        let step = self.lifecycle.global_step();
        let State { loss, loggers, .. } = &mut self.lifecycle.state;
        if let (Some(loss), Some(loggers)) = (*loss, loggers) {
            loggers.log_scalars("Loss", &Metrics::from([("loss", loss)]), Some(step.into()))?;
        }
        Ok(())
    }

    fn modified(&mut self, modifier_data: Option<Vec<Value>>) -> ModifiedState<'_> {
        let State { model, optimizer, loss, .. } = &mut self.lifecycle.state;
        ModifiedState { model: model.as_deref_mut(), optimizer: optimizer.clone(), loss: *loss, modifier_data }
    }
}

/// The calls of a loop, one method each. Steps are counted: the step goes up at the first batch after an
/// optimizer step.
pub struct LifecycleCallbacks<'a> {
    session: &'a mut CompressionSession,
}

impl LifecycleCallbacks<'_> {
    /// Any event.
    ///
    /// # Errors
    /// As [`CompressionLifecycle::event`].
    pub fn event(&mut self, event_type: EventType, payload: EventPayload) -> Result<ModifiedState<'_>> {
        self.session.event(event_type, None, payload)
    }

    /// Any typed event.
    ///
    /// # Errors
    /// As [`CompressionLifecycle::event`].
    pub fn signal(&mut self, signal: Signal) -> Result<ModifiedState<'_>> {
        let (event_type, payload) = signal.into_parts();
        self.event(event_type, payload)
    }

    /// A batch begins.
    ///
    /// # Errors
    /// As [`CompressionLifecycle::event`].
    pub fn batch_start(&mut self, batch_data: Option<Attachment>) -> Result<ModifiedState<'_>> {
        self.signal(Signal::BatchStart { batch_data })
    }

    /// The loss of the batch is known.
    ///
    /// # Errors
    /// As [`CompressionLifecycle::event`].
    pub fn loss_calculated(&mut self, loss: f64) -> Result<ModifiedState<'_>> {
        self.signal(Signal::LossCalculated { loss })
    }

    /// The optimizer is about to step.
    ///
    /// # Errors
    /// As [`CompressionLifecycle::event`].
    pub fn optim_pre_step(&mut self) -> Result<ModifiedState<'_>> {
        self.signal(Signal::OptimPreStep)
    }

    /// The optimizer has stepped.
    ///
    /// # Errors
    /// As [`CompressionLifecycle::event`].
    pub fn optim_post_step(&mut self) -> Result<ModifiedState<'_>> {
        self.signal(Signal::OptimPostStep)
    }

    /// A batch is done.
    ///
    /// # Errors
    /// As [`CompressionLifecycle::event`].
    pub fn batch_end(&mut self) -> Result<ModifiedState<'_>> {
        self.signal(Signal::BatchEnd)
    }

    /// Calibration begins.
    ///
    /// # Errors
    /// As [`CompressionLifecycle::event`].
    pub fn calibration_start(&mut self) -> Result<ModifiedState<'_>> {
        self.signal(Signal::CalibrationStart)
    }

    /// All batches have run through the modules.
    ///
    /// # Errors
    /// As [`CompressionLifecycle::event`].
    pub fn sequential_epoch_end(&mut self, modules: Vec<String>) -> Result<ModifiedState<'_>> {
        self.signal(Signal::SequentialEpochEnd { modules })
    }

    /// Calibration is done.
    ///
    /// # Errors
    /// As [`CompressionLifecycle::event`].
    pub fn calibration_end(&mut self) -> Result<ModifiedState<'_>> {
        self.signal(Signal::CalibrationEnd)
    }
}
