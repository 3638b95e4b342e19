//! Products of 8-bit integers with exact sums, and the numbers that scales make of them.

pub mod reference;
mod tiles;

use rayon::prelude::*;

use super::driver::{multiply_bytes, multiply_words};
use super::packed::Packed;
use super::tile::{Tile, Write};
use crate::error::{Error, ErrorKind, check_extent, check_len};
use crate::{Element, Mat, MatMut, Profile, Result};

/// The longest K whose sums fit into 32 bits whatever the operands are: 255 * 128 * K is less than 2^31.
pub const MAX_DEPTH: usize = 65_793;

/// Rows of x and columns of y that are worked on at a time, so that what is held beside the arguments is bounded.
const HELD: (usize, usize) = (2048, 1024);

/// Numbers that are scaled at a time, in the first cache.
const STRETCH: usize = 256;

/// Two integers of 16 bits of neighbouring k, the even one in the low half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Words(pub(crate) u32);

/// Four integers of 8 bits of neighbouring k, the first in the lowest byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Bytes(pub(crate) u32);

/// A way to multiply; all give the same sums.
#[derive(Clone, Copy)]
enum Path {
    /// Operands widened to 16 bits.
    Words(Tile<Words, i32>),
    /// Operands as they are, the left one without a sign: 128 more than it is.
    Bytes(Tile<Bytes, i32>),
}

impl Path {
    /// The fastest that a profile has on this processor.
    fn best(profile: Profile) -> Self {
        tiles::bytes(profile).map_or_else(|| Self::Words(tiles::words(profile)), Self::Bytes)
    }

    /// What the left operand is more than it was given.
    fn offset(self) -> i32 {
        match self {
            Self::Words(_) => 0,
            Self::Bytes(_) => 128,
        }
    }
}

/// What sums of codes are multiplied with.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'a> {
    /// Of x: one for each row, or one for all.
    pub x: &'a [f32],
    /// Of w: one for each row, or one for all.
    pub w: &'a [f32],
    /// The codes of x that stand for zero: one for each row, or one for all; none where that is 0.
    pub zero_points: Option<&'a [i8]>,
}

/// y = (x - zero_points) @ w^T: codes x (M, K), w (O, K), y (M, O), a zero point for each row of x or none.
///
/// Sums are exact: integers of 32 bits, the same under every profile.
///
/// # Errors
/// Shapes that do not fit each other, and a K beyond [`MAX_DEPTH`].
pub fn products(
    profile: Profile,
    x: Mat<'_, i8>,
    w: Mat<'_, i8>,
    zero_points: Option<&[i8]>,
    y: MatMut<'_, i32>,
) -> Result<()> {
    check_products((x, w), zero_points, (y.rows(), y.cols()))?;
    let path = Path::best(profile);
    let sums = row_sums(w, path, zero_points);
    multiply(profile, path, (x, w), (zero_points, &sums), y);
    Ok(())
}

/// A linear layer over codes, y = ((x - zero_points) * scales of x) @ (w * scales of w)^T (+ bias): x (M, K), w (O, K),
/// bias (O), y (M, O).
///
/// The sum of [`products`] becomes an f32, is multiplied with the scale of x, then with that of w; the bias is added last, and
/// the result is rounded to the type of `y`.
///
/// # Errors
/// As [`products`], and scales, zero points or a bias of another length.
pub fn linear<O: Element>(
    profile: Profile,
    x: Mat<'_, i8>,
    w: Mat<'_, i8>,
    scales: &Scales<'_>,
    bias: Option<&[f32]>,
    mut y: MatMut<'_, O>,
) -> Result<()> {
    let zero_points = scales.zero_points.map(|it| spread(it, x.rows()));
    check_products((x, w), zero_points.as_deref(), (y.rows(), y.cols()))?;
    let (of_x, of_w) = (spread(scales.x, x.rows()), spread(scales.w, w.rows()));
    check_len("int8 gemm: scales of x", of_x.len(), &[x.rows()])?;
    check_len("int8 gemm: scales of w", of_w.len(), &[w.rows()])?;
    if let Some(bias) = bias {
        check_len("int8 gemm: bias", bias.len(), &[w.rows()])?;
    }
    let path = Path::best(profile);
    let row_sums = row_sums(w, path, zero_points.as_deref());
    let held_rows = x.rows().clamp(1, HELD.0);
    let held_cols = HELD.0 * HELD.1 / held_rows;
    let mut held = Packed::<i32>::recycled(held_rows * w.rows().min(held_cols));
    for row in (0..x.rows()).step_by(held_rows) {
        let rows = held_rows.min(x.rows() - row);
        let zero_points = zero_points.as_deref().map(|it| &it[row..row + rows]);
        for col in (0..w.rows()).step_by(held_cols) {
            let cols = held_cols.min(w.rows() - col);
            let held = &mut held.as_mut_slice()[..rows * cols];
            let operands = (x.sub(row, rows, 0, x.cols()), w.sub(col, cols, 0, w.cols()));
            let sums = row_sums.get(col..col + cols).unwrap_or_default();
            multiply(profile, path, operands, (zero_points, sums), MatMut::new(held, rows, cols)?);
            let bias = bias.map(|it| &it[col..col + cols]);
            let of_rows = held.par_chunks_exact(cols).zip(&of_x[row..row + rows]);
            y.sub(row, rows, col, cols).par_rows().zip(of_rows).for_each(|(y, (sums, &of_x))| {
                finish(profile, sums, (of_x, &of_w[col..col + cols]), bias, y);
            });
        }
    }
    held.recycle();
    Ok(())
}

