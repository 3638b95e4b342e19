//! Activation functions, alone and as gates.

pub mod reference;

use rayon::prelude::*;

use crate::error::check_len;
use crate::rows::{over_rows, twins};
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
    over_rows(1, x, y, |x, y| activate_run(profile, f, x, y));
    Ok(())
}

/// `y = round(f(gate)) * up`, element by element: the activation is rounded to the element type before the product, as if it had
/// been stored.
pub fn gated<T: Element>(profile: Profile, f: Activation, gate: &[T], up: &[T], y: &mut [T]) -> Result<()> {
    check_len("activation: y", y.len(), &[gate.len()])?;
    check_len("activation: up", up.len(), &[gate.len()])?;
    let run = crate::rows::TASK_ELEMENTS;
    let parts = gate.par_chunks(run).zip(up.par_chunks(run)).zip(y.par_chunks_mut(run));
    parts.for_each(|((gate, up), y)| gated_run(profile, f, gate, up, y));
    Ok(())
}

twins! {
    /// The loop on this thread; lengths agree.
    fn activate_run<T>(f: Activation, x: &[T], y: &mut [T]) = reference::activate;
}

twins! {
    /// The loop on this thread; lengths agree.
    fn gated_run<T>(f: Activation, gate: &[T], up: &[T], y: &mut [T]) = reference::gated;
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::gemm::tests::numbers;

    const ALL: [Activation; 7] = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::ReluSquared,
        Activation::Sigmoid,
    ];

    fn agree<T: Element>() {
        for len in [0, 1, 17, 70_001] {
            let (gate, up) = (numbers::<T>(len, 1), numbers::<T>(len, 2));
            for f in ALL {
                let (mut want, mut want_gated) = (vec![T::default(); len], vec![T::default(); len]);
                reference::activate(f, &gate, &mut want);
                reference::gated(f, &gate, &up, &mut want_gated);
                for profile in Profile::available() {
                    let (mut got, mut got_gated) = (vec![T::default(); len], vec![T::default(); len]);
                    activate(profile, f, &gate, &mut got).unwrap();
                    gated(profile, f, &gate, &up, &mut got_gated).unwrap();
                    assert!(got == want && got_gated == want_gated, "{profile:?} {f:?} {len}");
                }
            }
        }
    }

    #[test]
    fn all_profiles_have_the_bits_of_the_reference() {
        agree::<f32>();
        agree::<bf16>();
    }

    /// The error of erf or tanh, times half of |x| up to 8.
    const AGAINST_F64: f64 = 2e-6;

    #[test]
    fn functions_are_those_of_their_formulas() {
        for i in -8000..8000 {
            let x = i as f32 / 1000.0;
            let wide = f64::from(x);
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044715 * wide.powi(3));
            let want = [
                (Activation::Silu, wide * sigmoid(wide)),
                (Activation::GeluTanh, 0.5 * wide * (1.0 + inner.tanh())),
                (Activation::QuickGelu, wide * sigmoid(1.702 * wide)),
                (Activation::Relu, wide.max(0.0)),
                (Activation::ReluSquared, wide.max(0.0).powi(2)),
                (Activation::Sigmoid, sigmoid(wide)),
            ];
            for (f, want) in want {
                let got = f64::from(reference::apply(f, x));
                assert!((got - want).abs() <= AGAINST_F64 * want.abs().max(1.0), "{f:?} {x} {got} {want}");
            }
        }
        assert_eq!(reference::apply(Activation::Gelu, 0.0), 0.0);
        // From a table of the normal distribution: 0.841344746 below one deviation.
        assert!((reference::apply(Activation::Gelu, 1.0) - 0.841_344_7).abs() < 1e-6);
    }

    #[test]
    fn a_gate_is_rounded_before_the_product() {
        let (gate, up) = ([bf16::from_f32(1.0)], [bf16::from_f32(3.0)]);
        let mut y = [bf16::ZERO];
        gated(Profile::detect(), Activation::Silu, &gate, &up, &mut y).unwrap();
        let rounded = bf16::from_f32(1.0 / (1.0 + (-1.0f32).exp()));
        assert_eq!(y[0], bf16::from_f32(rounded.to_f32() * 3.0));
        assert_eq!(
            gated(Profile::detect(), Activation::Silu, &gate, &[], &mut y).unwrap_err().place(),
            "activation: up"
        );
    }
}
