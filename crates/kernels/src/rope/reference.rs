//! Rotary position embedding in plain loops.

use super::{Pairing, Rope};
use crate::Element;

/// Pair after pair; arguments agree.
pub fn rope<T: Element>(plan: &Rope<'_>, x: &mut [T]) {
    let half = plan.rotary_dim / 2;
    if half == 0 || plan.heads == 0 {
        return;
    }
    let tokens = plan.cos.len() / half;
    for (row, x) in x.chunks_exact_mut(plan.heads * plan.head_dim).enumerate() {
        let line = row % tokens * half;
        for head in x.chunks_exact_mut(plan.head_dim) {
            for i in 0..half {
                let (first, second) = match plan.pairing {
                    Pairing::Half => (i, i + half),
                    Pairing::Interleaved => (2 * i, 2 * i + 1),
                };
                let (a, b) = turn::<T>(head[first], head[second], plan.cos[line + i], plan.sin[line + i]);
                (head[first], head[second]) = (a, b);
            }
        }
    }
}

/// One pair, every operation rounded.
#[inline(always)]
pub(crate) fn turn<T: Element>(a: T, b: T, cos: f32, sin: f32) -> (T, T) {
    let product = |x: T, y: f32| T::from_f32(x.to_f32() * y).to_f32();
    (T::from_f32(product(a, cos) - product(b, sin)), T::from_f32(product(b, cos) + product(a, sin)))
}