fn check_products(
    (x, w): (Mat<'_, i8>, Mat<'_, i8>),
    zero_points: Option<&[i8]>,
    (rows, cols): (usize, usize),
) -> Result<()> {
    check_extent("int8 gemm: columns of w", w.cols(), x.cols())?;
    check_extent("int8 gemm: rows of y", rows, x.rows())?;
    check_extent("int8 gemm: columns of y", cols, w.rows())?;
    if let Some(zero_points) = zero_points {
        check_len("int8 gemm: zero points", zero_points.len(), &[x.rows()])?;
    }
    if x.cols() > MAX_DEPTH {
        let expected = format!("at most {MAX_DEPTH}, beyond which sums do not fit into 32 bits");
        return Err(Error::new("int8 gemm: columns of x", ErrorKind::Extent { found: x.cols(), expected }));
    }
    Ok(())
}

/// One for each of `len` where there is one for all.
fn spread<T: Copy>(given: &[T], len: usize) -> std::borrow::Cow<'_, [T]> {
    match given {
        &[one] => vec![one; len].into(),
        all => all.into(),
    }
}

/// The sum of each row of w, where the product needs it.
fn row_sums(w: Mat<'_, i8>, path: Path, zero_points: Option<&[i8]>) -> Vec<i32> {
    if path.offset() == 0 && zero_points.is_none() {
        return Vec::new();
    }
    let sum = |row: usize| {
        let w = w.sub(row, 1, 0, w.cols());
        match w.data().get(..w.cols()) {
            Some(line) if w.col_stride() == 1 => line.iter().map(|it| i32::from(*it)).sum(),
            _ => (0..w.cols()).map(|k| i32::from(w.at(0, k))).sum(),
        }
    };
    (0..w.rows()).into_par_iter().with_min_len(64).map(sum).collect()
}

/// Shapes agree; `sums` are those of the rows of w, or empty where they are not needed.
fn multiply(
    profile: Profile,
    path: Path,
    (x, w): (Mat<'_, i8>, Mat<'_, i8>),
    (zero_points, sums): (Option<&[i8]>, &[i32]),
    mut y: MatMut<'_, i32>,
) {
    let offset = path.offset();
    let write = if sums.is_empty() { Write::Store } else { Write::Add };
    if write == Write::Add {
        y.par_rows().enumerate().for_each(|(row, y)| {
            // A sum may leave 32 bits on the way, as long as it comes back.
            let less = zero_points.map_or(0, |it| i32::from(it[row])) + offset;
            y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum.wrapping_mul(less).wrapping_neg());
        });
    }
    match path {
        Path::Words(tile) => multiply_words(profile, tile, (x, w.transposed()), y, write),
        Path::Bytes(tile) => {
            let rows_at_once = x.rows().clamp(1, HELD.0);
            let mut moved = Packed::<i8>::recycled(rows_at_once * x.cols());
            for row in (0..x.rows()).step_by(rows_at_once) {
                let rows = rows_at_once.min(x.rows() - row);
                let moved = &mut moved.as_mut_slice()[..rows * x.cols()];
                moved.par_chunks_mut(x.cols().max(1)).enumerate().for_each(|(idx, to)| {
                    let from = x.sub(row + idx, 1, 0, x.cols());
                    match from.data().get(..to.len()) {
                        Some(line) if from.col_stride() == 1 => {
                            to.iter_mut().zip(line).for_each(|(to, from)| *to = from ^ i8::MIN);
                        }
                        _ => to.iter_mut().enumerate().for_each(|(k, to)| *to = from.at(0, k) ^ i8::MIN),
                    }
                });
                let Ok(moved) = Mat::new(&*moved, rows, x.cols()) else { continue };
                let cols = y.cols();
                multiply_bytes(profile, tile, (moved, w.transposed()), y.sub(row, rows, 0, cols), write);
            }
            moved.recycle();
        }
    }
}

/// One row of y from its sums.
fn finish<O: Element>(profile: Profile, sums: &[i32], (of_x, of_w): (f32, &[f32]), bias: Option<&[f32]>, y: &mut [O]) {
    let mut scaled = [0.0f32; STRETCH];
    for start in (0..sums.len()).step_by(STRETCH) {
        let end = sums.len().min(start + STRETCH);
        let scaled = &mut scaled[..end - start];
        for ((scaled, sum), of_w) in scaled.iter_mut().zip(&sums[start..end]).zip(&of_w[start..end]) {
            *scaled = *sum as f32 * of_x * of_w;
        }
        if let Some(bias) = bias {
            scaled.iter_mut().zip(&bias[start..end]).for_each(|(scaled, bias)| *scaled += bias);
        }
        crate::cast::narrow(profile, scaled, &mut y[start..end]);
    }
}

#[cfg(test)]
mod tests;
