//! SmoothQuant and logarithmic equalization: outliers of activations move into the weights that read them.
//!
//! A smoothed layer (a norm, or a linear) gives `y / s` and every layer that reads it takes `W s`, so that the model computes
//! the same function; [`algorithm`] finds `s` and applies it on slices, [`mappings`] says which layers belong together.

pub mod algorithm;
pub mod config;
pub mod mappings;
pub(crate) mod modifier;

pub use algorithm::{
    ChannelRange, Norm, Smoothing, column_maxima, divide_norm, divide_rows, divisors, multiply_columns, scales,
};
pub use config::SmoothQuantFields;
pub use mappings::{Mapping, NamedMapping, Resolved};
pub use modifier::{SmoothQuantModifier, apply};

#[cfg(test)]
mod tests;
