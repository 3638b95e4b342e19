//! Layer normalization in plain loops.

use super::LayerNorm;
use crate::Element;
use crate::rows::lane_sum;

/// Row after row; arguments agree.
pub fn layer_norm<T: Element>(norm: &LayerNorm<'_>, width: usize, x: &[T], y: &mut [T]) {
    for (x, y) in x.chunks_exact(width.max(1)).zip(y.chunks_exact_mut(width.max(1))) {
        let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
        let mean = lane_sum(&wide, |x| x) / width as f32;
        let variance = lane_sum(&wide, |x| (x - mean) * (x - mean)) / width as f32;
        let inverse = 1.0 / (variance + norm.eps).sqrt();
        for (i, (x, y)) in wide.iter().zip(y).enumerate() {
            let scaled = (x - mean) * inverse * norm.weight.map_or(1.0, |weight| weight[i]);
            *y = T::from_f32(norm.bias.map_or(scaled, |bias| scaled + bias[i]));
        }
    }
}
