//! Cholesky factor, inverse of a triangle, and the factor of an inverse that GPTQ needs, in f32 and f64.
//!
//! Every element is one chain of fused multiply-subtract steps (portable: rounded twice) in rising order, however the matrix is cut
//! into blocks.

mod blocked;
pub mod reference;

use crate::error::{Error, ErrorKind, check_len};
use crate::{Profile, Result};

/// Replaces the lower triangle of a symmetric positive definite (N, N) matrix by L with A = L L^T, in f32.
///
/// Only the lower triangle is read and written.
/// A pivot that is not a positive number is [`NotPositiveDefinite`](ErrorKind::NotPositiveDefinite); the matrix is then partly
/// overwritten.
pub fn factor_f32(profile: Profile, a: &mut [f32], n: usize) -> Result<()> {
    check_len("cholesky: a", a.len(), &[n, n])?;
    blocked::f32::factor(profile, a, n)
}

/// As [`factor_f32`], in f64.
pub fn factor_f64(profile: Profile, a: &mut [f64], n: usize) -> Result<()> {
    check_len("cholesky: a", a.len(), &[n, n])?;
    blocked::f64::factor(profile, a, n)
}

/// Replaces a lower triangle (N, N) by its inverse, in f32; elements above the diagonal become zero.
///
/// The diagonal must not hold zeros, as a factor's does not.
pub fn invert_lower_f32(profile: Profile, l: &mut [f32], n: usize) -> Result<()> {
    check_len("cholesky: l", l.len(), &[n, n])?;
    blocked::f32::invert(profile, l, n);
    Ok(())
}

/// As [`invert_lower_f32`], in f64.
pub fn invert_lower_f64(profile: Profile, l: &mut [f64], n: usize) -> Result<()> {
    check_len("cholesky: l", l.len(), &[n, n])?;
    blocked::f64::invert(profile, l, n);
    Ok(())
}

/// Replaces H (N, N), given by its upper triangle, by the upper U with H^-1 = U^T U; zeros below the diagonal.
///
/// With J the reversal of indices, J H J = L L^T gives U = J L^-1 J: one factorization and one triangular inverse, never the
/// inverse itself, in place.
/// [`NotPositiveDefinite`](ErrorKind::NotPositiveDefinite) names the pivot in the order of `h`.
pub fn inverse_factor_f32(profile: Profile, h: &mut [f32], n: usize) -> Result<()> {
    // Reversing the row-major elements reverses rows and columns: the upper triangle becomes the lower one.
    h.reverse();
    factor_f32(profile, h, n).map_err(|error| reversed_pivot(error, n))?;
    invert_lower_f32(profile, h, n)?;
    h.reverse();
    Ok(())
}

/// As [`inverse_factor_f32`], in f64.
pub fn inverse_factor_f64(profile: Profile, h: &mut [f64], n: usize) -> Result<()> {
    h.reverse();
    factor_f64(profile, h, n).map_err(|error| reversed_pivot(error, n))?;
    invert_lower_f64(profile, h, n)?;
    h.reverse();
    Ok(())
}

/// The error of a matrix whose order was reversed, with the pivot in the original order.
fn reversed_pivot(error: Error, n: usize) -> Error {
    match *error.kind() {
        ErrorKind::NotPositiveDefinite { pivot, value } => {
            Error::new(error.place(), ErrorKind::NotPositiveDefinite { pivot: n - 1 - pivot, value })
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests;
