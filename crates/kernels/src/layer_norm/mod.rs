//! Layer normalization.

pub mod reference;

use crate::error::check_len;
use crate::{Element, Profile, Result};

/// The parameters of a norm.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// Weight (C); none is a weight of ones.
    pub weight: Option<&'a [f32]>,
    /// Bias (C).
    pub bias: Option<&'a [f32]>,
    /// Added to the variance.
    pub eps: f32,
}

/// `y = (x - mean) / sqrt(variance + eps) * weight + bias` for each row of C: x (rows, C), y (rows, C).
///
/// Mean and variance (mean of squared distances from the mean) are f32 sums in 16 lanes as in [`crate::rms_norm`]; the result is
/// rounded to the element type once.
pub fn layer_norm<T: Element>(
    profile: Profile,
    norm: &LayerNorm<'_>,
    width: usize,
    x: &[T],
    y: &mut [T],
) -> Result<()> {
    check_len("layer_norm: y", y.len(), &[x.len()])?;
    crate::rows::check_rows("layer_norm: x", x.len(), width)?;
    for (name, parameter) in [("layer_norm: weight", norm.weight), ("layer_norm: bias", norm.bias)] {
        if let Some(parameter) = parameter {
            check_len(name, parameter.len(), &[width])?;
        }
    }
    let _ = profile;
    reference::layer_norm(norm, width, x, y);
    Ok(())
}
