//! Norms, activations and arithmetic element by element.

use kernels::activation::{self, Activation};
use kernels::elementary::{exp, tanh};
use kernels::layer_norm::LayerNorm;
use kernels::rms_norm::{RmsNorm, Rounded};
use kernels::{Element, cast as casts};
use rayon::prelude::*;

use super::with_float;
use crate::error::Result;
use crate::{DType, Engine, Scalar, Tensor};

/// Elements that one task of a parallel loop takes.
const TASK_ELEMENTS: usize = 1 << 15;

/// `[eps, weight_offset]`; x (..., C), weight (C) or none.
pub(super) fn rms_norm(
    engine: &Engine,
    [eps, weight_offset]: [f32; 2],
    rounded: Rounded,
    inputs: &[Tensor],
) -> Result<Tensor> {
    let weight = inputs.get(1).map(Tensor::to_f32).transpose()?;
    let norm = RmsNorm { weight: weight.as_deref(), weight_offset, eps, rounded };
    let x = inputs[0].dense(&engine.budget)?;
    with_float!(x.dtype(), T => map(engine, &x, |x: &[T], y| kernels::rms_norm::rms_norm(engine.profile, &norm, width(&inputs[0]), x, y)))
}

/// `[eps, weight_offset]`; x (..., C), then weight (C), then bias (C), or none.
pub(super) fn layer_norm(engine: &Engine, [eps, weight_offset]: [f32; 2], inputs: &[Tensor]) -> Result<Tensor> {
    let x = inputs[0].dense(&engine.budget)?;
    let mut weight = inputs.get(1).map(Tensor::to_f32).transpose()?;
    if let Some(weight) = weight.as_mut().filter(|_| weight_offset != 0.0) {
        with_float!(x.dtype(), T => {
            weight.to_mut().iter_mut().for_each(|w| *w = Element::to_f32(<T as Element>::from_f32(*w + weight_offset)));
            Ok::<_, crate::Error>(())
        })?;
    }
    let bias = inputs.get(2).map(Tensor::to_f32).transpose()?;
    let norm = LayerNorm { weight: weight.as_deref(), bias: bias.as_deref(), eps };
    with_float!(x.dtype(), T => map(engine, &x, |x: &[T], y| kernels::layer_norm::layer_norm(engine.profile, &norm, width(&inputs[0]), x, y)))
}

pub(super) fn softmax(engine: &Engine, x: &Tensor) -> Result<Tensor> {
    let x = x.dense(&engine.budget)?;
    with_float!(x.dtype(), T => map(engine, &x, |from: &[T], y| kernels::softmax::softmax(engine.profile, width(&x), from, y)))
}

pub(super) fn activate(engine: &Engine, f: Activation, x: &Tensor) -> Result<Tensor> {
    let x = x.dense(&engine.budget)?;
    with_float!(x.dtype(), T => map(engine, &x, |x: &[T], y| activation::activate(engine.profile, f, x, y)))
}

pub(super) fn gated(engine: &Engine, f: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (gate, up) = (gate.dense(&engine.budget)?, up.dense(&engine.budget)?);
    with_float!(gate.dtype(), T => {
        let up = up.as_slice::<T>()?;
        map(engine, &gate, |gate: &[T], y| activation::gated(engine.profile, f, gate, up, y))
    })
}

/// `[alpha, limit]`.
pub(super) fn gated_clamped(engine: &Engine, [alpha, limit]: [f32; 2], gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let (gate, up) = (gate.dense(&engine.budget)?, up.dense(&engine.budget)?);
    with_float!(gate.dtype(), T => {
        let round = |x: f32| Element::to_f32(<T as Element>::from_f32(x));
        let f = |gate: T, up: T| {
            let (gate, up) = (Element::to_f32(gate).min(limit), Element::to_f32(up).clamp(-limit, limit));
            let sigmoid = round(1.0 / (1.0 + exp(-round(gate * alpha))));
            <T as Element>::from_f32(round(up + 1.0) * round(gate * sigmoid))
        };
        let up = up.as_slice::<T>()?;
        map(engine, &gate, |gate: &[T], y| {
            let operands = gate.par_chunks(TASK_ELEMENTS).zip(up.par_chunks(TASK_ELEMENTS));
            y.par_chunks_mut(TASK_ELEMENTS).zip(operands).for_each(|(y, (gate, up))| {
                for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
                    *y = f(gate, up);
                }
            });
            Ok(())
        })
    })
}

/// gate (N, 1), x (N, C).
pub(super) fn scale_rows(engine: &Engine, f: Activation, gate: &Tensor, x: &Tensor) -> Result<Tensor> {
    let (gate, x) = (activate(engine, f, gate)?, x.dense(&engine.budget)?);
    let columns = width(&x).max(1);
    with_float!(x.dtype(), T => {
        let gate = gate.as_slice::<T>()?;
        map(engine, &x, |x: &[T], y| {
            for ((y, x), &gate) in y.chunks_exact_mut(columns).zip(x.chunks_exact(columns)).zip(gate) {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = <T as Element>::from_f32(Element::to_f32(gate) * Element::to_f32(x));
                }
            }
            Ok(())
        })
    })
}

