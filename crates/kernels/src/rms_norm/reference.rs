//! Root-mean-square normalization in plain loops.

use super::{RmsNorm, Rounded};
use crate::Element;
use crate::rows::lane_sum;

/// Row after row; arguments agree.
#[inline(always)]
pub fn rms_norm<T: Element>(norm: &RmsNorm<'_>, width: usize, x: &[T], y: &mut [T]) {
    let mut wide = vec![0.0f32; width];
    let weight: Vec<f32> = match norm.weight {
        Some(weight) => weight.iter().map(|weight| norm.weight_offset + weight).collect(),
        None => vec![1.0; width],
    };
    for (x, y) in x.chunks_exact(width.max(1)).zip(y.chunks_exact_mut(width.max(1))) {
        for (wide, x) in wide.iter_mut().zip(x) {
            *wide = x.to_f32();
        }
        let mean = lane_sum(&wide, |x| x * x) / width as f32;
        let inverse = 1.0 / (mean + norm.eps).sqrt();
        let out = y.iter_mut().zip(&wide).zip(&weight);
        match norm.rounded {
            Rounded::BeforeWeight => {
                out.for_each(|((y, x), weight)| *y = T::from_f32(T::from_f32(x * inverse).to_f32() * weight));
            }
            Rounded::AfterWeight => out.for_each(|((y, x), weight)| *y = T::from_f32(x * inverse * weight)),
        }
    }
}
