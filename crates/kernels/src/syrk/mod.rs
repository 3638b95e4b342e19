//! Symmetric rank-k update: the second moment of a layer's inputs.

pub mod reference;

use crate::error::check_len;
use crate::{Element, Mat, Profile, Result};

/// Tokens that one partial sum covers; a numerics constant.
///
/// Calls that split the tokens at multiples of it give the same bits as one call.
pub const PANEL_TOKENS: usize = 512;

/// H += x^T @ x, upper triangle only: x (T, N), h (N, N) row-major, of which elements below the diagonal are left alone.
///
/// Per panel of [`PANEL_TOKENS`] tokens an f32 that starts at zero adds the products in rising order of tokens, as
/// [`crate::gemm::matmul`] does within a panel, and is added to `h`; panels follow one another in order.
pub fn accumulate<I: Element>(profile: Profile, x: Mat<'_, I>, h: &mut [f32]) -> Result<()> {
    check_len("syrk: h", h.len(), &[x.cols(), x.cols()])?;
    reference::accumulate(profile, x, h);
    Ok(())
}
