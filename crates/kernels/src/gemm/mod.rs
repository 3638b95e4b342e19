//! Matrix products with f32 accumulation.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod driver;
pub mod int8;
pub(crate) mod pack;
mod portable;
pub mod reference;
pub(crate) mod tile;

use rayon::prelude::*;

use crate::error::{check_extent, check_len};
use crate::{Element, Mat, MatMut, Profile, Result};
use driver::{Packed, Update};

/// Elements of k that one partial sum covers; a numerics constant.
pub const PANEL: usize = 256;

/// Most bytes that one call takes beside its arguments: a block of each operand, and of the sums where `y` is not f32.
pub const SCRATCH_BYTES: usize = 21 << 20;

/// Rows, and least columns, of the sums that are held where `y` is not f32; fewer rows leave room for more columns.
const HELD: (usize, usize) = (2048, 1024);

/// y = a @ b (+ bias): a (M, K), b (K, O), bias (O), y (M, O).
///
/// Each element is the sum, in rising order, of one partial sum per [`PANEL`] of K; within a panel products are added in
/// rising order of k to an f32 that starts at zero, fused (portable: rounded twice).
/// Under [`Isa::Avx512Bf16`](crate::Isa::Avx512Bf16) two bf16 operands are multiplied by `vdpbf16ps` (pairs of k, odd one first,
/// denormals taken for zero and flushed) over panels of twice the length; all other bf16 and f16 operands are widened to f32.
/// The bias is added last, then the sum is rounded to the type of `y`.
/// A row of `y` depends on that row of `a`, on `b` and on K alone.
/// With K = 0 the result is the bias or zero.
pub fn matmul<I: Element, O: Element>(
    profile: Profile,
    a: Mat<'_, I>,
    b: Mat<'_, I>,
    bias: Option<&[f32]>,
    mut y: MatMut<'_, O>,
) -> Result<()> {
    check_extent("gemm: rows of b", b.rows(), a.cols())?;
    check_extent("gemm: rows of y", y.rows(), a.rows())?;
    check_extent("gemm: columns of y", y.cols(), b.cols())?;
    if let Some(bias) = bias {
        check_len("gemm: bias", bias.len(), &[b.cols()])?;
    }
    if let Some(mut y) = y.as_f32() {
        I::multiply(profile, a, b, y.reborrow(), Update::STORE);
        if let Some(bias) = bias {
            y.par_rows().for_each(|row| row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
        }
        return Ok(());
    }
    let held_rows = a.rows().clamp(1, HELD.0);
    let held_cols = HELD.0 * HELD.1 / held_rows;
    let mut held = Packed::<f32>::recycled(held_rows * b.cols().min(held_cols));
    for row in (0..a.rows()).step_by(held_rows) {
        let rows = held_rows.min(a.rows() - row);
        for col in (0..b.cols()).step_by(held_cols) {
            let cols = held_cols.min(b.cols() - col);
            let held = &mut held.as_mut_slice()[..rows * cols];
            let (a, b) = (a.sub(row, rows, 0, a.cols()), b.sub(0, b.rows(), col, cols));
            I::multiply(profile, a, b, MatMut::new(held, rows, cols)?, Update::STORE);
            y.sub(row, rows, col, cols).par_rows().zip(held.par_chunks_exact_mut(cols)).for_each(|(y, sums)| {
                if let Some(bias) = bias {
                    sums.iter_mut().zip(&bias[col..]).for_each(|(sum, bias)| *sum += bias);
                }
                crate::cast::narrow(profile, sums, y);
            });
        }
    }
    held.recycle();
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

#[cfg(test)]
pub(crate) mod tests;
