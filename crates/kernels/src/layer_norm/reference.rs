//! Layer normalization in plain loops.

use super::LayerNorm;
use crate::Element;
use crate::rows::lane_sum;

/// Row after row; arguments agree.
#[inline(always)]
pub fn layer_norm<T: Element>(norm: &LayerNorm<'_>, width: usize, x: &[T], y: &mut [T]) {
    let mut wide = vec![0.0f32; width];
    for (x, y) in x.chunks_exact(width.max(1)).zip(y.chunks_exact_mut(width.max(1))) {
        for (wide, x) in wide.iter_mut().zip(x) {
            *wide = x.to_f32();
        }
        let mean = lane_sum(&wide, |x| x) / width as f32;
        let variance = lane_sum(&wide, |x| (x - mean) * (x - mean)) / width as f32;
        let inverse = 1.0 / (variance + norm.eps).sqrt();
        for x in &mut wide {
            *x = (*x - mean) * inverse;
        }
        for (parameter, is_bias) in [(norm.weight, false), (norm.bias, true)] {
            for (x, parameter) in wide.iter_mut().zip(parameter.unwrap_or_default()) {
                *x = if is_bias { *x + parameter } else { *x * parameter };
            }
        }
        for (y, x) in y.iter_mut().zip(&wide) {
            *y = T::from_f32(*x);
        }
    }
}
