//! The fast Walsh-Hadamard transform.

pub mod reference;

use crate::error::{Error, ErrorKind};
use crate::{Profile, Result};

/// Multiplies every row (rows, N) by the Sylvester Hadamard matrix of N, a power of two, and then by `scale`; in place, in f32.
///
/// Butterflies go from neighbours to halves; the scale is applied once, at the end.
pub fn transform_f32(profile: Profile, x: &mut [f32], n: usize, scale: f32) -> Result<()> {
    check(x.len(), n)?;
    let _ = profile;
    reference::transform_f32(x, n, scale);
    Ok(())
}

/// As [`transform_f32`], in f64.
pub fn transform_f64(profile: Profile, x: &mut [f64], n: usize, scale: f64) -> Result<()> {
    check(x.len(), n)?;
    let _ = profile;
    reference::transform_f64(x, n, scale);
    Ok(())
}

fn check(len: usize, n: usize) -> Result<()> {
    if !n.is_power_of_two() {
        let kind = ErrorKind::Extent { found: n, expected: "a power of two".into() };
        return Err(Error::new("hadamard: n", kind));
    }
    crate::rows::check_rows("hadamard: x", len, n).map(|_| ())
}
