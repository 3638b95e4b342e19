//! The sweep with one row in each lane, block of columns after block of columns.

use rayon::prelude::*;

use super::rounding::{round_e2m1, round_e4m3, round_int, with_quantize};
use super::{Rounding, Sweep};
use crate::gemm::driver::multiply_f32;
use crate::gemm::tile::Write;
use crate::gemm::update::{Region, Update};
use crate::rows::{Fused, fused_twins};
use crate::{Mat, MatMut, Profile};

/// Columns of a block; errors reach the columns beyond it as one product.
const BLOCK: usize = 128;
/// Rows in lanes at a time.
const LANES: usize = 64;
/// Rows that are swept together, which bounds the memory of their errors.
const SLAB: usize = 2048;

/// One value per row, for each column of a block.
type Lanes = [[f32; LANES]; BLOCK];

/// The sweep of slabs of rows; arguments agree.
pub(super) fn sweep(profile: Profile, plan: &Sweep<'_>, w: &mut [f32], loss: &mut [f32]) {
    let cols = plan.cols;
    if cols == 0 || plan.rows == 0 {
        return;
    }
    let mut errors = vec![0.0f32; plan.rows.min(SLAB) * BLOCK.min(cols)];
    for (idx, (w, loss)) in w.chunks_mut(SLAB * cols).zip(loss.chunks_mut(SLAB)).enumerate() {
        for start in (0..cols).step_by(BLOCK) {
            let width = BLOCK.min(cols - start);
            let errors = &mut errors[..loss.len() * width];
            let rows = w.par_chunks_mut(LANES * cols).zip(loss.par_chunks_mut(LANES));
            rows.zip(errors.par_chunks_mut(LANES * width)).enumerate().for_each(|(chunk, ((w, loss), errors))| {
                let block = Block { plan, start, width, row: idx * SLAB + chunk * LANES };
                block.sweep(profile, w, loss, errors);
            });
            let beyond = cols - start - width;
            let parts = (
                Mat::new(&*errors, loss.len(), width),
                Mat::strided(plan.factor.get(start * cols + start + width..).unwrap_or_default(), width, beyond, cols),
                MatMut::strided(w.get_mut(start + width..).unwrap_or_default(), loss.len(), beyond, cols),
            );
            if beyond > 0
                && let (Ok(errors), Ok(factor), Ok(w)) = parts
            {
                let update = Update { write: Write::Continue, region: Region::All, negate: true };
                multiply_f32(profile, errors, factor, w, update);
            }
        }
    }
}

/// Rows in lanes and a block of columns.
struct Block<'a> {
    plan: &'a Sweep<'a>,
    start: usize,
    width: usize,
    row: usize,
}

impl Block<'_> {
    fn sweep(&self, profile: Profile, w: &mut [f32], loss: &mut [f32], errors: &mut [f32]) {
        let (cols, width) = (self.plan.cols, self.width);
        let mut lanes = Box::new([[0.0; LANES]; BLOCK]);
        let mut lane_errors = Box::new([[0.0; LANES]; BLOCK]);
        let mut lane_loss = [0.0; LANES];
        lane_loss[..loss.len()].copy_from_slice(loss);
        for (lane, row) in w.chunks_exact(cols).enumerate() {
            for (line, &x) in lanes.iter_mut().zip(&row[self.start..self.start + width]) {
                line[lane] = x;
            }
        }
        columns(profile, self, loss.len(), &mut lanes, &mut lane_errors, &mut lane_loss);
        for (lane, (row, errors)) in w.chunks_exact_mut(cols).zip(errors.chunks_exact_mut(width)).enumerate() {
            for (i, (w, error)) in row[self.start..self.start + width].iter_mut().zip(errors).enumerate() {
                *w = lanes[i][lane];
                *error = lane_errors[i][lane];
            }
        }
        loss.copy_from_slice(&lane_loss[..loss.len()]);
    }

    /// Scale and zero point of each row for a column of the block.
    #[inline(always)]
    fn parameters(&self, i: usize, rows: usize, scales: &mut [f32; LANES], zero_points: &mut [f32; LANES]) {
        let plan = self.plan;
        let group = plan.group_of_col[self.start + i] as usize;
        for lane in 0..rows {
            let place = (self.row + lane) / plan.rows_per_scale * plan.groups + group;
            scales[lane] = plan.scales[place];
            if let Some(all) = plan.zero_points {
                zero_points[lane] = all[place];
            }
        }
    }
}

fused_twins! {
    /// All columns of a block; `lanes` holds weights and then rounded weights.
    fn columns(block: &Block<'_>, rows: usize, lanes: &mut Lanes, errors: &mut Lanes, loss: &mut [f32; LANES]) = columns_of;
}

/// Picks the loop of a rounding, so that the kind is not asked for each number.
#[inline(always)]
fn columns_of<const FUSED: bool>(
    fused: Fused<FUSED>,
    block: &Block<'_>,
    rows: usize,
    lanes: &mut Lanes,
    errors: &mut Lanes,
    loss: &mut [f32; LANES],
) {
    let plan = block.plan;
    macro_rules! with {
        ($round:expr) => {
            with_quantize!($round, plan.scale_type, plan.zero_points.is_some(), |quantize| {
                loop_over(fused, block, rows, lanes, errors, loss, quantize)
            })
        };
    }
    match plan.rounding {
        Rounding::Int { lowest, highest } => with!(|y| round_int(y, lowest, highest)),
        Rounding::Fp8E4m3 => with!(round_e4m3),
        Rounding::Fp4E2m1 => with!(round_e2m1),
    }
}

#[inline(always)]
fn loop_over<const FUSED: bool>(
    fused: Fused<FUSED>,
    block: &Block<'_>,
    rows: usize,
    lanes: &mut Lanes,
    errors: &mut Lanes,
    loss: &mut [f32; LANES],
    quantize_dequantize: impl Fn(f32, f32, f32) -> f32,
) {
    let &Sweep { cols, factor, group_of_col, .. } = block.plan;
    // Lanes without a row hold zeros and divide by one.
    let (mut scales, mut zero_points) = ([1.0; LANES], [0.0; LANES]);
    let mut group = None;
    for i in 0..block.width {
        let mut column = lanes[i];
        for (k, line) in errors[..i].iter().enumerate() {
            let u = -factor[(block.start + k) * cols + block.start + i];
            for (sum, &error) in column.iter_mut().zip(line) {
                *sum = fused.f32(error, u, *sum);
            }
        }
        let next = Some(group_of_col[block.start + i]);
        if group != next {
            block.parameters(i, rows, &mut scales, &mut zero_points);
            group = next;
        }
        let diagonal = factor[(block.start + i) * cols + block.start + i];
        for lane in 0..LANES {
            let w = column[lane];
            let q = quantize_dequantize(w, scales[lane], zero_points[lane]);
            let error = (w - q) / diagonal;
            loss[lane] += error * error * 0.5;
            errors[i][lane] = error;
            lanes[i][lane] = q;
        }
    }
}
