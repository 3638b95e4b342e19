//! Root-mean-square normalization in plain loops.

use super::{RmsNorm, Rounded};
use crate::Element;
use crate::rows::lane_sum;

/// Row after row; arguments agree.
pub fn rms_norm<T: Element>(norm: &RmsNorm<'_>, width: usize, x: &[T], y: &mut [T]) {
    for (x, y) in x.chunks_exact(width.max(1)).zip(y.chunks_exact_mut(width.max(1))) {
        let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
        let mean = lane_sum(&wide, |x| x * x) / width as f32;
        let inverse = 1.0 / (mean + norm.eps).sqrt();
        for (i, (x, y)) in wide.iter().zip(y).enumerate() {
            let scaled = x * inverse;
            let weight = norm.weight.map_or(1.0, |weight| norm.weight_offset + weight[i]);
            *y = match norm.rounded {
                Rounded::BeforeWeight => T::from_f32(T::from_f32(scaled).to_f32() * weight),
                Rounded::AfterWeight => T::from_f32(scaled * weight),
            };
        }
    }
}
