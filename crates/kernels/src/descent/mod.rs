//! Codes and scales of a rounded weight, each moved where the error of the layer's outputs is least while all else stays.

mod blocked;
mod costs;
mod products;
pub mod reference;

use crate::error::{Error, ErrorKind, check_len};
use crate::gptq_sweep::ScaleType;
use crate::{Mat, Profile, Result};

/// How a weight (R, C) is rounded: integer codes, and a scale for each group of columns of a row.
#[derive(Clone, Copy, Debug)]
pub struct Grid<'a> {
    /// C, columns of the weight.
    pub cols: usize,
    /// Columns of a group; the last group of a row may be narrower.
    pub width: usize,
    /// Bits of a code, from 1 to 8.
    pub bits: u32,
    /// Type of the scales, in which a dequantized value is formed.
    pub scale_type: ScaleType,
    /// Type of the weight, to which dequantized values and moved scales are rounded.
    pub weight_type: ScaleType,
    /// Zero points (R, G) of an asymmetric scheme.
    pub zero_points: Option<&'a [f32]>,
}

impl Grid<'_> {
    /// G, groups of a row.
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.width.max(1))
    }

    fn check(&self, weight: usize, scales: usize) -> Result<()> {
        if self.width == 0 || self.cols == 0 {
            let kind = ErrorKind::Extent { found: 0, expected: "at least 1".into() };
            return Err(Error::new("descent: columns", kind));
        }
        if !(1..=8).contains(&self.bits) {
            let kind = ErrorKind::Extent { found: self.bits as usize, expected: "1 to 8".into() };
            return Err(Error::new("descent: bits", kind));
        }
        let rows = weight / self.cols;
        check_len("descent: weight", weight, &[rows, self.cols])?;
        check_len("descent: scales", scales, &[rows, self.groups()])?;
        self.zero_points.map_or(Ok(()), |it| check_len("descent: zero points", it.len(), &[rows, self.groups()]))
    }

    /// Smallest and largest code.
    fn codes(&self) -> (f32, f32) {
        let half = (1u32 << (self.bits - 1)) as f32;
        (-half, half - 1.0)
    }

    /// Zero points of rows from `row` on.
    fn zero_points_from(&self, row: usize) -> Option<&[f32]> {
        self.zero_points.and_then(|it| it.get(row * self.groups()..))
    }
}

/// What rounding costs each group (R, G), where an error of column j costs `costs[j]` (C) times its square.
///
/// f32; 16 sums, one for each column of the group modulo 16, fold in halves. The same bits under every profile.
pub fn rounding_costs(
    profile: Profile,
    grid: &Grid<'_>,
    costs: &[f32],
    weight: &[f32],
    scales: &[f32],
    sums: &mut [f32],
) -> Result<()> {
    grid.check(weight.len(), scales.len())?;
    check_len("descent: costs", costs.len(), &[grid.cols])?;
    check_len("descent: sums", sums.len(), &[scales.len()])?;
    costs::rounding_costs(profile, grid, costs, weight, scales, sums);
    Ok(())
}

/// Moves the codes and scales of `rounded` (R, C), which stands for `weight`, up to `rounds` times over: in each round every
/// code goes where `sum e H e^T` is least while all else stays (e a row of weight - rounded, H (C, C) `moments`), then the scale
/// of every group, after the first round of those in which a code has moved. A row in which nothing moves any more is left.
///
/// Coordinate descent on the objective of GPTQ (Frantar et al. 2022), from any rounding. Returns the sum before and after,
/// f64. What pulls at a code, `e H`, is held in f32 and follows each move, fused (portable: rounded twice). Rows are
/// independent of one another.
pub fn descend(
    profile: Profile,
    grid: &Grid<'_>,
    moments: &[f32],
    rounds: u32,
    weight: &[f32],
    rounded: &mut [f32],
    scales: &mut [f32],
) -> Result<[f64; 2]> {
    grid.check(weight.len(), scales.len())?;
    check_len("descent: rounded", rounded.len(), &[weight.len()])?;
    let moments = Mat::new(moments, grid.cols, grid.cols)?;
    let errors = blocked::descend(profile, grid, moments, rounds, weight, rounded, scales);
    Ok(errors.into_iter().fold([0.0; 2], |sum, it| [sum[0] + it[0], sum[1] + it[1]]))
}

#[cfg(test)]
mod tests;
