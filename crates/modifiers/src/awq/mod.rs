//! AWQ: channels that carry large activations are scaled up in the weights that read them, so that rounding hurts them less.
//!
//! [`algorithm`] finds the scales: a grid of candidates, each judged by the output of the parent whose weights were scaled,
//! rounded and scaled back. Where the parent is one linear, [`Gram`] gives that loss without running a token.
//! [`mappings`] says which layers belong together; scales are applied as in [`crate::smoothquant`].

pub mod algorithm;
pub mod config;
pub mod mappings;
mod modifier;

pub use algorithm::{
    ActivationMean, Balance, Best, Candidate, DuoScaling, Gram, LossSum, candidate_scales, grid, search, weight_mean,
};
pub use config::AwqFields;
pub use modifier::AwqModifier;

#[cfg(test)]
mod tests;
