//! Distances in plain loops.

use crate::Element;
use crate::rows::lane_sum_of_pairs;

/// Sum of squared differences of slices of one length.
#[inline(always)]
pub fn squared<E: Element>(a: &[E], b: &[E]) -> f64 {
    let round = |it: f32| E::from_f32(it).to_f32();
    lane_sum_of_pairs(a, b, |a, b| {
        let difference = round(a.to_f32() - b.to_f32());
        f64::from(round(difference * difference))
    })
}
