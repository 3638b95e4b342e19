//! Activation functions, alone and as gates.

pub mod reference;

use crate::error::check_len;
use crate::{Element, Profile, Result};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x / 2 * (1 + erf(x / sqrt 2))`.
    Gelu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
    GeluTanh,
    /// `x / (1 + exp(-1.702 x))`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    ReluSquared,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
}

/// `y = f(x)`, element by element, in f32, rounded once.
pub fn activate<T: Element>(profile: Profile, f: Activation, x: &[T], y: &mut [T]) -> Result<()> {
    check_len("activation: y", y.len(), &[x.len()])?;
    let _ = profile;
    reference::activate(f, x, y);
    Ok(())
}

/// `y = round(f(gate)) * up`, element by element: the activation is rounded to the element type before the product, as if it had
/// been stored.
pub fn gated<T: Element>(profile: Profile, f: Activation, gate: &[T], up: &[T], y: &mut [T]) -> Result<()> {
    check_len("activation: y", y.len(), &[gate.len()])?;
    check_len("activation: up", up.len(), &[gate.len()])?;
    let _ = profile;
    reference::gated(f, gate, up, y);
    Ok(())
}
