//! Activation functions in plain loops.

use super::Activation;
use crate::Element;
use crate::elementary::{erf, exp, tanh};

/// f of every element; lengths agree.
pub fn activate<T: Element>(f: Activation, x: &[T], y: &mut [T]) {
    for (x, y) in x.iter().zip(y) {
        *y = T::from_f32(apply(f, x.to_f32()));
    }
}

/// f of every gate, rounded, times `up`; lengths agree.
pub fn gated<T: Element>(f: Activation, gate: &[T], up: &[T], y: &mut [T]) {
    for ((gate, up), y) in gate.iter().zip(up).zip(y) {
        let gate = T::from_f32(apply(f, gate.to_f32()));
        *y = T::from_f32(gate.to_f32() * up.to_f32());
    }
}

/// f of one number.
#[inline(always)]
pub fn apply(f: Activation, x: f32) -> f32 {
    match f {
        Activation::Silu => x / (1.0 + exp(-x)),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = 0.797_884_6 * (x + 0.044_715 * (x * x * x));
            0.5 * x * (1.0 + tanh(inner))
        }
        Activation::QuickGelu => x / (1.0 + exp(-1.702 * x)),
        Activation::Relu => relu(x),
        Activation::ReluSquared => relu(x) * relu(x),
        Activation::Sigmoid => 1.0 / (1.0 + exp(-x)),
    }
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}
