//! Model architectures, written once over [`graph::Value`], built from `config.json`.
//!
//! A [`Model`] is a tree of modules under the names and classes of Hugging Face, a [`Store`] of parameters that stay on disk
//! until a run needs them, and [`Links`]: which modules feed which.
//! It computes ([`Model::forward`]), is traced into subgraphs ([`Model::subgraphs`]), and runs them one by one
//! ([`Model::run_subgraph`]) under [`Hooks`] that live as long as their guards.
#![forbid(unsafe_code)]

pub mod architectures;
mod build;
mod cache;
mod config;
mod context;
mod error;
mod hooks;
mod layers;
mod likelihood;
mod links;
mod model;
mod non_finite;
mod rope;
mod store;

pub use architectures::{ARCHITECTURES, Architecture};
pub use build::{Bias, Builder, Separated};
pub use cache::{KvCache, Uncached};
pub use config::{Config, Flag};
pub use context::{Causal, Cx, Group, Layer, Run};
pub use error::{BoxedError, Error, ErrorKind, Result};
pub use hooks::{HookGuard, Hooks, Observation, Tap};
pub use layers::Linear;
pub use links::{ChannelMap, Fused, Link, Links};
pub use model::{Model, ModelOptions, Tied, TraceInputs};
pub use non_finite::{NonFiniteWatch, is_finite};
pub use store::{Held, ParameterId, ParameterInfo, Store, Weights};
