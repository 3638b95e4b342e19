//! Conversions in a plain loop.

use crate::Element;

/// Element by element; lengths agree.
#[inline(always)]
pub fn cast<A: Element, B: Element>(x: &[A], y: &mut [B]) {
    for (x, y) in x.iter().zip(y) {
        *y = B::from_f32(x.to_f32());
    }
}
