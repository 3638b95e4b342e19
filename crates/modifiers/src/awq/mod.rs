//! AWQ: channels that carry large activations are scaled up in the weights that read them, so that rounding hurts them less.
//!
//! [`mod@search`] finds the scales: a grid of candidates, each judged by the output of the parent whose weights were scaled,
//! rounded and scaled back. Where the parent is one linear, [`Gram`] gives that loss without running a token.
//! [`mappings`] says which layers belong together; scales are applied as in [`crate::smoothquant`].

pub mod algorithm;
pub mod config;
pub mod loss;
pub mod mappings;
mod modifier;
pub mod search;

pub use algorithm::{ActivationMean, Balance, Candidate, DuoScaling, candidate_scales, grid, weight_mean};
pub use config::AwqFields;
pub use loss::{BatchLoss, Gram};
pub use modifier::AwqModifier;
pub use search::{Best, race, search};

#[cfg(test)]
mod tests;
