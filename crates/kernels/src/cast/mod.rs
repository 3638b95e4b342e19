//! Conversions between f32, bf16 and f16.

pub mod reference;

use rayon::prelude::*;

use crate::error::check_len;
use crate::rows::twins;
use crate::{Element, Profile, Result};

/// Elements of a task.
const CHUNK: usize = 1 << 16;

/// `y = x` in another type: exact where it fits, else to nearest, ties to even; denormals are kept under every profile.
///
/// A NaN stays a NaN, quiet, of the same sign.
pub fn cast<A: Element, B: Element>(profile: Profile, x: &[A], y: &mut [B]) -> Result<()> {
    check_len("cast: y", y.len(), &[x.len()])?;
    if x.len() <= CHUNK {
        convert(profile, x, y);
    } else {
        x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK)).for_each(|(x, y)| convert(profile, x, y));
    }
    Ok(())
}

twins! {
    /// The loop on this thread; lengths agree.
    fn convert<A, B>(x: &[A], y: &mut [B]) = reference::cast;
}

/// To f32, on this thread.
pub(crate) fn widen<A: Element>(profile: Profile, x: &[A], y: &mut [f32]) {
    convert(profile, x, y);
}

/// From f32, on this thread.
pub(crate) fn narrow<B: Element>(profile: Profile, x: &[f32], y: &mut [B]) {
    convert(profile, x, y);
}
