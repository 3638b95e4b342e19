//! Softmax of rows.

pub mod reference;

use crate::error::check_len;
use crate::{Element, Profile, Result};

/// `y = exp(x - max) / sum` for each row of `width`: x (rows, width), y (rows, width); f32 arithmetic, rounded once.
///
/// The sum goes over 16 lanes as in [`crate::rms_norm`].
/// A row of minus infinities gives zeros.
pub fn softmax<T: Element>(profile: Profile, width: usize, x: &[T], y: &mut [T]) -> Result<()> {
    check_len("softmax: y", y.len(), &[x.len()])?;
    crate::rows::check_rows("softmax: x", x.len(), width)?;
    let _ = profile;
    reference::softmax(width, x, y);
    Ok(())
}
