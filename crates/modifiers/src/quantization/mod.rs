//! Schemes without a change of weights: `QuantizationModifier`, and what all quantizing modifiers share.
//!
//! [`config`] says which modules get which scheme, [`targets`] finds them in a model and keeps what is observed of them,
//! [`algorithm`] rounds to nearest on slices, [`record`] is what the report hears of each module.

pub mod algorithm;
pub mod config;
mod loops;
mod modifier;
pub mod record;
pub mod targets;

pub use config::{QuantizationFields, SchemeField};
pub use modifier::QuantizationModifier;
pub use record::{Distance, ModuleRecord};

#[cfg(test)]
mod tests;
