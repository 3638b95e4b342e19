//! Rotary position embedding in plain loops.

use super::{Pairing, Rope};
use crate::Element;

/// Pair after pair, from row `first` of the whole; arguments agree.
#[inline(always)]
pub fn rope<T: Element>(plan: &Rope<'_>, first: usize, x: &mut [T]) {
    let half = plan.rotary_dim / 2;
    let tokens = plan.cos.len() / half.max(1);
    if tokens == 0 {
        return;
    }
    for (row, x) in x.chunks_exact_mut((plan.heads * plan.head_dim).max(1)).enumerate() {
        let line = (first + row) % tokens * half;
        let (cos, sin) = (&plan.cos[line..line + half], &plan.sin[line..line + half]);
        for head in x.chunks_exact_mut(plan.head_dim.max(1)) {
            match plan.pairing {
                Pairing::Half => {
                    let (left, right) = head[..plan.rotary_dim].split_at_mut(half);
                    for (((a, b), &cos), &sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
                        (*a, *b) = turn(*a, *b, cos, sin);
                    }
                }
                Pairing::Interleaved => {
                    for ((pair, &cos), &sin) in head[..plan.rotary_dim].chunks_exact_mut(2).zip(cos).zip(sin) {
                        (pair[0], pair[1]) = turn(pair[0], pair[1], cos, sin);
                    }
                }
            }
        }
    }
}

/// One pair, every operation rounded.
#[inline(always)]
fn turn<T: Element>(a: T, b: T, cos: f32, sin: f32) -> (T, T) {
    let product = |x: T, y: f32| T::from_f32(x.to_f32() * y).to_f32();
    (T::from_f32(product(a, cos) - product(b, sin)), T::from_f32(product(b, cos) + product(a, sin)))
}
