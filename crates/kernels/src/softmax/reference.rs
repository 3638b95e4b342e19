//! Softmax in plain loops.

use crate::Element;
use crate::elementary::exp;
use crate::rows::{lane_max, lane_sum};

/// Row after row; arguments agree.
pub fn softmax<T: Element>(width: usize, x: &[T], y: &mut [T]) {
    for (x, y) in x.chunks_exact(width.max(1)).zip(y.chunks_exact_mut(width.max(1))) {
        let mut wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
        let max = lane_max(&wide);
        let max = if max == f32::NEG_INFINITY { 0.0 } else { max };
        for x in &mut wide {
            *x = exp(*x - max);
        }
        let sum = lane_sum(&wide, |x| x);
        let inverse = if sum > 0.0 { 1.0 / sum } else { sum };
        for (x, y) in wide.iter().zip(y) {
            *y = T::from_f32(x * inverse);
        }
    }
}
