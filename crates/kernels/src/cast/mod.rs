//! Conversions between f32, bf16 and f16.

pub mod reference;

use crate::error::check_len;
use crate::{Element, Profile, Result};

/// `y = x` in another type: exact where it fits, else to nearest, ties to even; denormals are kept under every profile.
///
/// A NaN stays a NaN, quiet, of the same sign.
pub fn cast<A: Element, B: Element>(profile: Profile, x: &[A], y: &mut [B]) -> Result<()> {
    check_len("cast: y", y.len(), &[x.len()])?;
    let _ = profile;
    reference::cast(x, y);
    Ok(())
}
