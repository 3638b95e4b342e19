//! The gain of the last norm: what rounding has added to the residual stream makes norms divide by more than they should.
//!
//! Where a dense model gives u and the compressed one x = g u + noise, the norm before the output head has shrunk u by
//! `g = sum x.u / sum u.u`; [`algorithm`] finds g and divides the norm's weight by it, so that logits are as far apart as they were.

pub mod algorithm;
pub(crate) mod modifier;

pub use algorithm::{Gain, divide_norm};
pub use modifier::NormGainModifier;
