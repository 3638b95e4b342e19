//! Symmetric rank-k update: the second moment of a layer's inputs, and what they have in common with others.

pub mod reference;

use crate::error::{check_extent, check_len};
use crate::gemm::tile::Write;
use crate::gemm::update::{Region, Update};
use crate::{Element, Mat, MatMut, Profile, Result};

/// Calls that split the tokens at multiples of this number give the same bits as one call; a numerics constant.
pub const PANEL_TOKENS: usize = 2 * crate::gemm::PANEL;

/// H += x^T @ x, upper triangle only: x (T, N), h (N, N) row-major, of which elements below the diagonal are left alone.
///
/// Partial sums over panels of tokens, each as in [`crate::gemm::matmul`] with tokens for k, are added to `h` in order.
/// Beside its arguments a call takes at most 16 MiB, or what one panel of tokens takes as f32.
pub fn accumulate<I: Element>(profile: Profile, x: Mat<'_, I>, h: &mut [f32]) -> Result<()> {
    check_len("syrk: h", h.len(), &[x.cols(), x.cols()])?;
    I::add_square(profile, x, MatMut::new(h, x.cols(), x.cols())?);
    Ok(())
}

/// C += a^T @ b: a (T, M), b (T, N), c (M, N) row-major.
///
/// Panels of tokens are added in order, as by [`accumulate`].
pub fn accumulate_cross<I: Element>(profile: Profile, a: Mat<'_, I>, b: Mat<'_, I>, c: &mut [f32]) -> Result<()> {
    check_extent("syrk: rows of b", b.rows(), a.rows())?;
    check_len("syrk: c", c.len(), &[a.cols(), b.cols()])?;
    let update = Update { write: Write::Add, region: Region::All, negate: false };
    I::multiply(profile, a.transposed(), b, MatMut::new(c, a.cols(), b.cols())?, update);
    Ok(())
}

#[cfg(test)]
mod tests;
