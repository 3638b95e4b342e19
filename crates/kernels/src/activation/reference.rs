//! Activation functions in plain loops.

use super::Activation;
use crate::Element;
use crate::elementary::{erf, exp, tanh};

/// Repeats a loop for each function, so that none of them is picked anew for each number.
macro_rules! by_function {
    ($f:expr, |$name:ident| $body:expr) => {
        match $f {
            Activation::Silu => {
                let $name = silu;
                $body
            }
            Activation::Gelu => {
                let $name = gelu;
                $body
            }
            Activation::GeluTanh => {
                let $name = gelu_tanh;
                $body
            }
            Activation::QuickGelu => {
                let $name = quick_gelu;
                $body
            }
            Activation::Relu => {
                let $name = relu;
                $body
            }
            Activation::ReluSquared => {
                let $name = relu_squared;
                $body
            }
            Activation::Sigmoid => {
                let $name = sigmoid;
                $body
            }
        }
    };
}

/// f of every element; lengths agree.
#[inline(always)]
pub fn activate<T: Element>(f: Activation, x: &[T], y: &mut [T]) {
    by_function!(f, |f| x.iter().zip(y).for_each(|(x, y)| *y = T::from_f32(f(x.to_f32()))));
}

/// f of every gate, rounded, times `up`; lengths agree.
#[inline(always)]
pub fn gated<T: Element>(f: Activation, gate: &[T], up: &[T], y: &mut [T]) {
    by_function!(f, |f| {
        for ((gate, up), y) in gate.iter().zip(up).zip(y) {
            *y = T::from_f32(T::from_f32(f(gate.to_f32())).to_f32() * up.to_f32());
        }
    });
}

/// f of one number.
pub fn apply(f: Activation, x: f32) -> f32 {
    by_function!(f, |f| f(x))
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    let inner = 0.797_884_6 * (x + 0.044_715 * (x * x * x));
    0.5 * x * (1.0 + tanh(inner))
}

#[inline(always)]
fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + exp(-1.702 * x))
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn relu_squared(x: f32) -> f32 {
    relu(x) * relu(x)
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}
