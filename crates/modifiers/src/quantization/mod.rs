//! Schemes without a change of weights: `QuantizationModifier`, and what all quantizing modifiers share.

pub mod algorithm;

#[cfg(test)]
mod tests;
