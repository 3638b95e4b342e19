//! The merge of a vocabulary tile in plain loops.

use super::RowState;
use crate::elementary::{exp, exp_f64};
use crate::rows::{lane_max, lane_sum};

/// Row after row; lengths agree.
#[inline(always)]
pub fn merge_tile(logits: &[f32], first_token: usize, targets: &[u32], state: &mut [RowState]) {
    let width = logits.len().checked_div(state.len()).unwrap_or(0);
    if width == 0 {
        return;
    }
    for ((row, &target), state) in logits.chunks_exact(width).zip(targets).zip(state) {
        let max = lane_max(row);
        if max > f32::NEG_INFINITY {
            let sum = f64::from(lane_sum(row, |x| exp(x - max)));
            if max > state.max {
                state.sum = state.sum * exp_f64(f64::from(state.max) - f64::from(max)) + sum;
                state.max = max;
            } else {
                state.sum += sum * exp_f64(f64::from(max) - f64::from(state.max));
            }
        }
        let place = (target as usize).checked_sub(first_token);
        if let Some(&logit) = place.and_then(|place| row.get(place)) {
            state.target = Some(logit);
        }
    }
}
