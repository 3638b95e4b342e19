//! [`State`]: the model and everything around it that modifiers share during a run.

use std::{any::Any, fmt, sync::Arc};

use compressed_tensors::scheme::QuantizationScheme;
use indexmap::IndexMap;
use serde_json::{Map, Value};

use crate::{Result, error::ErrorKind, metrics::LoggerManager, model::ModuleStore};

/// A value of the caller that the framework only carries: an optimizer, a loader, a batch. Shared,
/// never copied.
pub type Attachment = Arc<dyn Any + Send + Sync>;

/// The data sets of a run.
#[derive(Clone, Default)]
pub struct Data {
    /// Training data.
    pub train: Option<Attachment>,
    /// Validation data.
    pub val: Option<Attachment>,
    /// Test data.
    pub test: Option<Attachment>,
    /// Calibration data.
    pub calib: Option<Attachment>,
}

/// Where a run takes place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hardware {
    /// The main device.
    pub device: Option<String>,
    /// All devices.
    pub devices: Option<Vec<String>>,
    /// This process among all.
    pub rank: Option<usize>,
    /// Number of processes.
    pub world_size: Option<usize>,
    /// This process on its machine.
    pub local_rank: Option<usize>,
    /// Number of processes on this machine.
    pub local_world_size: Option<usize>,
    /// Whether the run has several processes.
    pub distributed: Option<bool>,
    /// How the processes share the work.
    pub distributed_strategy: Option<String>,
}

/// Everything that modifiers of a session share.
#[derive(Default)]
pub struct State {
    /// The model under compression.
    pub model: Option<Box<dyn ModuleStore>>,
    /// The teacher of a distillation.
    pub teacher_model: Option<Box<dyn ModuleStore>>,
    /// The optimizer.
    pub optimizer: Option<Attachment>,
    /// Whether the optimizer's callbacks are attached; set with the optimizer.
    pub optim_wrapped: Option<bool>,
    /// Loss of the current batch.
    pub loss: Option<f64>,
    /// The current batch.
    pub batch_data: Option<Attachment>,
    /// Data sets.
    pub data: Data,
    /// Devices and processes.
    pub hardware: Hardware,
    /// Per batch, which tokens count; `None` where the run has no masks.
    pub loss_masks: Option<Vec<Option<Vec<bool>>>>,
    /// Position of the current batch, `None` before the first.
    pub current_batch_idx: Option<usize>,
    /// Whether the sequential pipeline fetches the next batch ahead.
    pub sequential_prefetch: bool,
    /// First index of the run: an epoch where `steps_per_epoch` is known, else a step.
    pub start: Option<f64>,
    /// Optimizer steps in an epoch.
    pub steps_per_epoch: Option<i64>,
    /// Batches in an optimizer step.
    pub batches_per_step: Option<i64>,
    /// Where metrics go.
    pub loggers: Option<LoggerManager>,
    /// How modules are quantized, by name, as the quantizing modifiers say when they are initialized: for modifiers before
    /// them in a recipe that prepare weights for that.
    pub schemes: IndexMap<String, QuantizationScheme>,
    /// Tokens below which the statistics of an expert are not used; 0 uses whatever there is.
    pub min_expert_tokens: u64,
}

/// What [`State::update`] sets; `None` keeps the value.
#[derive(Default)]
pub struct StateUpdate {
    /// See [`State::model`].
    pub model: Option<Box<dyn ModuleStore>>,
    /// See [`State::teacher_model`].
    pub teacher_model: Option<Box<dyn ModuleStore>>,
    /// See [`State::optimizer`].
    pub optimizer: Option<Attachment>,
    /// Stored as [`State::optim_wrapped`] when an optimizer is given; `None` means yes.
    pub attach_optim_callbacks: Option<bool>,
    /// See [`Data::train`].
    pub train_data: Option<Attachment>,
    /// See [`Data::val`].
    pub val_data: Option<Attachment>,
    /// See [`Data::test`].
    pub test_data: Option<Attachment>,
    /// See [`Data::calib`].
    pub calib_data: Option<Attachment>,
    /// See [`State::start`].
    pub start: Option<f64>,
    /// See [`State::steps_per_epoch`].
    pub steps_per_epoch: Option<i64>,
    /// See [`State::batches_per_step`].
    pub batches_per_step: Option<i64>,
    /// See [`State::loggers`].
    pub loggers: Option<LoggerManager>,
    /// Further arguments. `device` goes to [`Hardware::device`]; all are handed back.
    pub rest: Map<String, Value>,
}

impl State {
    /// Whether model and optimizer are both set.
    pub fn compression_ready(&self) -> bool {
        self.model.is_some() && self.optimizer.is_some()
    }

    /// Overwrites what is given and hands back the arguments that mean nothing to the state. Data is
    /// shared, never copied.
    pub fn update(&mut self, update: StateUpdate) -> Map<String, Value> {
        fn set<T>(slot: &mut Option<T>, value: Option<T>) {
            if value.is_some() {
                *slot = value;
            }
        }
        set(&mut self.model, update.model);
        set(&mut self.teacher_model, update.teacher_model);
        if update.optimizer.is_some() {
            self.optimizer = update.optimizer;
            self.optim_wrapped = Some(update.attach_optim_callbacks.unwrap_or(true));
        }
        set(&mut self.data.train, update.train_data);
        set(&mut self.data.val, update.val_data);
        set(&mut self.data.test, update.test_data);
        set(&mut self.data.calib, update.calib_data);
        set(&mut self.start, update.start);
        set(&mut self.steps_per_epoch, update.steps_per_epoch);
        set(&mut self.batches_per_step, update.batches_per_step);
        set(&mut self.loggers, update.loggers);
        if let Some(Value::String(device)) = update.rest.get("device") {
            self.hardware.device = Some(device.clone());
        }
        update.rest
    }

    /// The model, to read.
    ///
    /// # Errors
    /// Where no model is set.
    pub fn model(&self) -> Result<&dyn ModuleStore> {
        self.model.as_deref().ok_or_else(|| ErrorKind::MissingState { what: "model" }.into())
    }

    /// The model, to change.
    ///
    /// # Errors
    /// Where no model is set.
    pub fn model_mut(&mut self) -> Result<&mut dyn ModuleStore> {
        self.model.as_deref_mut().ok_or_else(|| ErrorKind::MissingState { what: "model" }.into())
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let present = |it: bool| if it { "set" } else { "none" };
        f.debug_struct("State")
            .field("model", &present(self.model.is_some()))
            .field("teacher_model", &present(self.teacher_model.is_some()))
            .field("optimizer", &present(self.optimizer.is_some()))
            .field("loss", &self.loss)
            .field("hardware", &self.hardware)
            .field("current_batch_idx", &self.current_batch_idx)
            .finish_non_exhaustive()
    }
}
