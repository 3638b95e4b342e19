//! GPTQ: columns are rounded in order, and what rounding loses is made up for by the columns that follow.
//!
//! [`algorithm`] works on slices: second moments of a layer's inputs ([`Hessian`]), one factor for all weights that read the
//! same input ([`Factored`]), and one sweep over the stacked rows of those weights ([`quantize`]).

pub mod algorithm;
pub mod config;
mod correction;
mod inputs;
mod modifier;
mod refine;

pub use algorithm::{
    Consumer, Damping, Escalation, Factored, Fallback, Hessian, Order, Quantized, factorize, quantize,
};
pub use config::GptqFields;
pub use modifier::GptqModifier;

#[cfg(test)]
mod tests;
