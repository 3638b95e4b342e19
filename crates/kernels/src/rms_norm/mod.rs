//! Root-mean-square normalization.

pub mod reference;

use crate::error::check_len;
use crate::{Element, Profile, Result};

/// When the normalized row is rounded to the element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounded {
    /// Before it is multiplied by the weight, and again after (Llama).
    BeforeWeight,
    /// Only after it was multiplied by the weight (Gemma).
    AfterWeight,
}

/// The parameters of a norm.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm<'a> {
    /// Weight (C); none is a weight of ones.
    pub weight: Option<&'a [f32]>,
    /// Added to the weight: 1 for norms that store their distance from one, else 0.
    pub weight_offset: f32,
    /// Added to the mean square.
    pub eps: f32,
    /// When the normalized row is rounded.
    pub rounded: Rounded,
}

/// `y = x / sqrt(mean(x^2) + eps) * (weight_offset + weight)` for each row of C: x (rows, C), y (rows, C).
///
/// The mean is an f32 sum in 16 lanes (element i in lane i % 16, in order, lanes folded by halves); division and square root are
/// those of IEEE 754.
pub fn rms_norm<T: Element>(profile: Profile, norm: &RmsNorm<'_>, width: usize, x: &[T], y: &mut [T]) -> Result<()> {
    check_len("rms_norm: y", y.len(), &[x.len()])?;
    crate::rows::check_rows("rms_norm: x", x.len(), width)?;
    if let Some(weight) = norm.weight {
        check_len("rms_norm: weight", weight.len(), &[width])?;
    }
    let _ = profile;
    reference::rms_norm(norm, width, x, y);
    Ok(())
}