pub(super) fn scale(engine: &Engine, factor: f32, x: &Tensor) -> Result<Tensor> {
    let x = x.dense(&engine.budget)?;
    with_float!(x.dtype(), T => each(engine, &x, |x: T| T::from_f32(x.to_f32() * factor)))
}

pub(super) fn scale_in_type(engine: &Engine, factor: f32, x: &Tensor) -> Result<Tensor> {
    let x = x.dense(&engine.budget)?;
    with_float!(x.dtype(), T => {
        let factor = Element::to_f32(<T as Element>::from_f32(factor));
        each(engine, &x, |x: T| T::from_f32(x.to_f32() * factor))
    })
}

pub(super) fn softcap(engine: &Engine, cap: f32, x: &Tensor) -> Result<Tensor> {
    let x = x.dense(&engine.budget)?;
    with_float!(x.dtype(), T => {
        let round = |x: f32| Element::to_f32(<T as Element>::from_f32(x));
        each(engine, &x, |x: T| T::from_f32(round(tanh(round(x.to_f32() / cap))) * cap))
    })
}

/// `f` of each element of a dense tensor.
fn each<T: Scalar + Element>(engine: &Engine, x: &Tensor, f: impl Fn(T) -> T + Sync) -> Result<Tensor> {
    map(engine, x, |x: &[T], y| {
        y.par_chunks_mut(TASK_ELEMENTS).zip(x.par_chunks(TASK_ELEMENTS)).for_each(|(y, x)| {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = f(x);
            }
        });
        Ok(())
    })
}

/// `f(a, b)` in f32, rounded; written over whichever operand nobody else holds.
pub(super) fn zip(engine: &Engine, inputs: Vec<Tensor>, f: fn(f32, f32) -> f32) -> Result<Tensor> {
    let dtype = inputs[0].dtype();
    with_float!(dtype, T => zip_typed::<T>(engine, inputs, f))
}

fn zip_typed<T: Scalar + Element>(engine: &Engine, inputs: Vec<Tensor>, f: fn(f32, f32) -> f32) -> Result<Tensor> {
    let mut inputs = inputs.into_iter();
    let (Some(a), Some(b)) = (inputs.next(), inputs.next()) else {
        return Err(crate::ErrorKind::Arity { found: 0, expected: "2".to_owned() }.into());
    };
    let b = b.dense(&engine.budget)?;
    let round = |a: T, b: T| T::from_f32(f(Element::to_f32(a), Element::to_f32(b)));
    match a.into_unique::<T>() {
        Ok((shape, mut buffer)) => {
            let data = T::slice_mut(buffer.data_mut()).unwrap_or_default();
            let b = b.as_slice::<T>()?;
            data.par_chunks_mut(TASK_ELEMENTS).zip(b.par_chunks(TASK_ELEMENTS)).for_each(|(a, b)| {
                for (a, &b) in a.iter_mut().zip(b) {
                    *a = round(*a, b);
                }
            });
            Ok(Tensor::from_unique(shape, buffer))
        }
        Err(a) => {
            let a = a.dense(&engine.budget)?;
            let (a_data, b_data) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
            Tensor::build(&engine.budget, a.shape(), |y: &mut [T]| {
                let operands = a_data.par_chunks(TASK_ELEMENTS).zip(b_data.par_chunks(TASK_ELEMENTS));
                y.par_chunks_mut(TASK_ELEMENTS).zip(operands).for_each(|(y, (a, b))| {
                    for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                        *y = round(a, b);
                    }
                });
                Ok(())
            })
        }
    }
}

pub(super) fn cast(engine: &Engine, dtype: DType, x: &Tensor) -> Result<Tensor> {
    if x.dtype() == dtype {
        return Ok(x.clone());
    }
    let x = x.dense(&engine.budget)?;
    with_float!(x.dtype(), A => with_float!(dtype, B => {
        let from = x.as_slice::<A>()?;
        Tensor::build(&engine.budget, x.shape(), |y: &mut [B]| Ok(casts::cast(engine.profile, from, y)?))
    }))
}

/// `run` over a dense tensor into a new one of the same shape.
fn map<T: Scalar>(
    engine: &Engine,
    x: &Tensor,
    run: impl FnOnce(&[T], &mut [T]) -> kernels::Result<()>,
) -> Result<Tensor> {
    let from = x.as_slice::<T>()?;
    Tensor::build(&engine.budget, x.shape(), |y: &mut [T]| Ok(run(from, y)?))
}

fn width(x: &Tensor) -> usize {
    x.shape().last().copied().unwrap_or(1)
}
