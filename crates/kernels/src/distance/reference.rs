//! Distances in plain loops.

use crate::Element;
use crate::rows::LANES;

/// Sum of squared differences of slices of one length.
#[inline(always)]
pub fn squared<E: Element>(a: &[E], b: &[E]) -> f64 {
    let round = |it: f32| E::from_f32(it).to_f32();
    let term = |a: E, b: E| {
        let difference = round(a.to_f32() - b.to_f32());
        f64::from(round(difference * difference))
    };
    let mut lanes = [0.0f64; LANES];
    let (a, rest_a) = a.as_chunks::<LANES>();
    let (b, rest_b) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] += term(a[lane], b[lane]);
        }
    }
    for (lane, (a, b)) in lanes.iter_mut().zip(rest_a.iter().zip(rest_b)) {
        *lane += term(*a, *b);
    }
    lanes.iter().sum()
}
