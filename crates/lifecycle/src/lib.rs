//! Events, state, modifier contract, lifecycle, session, recipes and metrics.
#![forbid(unsafe_code)]

pub mod distillation;
mod driver;
pub mod error;
pub mod event;
pub mod event_lifecycle;
pub mod hooks;
pub mod lifecycle;
pub mod matching;
pub mod metrics;
pub mod model;
pub mod modifier;
mod number_text;
pub mod precision;
pub mod recipe;
pub mod session;
pub mod sparsity;
pub mod state;

pub use self::{
    driver::{CalibrationEvents, ModifierDriver, Phase},
    error::{Error, ErrorKind, Place, ReferenceKind, Result},
    event::{Event, EventOverrides, EventType},
    hooks::{Hook, HookGuard, HookId, HookView, Hooks, Tap, TapPoint},
    lifecycle::{CompressionLifecycle, EVENT_ORDER, EventPayload, InitializeArgs, Signal, TapSink},
    model::{Activation, ModuleFacts, ModuleStore, ParameterFacts, Sample},
    modifier::{Fields, Modifier, Settings, Wave},
    recipe::{Recipe, RecipeInput, Registry},
    session::{CompressionSession, LifecycleCallbacks, ModifiedState},
    state::{Attachment, Data, Hardware, State, StateUpdate},
};
