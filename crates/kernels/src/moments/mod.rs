//! Second moments of a layer's inputs in f64, and what a change of weights does to its outputs under them.

pub mod reference;

use rayon::prelude::*;

use crate::error::check_len;
use crate::gemm::driver::multiply_f64;
use crate::gemm::update::Update;
use crate::rows::check_rows;
use crate::{Element, Mat, MatMut, Profile, Result};

pub use crate::syrk::PANEL_TOKENS;

/// Rows of a change that are multiplied together, which bounds the memory of their products.
const ROWS: usize = 512;
/// Columns of these products: what lies below the diagonal of a block of this width is all that is multiplied in vain.
const COLS: usize = 256;

/// H += x^T @ x, upper triangle only: x (T, N), h (N, N) row-major, of which elements below the diagonal are left alone.
///
/// Tokens of f32 are added one by one in rising order, fused (portable: rounded twice), so that calls which split them anywhere
/// give the same bits as one call. Products of two bf16 or f16 are exact in f32: their sums over panels of at most
/// [`PANEL_TOKENS`] tokens are f32, those of panels f64, and calls that split the tokens at multiples of it give the same bits.
/// Beside its arguments a call takes at most 16 MiB, or what one panel of tokens takes as f32.
pub fn accumulate<E: Element>(profile: Profile, x: &[E], cols: usize, h: &mut [f64]) -> Result<()> {
    check_rows("moments: x", x.len(), cols)?;
    check_len("moments: h", h.len(), &[cols, cols])?;
    if cols == 0 {
        return Ok(());
    }
    E::add_square_wide(profile, Mat::new(x, x.len() / cols, cols)?, MatMut::new(h, cols, cols)?);
    Ok(())
}

/// `d_o H d_o^T` of each row of a change d (O, N) of weights: h (N, N) is the upper triangle of H with zeros below, out (O).
pub fn energy(profile: Profile, h: &[f64], d: &[f64], out: &mut [f64]) -> Result<()> {
    let rows = out.len();
    let cols = d.len().checked_div(rows).unwrap_or(0);
    check_len("moments: d", d.len(), &[rows, cols])?;
    check_len("moments: h", h.len(), &[cols, cols])?;
    out.fill(0.0);
    if cols == 0 {
        return Ok(());
    }
    let mut products = vec![0.0f64; rows.min(ROWS) * COLS.min(cols)];
    for (d, out) in d.chunks(ROWS * cols).zip(out.chunks_mut(ROWS)) {
        for col in (0..cols).step_by(COLS) {
            let end = cols.min(col + COLS);
            let products = &mut products[..out.len() * (end - col)];
            let left = Mat::strided(d, out.len(), end, cols)?;
            let right = Mat::strided(&h[col..], end, end - col, cols)?;
            multiply_f64(profile, left, right, MatMut::new(products, out.len(), end - col)?, Update::STORE);
            let changes = d.par_chunks(cols).map(|it| &it[col..end]);
            let rows = products.par_chunks(end - col).zip(changes).zip(out.par_iter_mut()).with_min_len(64);
            rows.for_each(|((products, d), out)| {
                // Each pair of columns is met once, a column with itself too.
                let diagonal = (col..end).map(|it| h[it * cols + it]);
                let terms = products.iter().zip(d).zip(diagonal);
                *out += terms.map(|((product, d), own)| d * (2.0 * product - own * d)).sum::<f64>();
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
