//! The framework of a compression run: events, state, the contract of modifiers, their lifecycle, recipes
//! and metrics.
//!
//! # Who does what
//!
//! * A [`Recipe`] says which modifiers run, as type names with fields; a [`Registry`] that the caller hands
//!   over says what these mean. Nothing here knows a concrete modifier.
//! * A [`CompressionSession`] owns one run. It builds the modifiers, and hands events to them in order.
//! * A pipeline drives the session. It calls [`CompressionSession::initialize`] with a model,
//!   fires [`Signal`]s (calibration start, one end for every subgraph, calibration end) and finalizes.
//!   While the model runs, it takes [`CompressionLifecycle::running`] apart into the model and a
//!   [`TapSink`], asks the sink whether anybody [`wants`](TapSink::wants) a value, and
//!   [`feed`](TapSink::feed)s it. A pass without hooks is a pass with [`HookView::NONE`].
//! * A [`Modifier`] sees the model through [`ModuleStore`] and values through [`Activation`]. The pipeline's
//!   engine implements both; a modifier that needs the engine itself asks for it by type.
//!
//! # A modifier of one's own
//!
//! It needs a type, what a recipe may say about it, and the callback in which it works.
//!
//! ```
//! use lifecycle::{
//!     CompressionSession, Event, Fields, InitializeArgs, MemoryModel, Modifier, ModuleStore, Registry, Result,
//!     Settings, State, StateUpdate, f32_array, matching::match_modules,
//!     recipe::{FieldKind, FieldSpec, ModifierSpec, Role},
//! };
//!
//! struct ClampModifier {
//!     settings: Settings,
//!     targets: Vec<String>,
//!     limit: f32,
//! }
//!
//! impl Modifier for ClampModifier {
//!     fn type_name(&self) -> &str { "ClampModifier" }
//!     fn settings(&self) -> &Settings { &self.settings }
//!     fn targets(&self) -> Vec<String> { self.targets.clone() }
//!
//!     fn on_initialize(&mut self, state: &mut State) -> Result<bool> {
//!         match_modules(state.model()?, &self.targets, &[""; 0]).map(|_| true)
//!     }
//!
//!     fn on_sequential_epoch_end(&mut self, state: &mut State, _: &Event, modules: &[String]) -> Result<()> {
//!         let model = state.model_mut()?;
//!         let matched = match_modules(model, &self.targets, &[""; 0])?.modules;
//!         for name in modules.iter().filter(|it| matched.contains(it)) {
//!             let shape = model.module(name)?.parameters["weight"].shape.clone();
//!             let mut row = vec![0.0; shape[1]];
//!             for at in 0..shape[0] {
//!                 model.read_rows(&format!("{name}.weight"), at..at + 1, &mut row)?;
//!                 row.iter_mut().for_each(|it| *it = it.clamp(-self.limit, self.limit));
//!                 model.write_rows(&format!("{name}.weight"), at..at + 1, &row)?;
//!             }
//!         }
//!         Ok(())
//!     }
//! }
//!
//! fn build(fields: &Fields) -> Result<Box<dyn Modifier>> {
//!     let targets = fields["targets"].as_array().into_iter().flatten();
//!     let targets = targets.filter_map(|it| it.as_str().map(str::to_owned)).collect();
//!     let limit = fields["limit"].as_f64().unwrap_or(1.0) as f32;
//!     Ok(Box::new(ClampModifier { settings: Settings::default(), targets, limit }))
//! }
//!
//! const CLAMP: ModifierSpec = ModifierSpec {
//!     name: "ClampModifier",
//!     doc: "Cuts weights off at a limit.",
//!     role: Role::Transform,
//!     fields: &[
//!         FieldSpec { name: "targets", kind: FieldKind::TextList, default: Some("[\"Linear\"]"), doc: "Modules." },
//!         FieldSpec { name: "limit", kind: FieldKind::Float, default: None, doc: "Largest magnitude." },
//!     ],
//!     check: |_| Ok(()),
//!     build,
//! };
//!
//! # fn main() -> Result<()> {
//! let weight = f32_array(&[vec![0.25, -3.0], vec![8.0, 0.5]])?;
//! let model = MemoryModel::new().with_module("up_proj", "Linear", [("weight", weight)]);
//! let recipe = "default_stage: {default_modifiers: {ClampModifier: {limit: 0.5}}}";
//!
//! let mut session = CompressionSession::new(Registry::new(&[CLAMP]));
//! let state = StateUpdate { model: Some(Box::new(model)), ..StateUpdate::default() };
//! session.initialize(InitializeArgs { recipe: Some(recipe.into()), state, ..InitializeArgs::default() })?;
//! session.callbacks().calibration_start()?;
//! session.callbacks().sequential_epoch_end(vec!["up_proj".to_owned()])?;
//! session.callbacks().calibration_end()?;
//! session.finalize()?;
//!
//! let clamped = f32_array(&[vec![0.25, -0.5], vec![0.5, 0.5]])?;
//! assert_eq!(session.state().model()?.array("up_proj.weight")?, clamped);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

pub mod distillation;
mod driver;
pub mod error;
pub mod event;
pub mod event_lifecycle;
pub mod hooks;
pub mod lifecycle;
pub mod matching;
mod memory_model;
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
    memory_model::{MemoryModel, f32_array},
    model::{Activation, ModuleFacts, ModuleStore, ParameterFacts, Sample, See},
    modifier::{Division, Divisors, Fields, Modifier, Settings, Wave},
    recipe::{Recipe, RecipeInput, Registry},
    session::{CompressionSession, LifecycleCallbacks, ModifiedState},
    state::{Attachment, Data, Hardware, State, StateUpdate},
};
