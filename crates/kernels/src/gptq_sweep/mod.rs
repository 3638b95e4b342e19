//! The GPTQ rounding sweep: columns are rounded in order, and each column's error is spread over the columns after it.

mod blocked;
pub mod reference;
mod rounding;

pub use rounding::{Rounding, ScaleType, quantize_dequantize};
pub(crate) use rounding::{asymmetric, round_int, symmetric, with_quantize};

use crate::error::{Error, ErrorKind, check_len};
use crate::{Profile, Result};

/// What the sweep needs beside the weight: the factor, and the scale of every column.
#[derive(Clone, Copy, Debug)]
pub struct Sweep<'a> {
    /// R, rows of the weight.
    pub rows: usize,
    /// C, columns of the weight.
    pub cols: usize,
    /// U (C, C) upper, H^-1 = U^T U, in the order of the columns as given.
    pub factor: &'a [f32],
    /// Kind of code.
    pub rounding: Rounding,
    /// Type in which a dequantized value is formed.
    pub scale_type: ScaleType,
    /// Scales (S, G), already divided by the global scale; S is R / `rows_per_scale`, rounded up.
    pub scales: &'a [f32],
    /// Zero points (S, G) of an asymmetric scheme.
    pub zero_points: Option<&'a [f32]>,
    /// G, scales in a row.
    pub groups: usize,
    /// Group of each column (C), in the order of the columns as given.
    pub group_of_col: &'a [u32],
    /// Rows that share a row of `scales`: 1 for channel and group, R for tensor, the height of a block.
    pub rows_per_scale: usize,
}

/// Rounds `w` (R, C) in place and adds each row's loss to `loss` (R).
///
/// For each column i in order: `q = quantize_dequantize(w_i)`, `err = (w_i - q) / U_ii`, `loss += err^2 / 2`, and every later
/// column j becomes `w_j - err * U_ij`, fused (portable: rounded twice).
/// A recipe's block size only says when later columns are brought up to date; here it does not reach the bits, and the kernel
/// picks its own.
/// Rows are independent of one another, so that stacked weights give the bits of each alone.
/// All arithmetic is f32.
pub fn sweep(profile: Profile, plan: &Sweep<'_>, w: &mut [f32], loss: &mut [f32]) -> Result<()> {
    check(plan, w.len(), loss.len())?;
    blocked::sweep(profile, plan, w, loss);
    Ok(())
}

fn check(plan: &Sweep<'_>, w_len: usize, loss_len: usize) -> Result<()> {
    let &Sweep { rows, cols, groups, .. } = plan;
    check_len("gptq_sweep: w", w_len, &[rows, cols])?;
    check_len("gptq_sweep: loss", loss_len, &[rows])?;
    check_len("gptq_sweep: factor", plan.factor.len(), &[cols, cols])?;
    check_len("gptq_sweep: group_of_col", plan.group_of_col.len(), &[cols])?;
    if plan.rows_per_scale == 0 {
        let kind = ErrorKind::Extent { found: 0, expected: "at least 1".into() };
        return Err(Error::new("gptq_sweep: rows_per_scale", kind));
    }
    let scale_rows = rows.div_ceil(plan.rows_per_scale);
    check_len("gptq_sweep: scales", plan.scales.len(), &[scale_rows, groups])?;
    if let Some(zero_points) = plan.zero_points {
        check_len("gptq_sweep: zero_points", zero_points.len(), &[scale_rows, groups])?;
    }
    match plan.group_of_col.iter().position(|&group| group as usize >= groups) {
        None => Ok(()),
        Some(position) => {
            let found = plan.group_of_col[position] as usize;
            Err(Error::new("gptq_sweep: group_of_col", ErrorKind::Index { found, position, bound: groups }))
        }
    }
}

#[cfg(test)]
mod tests;
