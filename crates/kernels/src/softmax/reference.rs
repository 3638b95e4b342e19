//! Softmax in plain loops.

use crate::Element;
use crate::elementary::exp;
use crate::rows::{lane_max, lane_sum};

/// Row after row; arguments agree.
#[inline(always)]
pub fn softmax<T: Element>(width: usize, x: &[T], y: &mut [T]) {
    let mut wide = vec![0.0f32; width];
    for (x, y) in x.chunks_exact(width.max(1)).zip(y.chunks_exact_mut(width.max(1))) {
        for (wide, x) in wide.iter_mut().zip(x) {
            *wide = x.to_f32();
        }
        let max = lane_max(&wide);
        let max = if max == f32::NEG_INFINITY { 0.0 } else { max };
        for x in &mut wide {
            *x = exp(*x - max);
        }
        let sum = lane_sum(&wide, |x| x);
        let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        for (y, x) in y.iter_mut().zip(&wide) {
            *y = T::from_f32(x * inverse);
        }
    }
}
