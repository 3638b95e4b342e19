//! Symmetric rank-k update: the second moment of a layer's inputs.

pub mod reference;

use crate::error::check_len;
use crate::gemm::driver::{Region, Update};
use crate::gemm::tile::Write;
use crate::{Element, Mat, MatMut, Profile, Result};

/// Calls that split the tokens at multiples of this number give the same bits as one call; a numerics constant.
pub const PANEL_TOKENS: usize = 2 * crate::gemm::PANEL;

/// H += x^T @ x, upper triangle only: x (T, N), h (N, N) row-major, of which elements below the diagonal are left alone.
///
/// Partial sums over panels of tokens, each as in [`crate::gemm::matmul`] with tokens for k, are added to `h` in order.
pub fn accumulate<I: Element>(profile: Profile, x: Mat<'_, I>, h: &mut [f32]) -> Result<()> {
    check_len("syrk: h", h.len(), &[x.cols(), x.cols()])?;
    let update = Update { write: Write::Add, region: Region::Upper, negate: false };
    I::multiply_by_itself(profile, x, MatMut::new(h, x.cols(), x.cols())?, update);
    Ok(())
}

#[cfg(test)]
mod tests;
