//! Matrix products with f32 accumulation.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod block_float;
pub(crate) mod driver;
pub mod int8;
pub(crate) mod pack;
pub(crate) mod packed;
pub(crate) mod panels;
mod portable;
pub mod reference;
pub(crate) mod tile;
pub(crate) mod update;

use rayon::prelude::*;

use crate::error::{check_extent, check_len};
use crate::{Element, Mat, MatMut, Profile, Result, bf16};
use packed::Packed;
pub use panels::{BlockPanels, PANEL_COLS, Panels};
use update::Update;

/// Elements of k that one partial sum covers; a numerics constant.
pub const PANEL: usize = 256;

/// Rows, and least columns, of the sums that are held where `y` is not f32; fewer rows leave room for more columns.
const HELD: (usize, usize) = (2048, 1024);

/// y = a @ b (+ bias): a (M, K), b (K, O), bias (O), y (M, O).
///
/// Each element is the sum, in rising order, of one partial sum per [`PANEL`] of K; within a panel products are added in
/// rising order of k to an f32 that starts at zero, fused (portable: rounded twice).
/// Under [`Isa::Avx512Bf16`](crate::Isa::Avx512Bf16) two bf16 operands are multiplied by `vdpbf16ps` (pairs of k, odd one first,
/// denormals taken for zero and flushed) over panels of twice the length, and under
/// [`Isa::Avx512Vnni`](crate::Isa::Avx512Vnni) in block floating point: 128 neighbouring k of a row or column share a power of two
/// and have codes of 12 bits and a sign, whose sum of products is exact. Numbers of at least a sixteenth of the largest of the 128
/// are exact too, the others are off by at most 2^-12 of it: a sixteenth of what it may have lost when it became a bf16. A run
/// whose largest number is below 2^-115 counts as zero, one with a number that is not finite as NaN.
/// All other bf16 and f16 operands are widened to f32.
/// The bias is added last, then the sum is rounded to the type of `y`.
/// A row of `y` depends on that row of `a`, on `b` and on K alone.
/// Beside its arguments a call takes at most 17 MiB, and 4 MiB for each thread up to the fourth.
/// With K = 0 the result is the bias or zero.
pub fn matmul<I: Element, O: Element>(
    profile: Profile,
    a: Mat<'_, I>,
    b: Mat<'_, I>,
    bias: Option<&[f32]>,
    y: MatMut<'_, O>,
) -> Result<()> {
    check_extent("gemm: rows of b", b.rows(), a.cols())?;
    let multiply = |(row, rows), (col, cols), y: MatMut<'_, f32>| {
        let (a, b) = (a.sub(row, rows, 0, a.cols()), b.sub(0, b.rows(), col, cols));
        I::multiply(profile, a, b, y, Update::STORE);
    };
    product(profile, [a.rows(), b.cols()], bias, y, multiply)
}

/// [`matmul`] with columns `cols` (first, number) of a right operand that is laid out; of the same bits as with that operand in the
/// type of `a`, other than two of bf16 under a profile that has [`BlockPanels`]. The first column is a multiple of [`PANEL_COLS`].
pub fn matmul_laid_out<I: Element, W: Element, O: Element>(
    profile: Profile,
    a: Mat<'_, I>,
    b: &Panels<W>,
    cols: (usize, usize),
    bias: Option<&[f32]>,
    y: MatMut<'_, O>,
) -> Result<()> {
    check_extent("gemm: columns of a panel of b", b.width(), driver::panel_width(profile))?;
    check_part([a.cols(), b.rows()], cols, b.cols())?;
    let (first, n_cols) = cols;
    let multiply = |(row, rows), (col, cols), y: MatMut<'_, f32>| {
        let (a, b) = (a.sub(row, rows, 0, a.cols()), b.part(first + col, cols));
        driver::multiply_laid_out(profile, a, b, y, Update::STORE);
    };
    product(profile, [a.rows(), n_cols], bias, y, multiply)
}

/// [`matmul_laid_out`] in block floating point.
pub fn matmul_blocks<O: Element>(
    profile: Profile,
    a: Mat<'_, bf16>,
    b: &BlockPanels,
    cols: (usize, usize),
    bias: Option<&[f32]>,
    y: MatMut<'_, O>,
) -> Result<()> {
    let width = block_float::tile(profile).map_or(0, |it| it.width);
    check_extent("gemm: columns of a panel of b", b.width(), width)?;
    check_part([a.cols(), b.rows()], cols, b.cols())?;
    let (first, n_cols) = cols;
    let multiply = |(row, rows), (col, cols), y: MatMut<'_, f32>| {
        let (a, b) = (a.sub(row, rows, 0, a.cols()), b.part(first + col, cols));
        driver::multiply_codes(profile, a, b, y, Update::STORE);
    };
    product(profile, [a.rows(), n_cols], bias, y, multiply)
}

fn check_part([depth, rows]: [usize; 2], (first, n_cols): (usize, usize), cols: usize) -> Result<()> {
    check_extent("gemm: rows of b", rows, depth)?;
    check_extent("gemm: first column of b", first % PANEL_COLS, 0)?;
    check_extent("gemm: last column of b", first.saturating_add(n_cols).max(cols), cols)
}

/// Fills `y` (M, O) with f32 products of blocks of rows and columns, the bias added; columns of a block begin at a multiple of
/// [`PANEL_COLS`].
fn product<O: Element>(
    profile: Profile,
    [all_rows, all_cols]: [usize; 2],
    bias: Option<&[f32]>,
    mut y: MatMut<'_, O>,
    multiply: impl Fn((usize, usize), (usize, usize), MatMut<'_, f32>),
) -> Result<()> {
    check_extent("gemm: rows of y", y.rows(), all_rows)?;
    check_extent("gemm: columns of y", y.cols(), all_cols)?;
    if let Some(bias) = bias {
        check_len("gemm: bias", bias.len(), &[all_cols])?;
    }
    if let Some(mut y) = y.as_f32() {
        multiply((0, all_rows), (0, all_cols), y.reborrow());
        if let Some(bias) = bias {
            y.par_rows().for_each(|row| row.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias));
        }
        return Ok(());
    }
    let held_rows = all_rows.clamp(1, HELD.0);
    let held_cols = (HELD.0 * HELD.1 / held_rows).next_multiple_of(PANEL_COLS);
    // A few columns more, so that the rows of a tile do not all fall upon the same lines of the caches.
    let stride = all_cols.min(held_cols).next_multiple_of(PANEL_COLS) + PANEL_COLS;
    let mut held = Packed::<f32>::recycled(held_rows * stride);
    for row in (0..all_rows).step_by(held_rows) {
        let rows = held_rows.min(all_rows - row);
        for col in (0..all_cols).step_by(held_cols) {
            let cols = held_cols.min(all_cols - col);
            let held = &mut held.as_mut_slice()[..rows * stride];
            multiply((row, rows), (col, cols), MatMut::strided(held, rows, cols, stride)?);
            y.sub(row, rows, col, cols).par_rows().zip(held.par_chunks_exact_mut(stride)).for_each(|(y, sums)| {
                let sums = &mut sums[..cols];
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
