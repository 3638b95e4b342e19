//! Observers and modifiers.
#![forbid(unsafe_code)]

pub mod awq;
mod dense;
mod error;
#[cfg(test)]
mod goldens;
pub mod gptq;
pub mod norm_gain;
pub mod observers;
pub mod quantization;
pub mod registry;
pub mod smoothquant;

pub use error::{Error, ErrorKind, Result};
pub use registry::MODIFIERS;
