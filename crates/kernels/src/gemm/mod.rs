//! Matrix products with f32 accumulation.

pub mod reference;

use crate::error::{check_extent, check_len};
use crate::{Element, Mat, MatMut, Profile, Result};

/// Columns of `a` that one partial sum covers; a numerics constant, even on purpose.
pub const PANEL: usize = 256;

/// y = a @ b (+ bias): a (M, K), b (K, O), bias (O), y (M, O).
///
/// Each element is the sum, in rising order, of one partial sum per [`PANEL`] of K; within a panel products are added in
/// rising order of k into an f32 that starts at zero, fused (portable: rounded twice).
/// Under [`Isa::Avx512Bf16`](crate::Isa::Avx512Bf16) two bf16 operands are multiplied by `vdpbf16ps` (pairs of k, odd one first,
/// denormals as zero) over panels of twice the length; all other bf16 and f16 operands are widened to f32, exactly.
/// The bias is added last, then the sum is rounded to the type of `y`.
/// A row of `y` depends on that row of `a`, on `b` and on K alone.
/// With K = 0 the result is the bias or zero.
pub fn matmul<I: Element, O: Element>(
    profile: Profile,
    a: Mat<'_, I>,
    b: Mat<'_, I>,
    bias: Option<&[f32]>,
    y: MatMut<'_, O>,
) -> Result<()> {
    check_extent("gemm: rows of b", b.rows(), a.cols())?;
    check_extent("gemm: rows of y", y.rows(), a.rows())?;
    check_extent("gemm: columns of y", y.cols(), b.cols())?;
    if let Some(bias) = bias {
        check_len("gemm: bias", bias.len(), &[b.cols()])?;
    }
    reference::matmul(profile, a, b, bias, y);
    Ok(())
}

/// A linear layer, y = x @ w^T (+ bias): x (M, N), w (O, N), bias (O), y (M, O); [`matmul`] with the transpose of `w`.
pub fn linear<I: Element, O: Element>(
    profile: Profile,
    x: Mat<'_, I>,
    w: Mat<'_, I>,
    bias: Option<&[f32]>,
    y: MatMut<'_, O>,
) -> Result<()> {
    matmul(profile, x, w.transposed(), bias, y)
}
