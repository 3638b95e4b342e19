//! The rounding sweep in plain loops.

use super::{Sweep, quantize_dequantize};
use crate::Profile;
use crate::gemm::reference::multiply_add;

/// One row after the other; arguments agree.
#[expect(non_snake_case, reason = "matrices are capital letters in reference loops")]
pub fn sweep(profile: Profile, plan: &Sweep<'_>, W: &mut [f32], loss: &mut [f32]) {
    let (C, U) = (plan.cols, plan.factor);
    if C == 0 {
        return;
    }
    for (row, (W, loss)) in W.chunks_exact_mut(C).zip(loss).enumerate() {
        let scale_row = row / plan.rows_per_scale * plan.groups;
        for i in 0..C {
            let group = scale_row + plan.group_of_col[i] as usize;
            let zero_point = plan.zero_points.map(|it| it[group]);
            let q = quantize_dequantize(plan.rounding, plan.scale_type, W[i], plan.scales[group], zero_point);
            let err = (W[i] - q) / U[i * C + i];
            *loss += err * err * 0.5;
            for j in i + 1..C {
                W[j] = multiply_add(profile, -err, U[i * C + j], W[j]);
            }
            W[i] = q;
        }
    }
}
