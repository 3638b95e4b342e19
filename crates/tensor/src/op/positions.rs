//! Rotary tables, rotation and attention.

use kernels::attention::Bias;
use kernels::rope::{Pairing, Rope};
use kernels::{Element, rope as ropes};

use super::{Attention, Presence, with_float};
use crate::error::{ErrorKind, Result};
use crate::{DType, Engine, Scalar, Tensor};

pub(super) fn rope_table(engine: &Engine, frequencies: &[f32], scaling: f32, x: &Tensor) -> Result<Vec<Tensor>> {
    let tokens = x.shape()[1];
    let positions =
        u32::try_from(tokens).map_err(|_| ErrorKind::Index { found: tokens as i64, bound: u32::MAX as usize })?;
    let positions: Vec<u32> = (0..positions).collect();
    let (cos, sin) = ropes::table(&positions, frequencies, scaling);
    let shape = [tokens, frequencies.len()];
    with_float!(x.dtype(), T => [cos, sin].into_iter().map(|table| {
        let rounded = table.into_iter().map(|value| Element::to_f32(<T as Element>::from_f32(value))).collect();
        engine.budget.tensor::<f32>(rounded, &shape)
    }).collect())
}

/// Turns the first of `[x, cos, sin]` in place where nobody else holds it.
pub(super) fn rope(engine: &Engine, pairing: Pairing, inputs: Vec<Tensor>) -> Result<Tensor> {
    let dtype = inputs[0].dtype();
    with_float!(dtype, T => rope_typed::<T>(engine, pairing, inputs))
}

fn rope_typed<T: Scalar + Element>(engine: &Engine, pairing: Pairing, inputs: Vec<Tensor>) -> Result<Tensor> {
    let Ok([x, cos, sin]) = <[Tensor; 3]>::try_from(inputs) else {
        return Err(ErrorKind::Arity { found: 0, expected: "3".to_owned() }.into());
    };
    let (cos, sin) = (cos.to_f32()?, sin.to_f32()?);
    let (heads, head_dim) = (x.shape()[2], x.shape()[3]);
    let rotary_dim = 2 * cos.len().checked_div(x.shape()[1]).unwrap_or(0);
    let plan = Rope { heads, head_dim, rotary_dim, pairing, cos: &cos, sin: &sin };
    match x.into_unique::<T>() {
        Ok((shape, mut buffer)) => {
            ropes::rope(engine.profile, &plan, T::slice_mut(buffer.data_mut()).unwrap_or_default())?;
            Ok(Tensor::from_unique(shape, buffer))
        }
        Err(x) => {
            let x = x.dense(&engine.budget)?;
            let from = x.as_slice::<T>()?;
            Tensor::build(&engine.budget, x.shape(), |y: &mut [T]| {
                y.copy_from_slice(from);
                Ok(ropes::rope(engine.profile, &plan, y)?)
            })
        }
    }
}

pub(super) fn key_mask(engine: &Engine, mask: &Tensor) -> Result<Tensor> {
    let hidden = |is_hidden: bool| if is_hidden { f32::NEG_INFINITY } else { 0.0 };
    let numbers: Vec<f32> = match mask.dtype() {
        DType::I64 => mask.as_slice::<i64>()?.iter().map(|&m| hidden(m == 0)).collect(),
        DType::I32 => mask.as_slice::<i32>()?.iter().map(|&m| hidden(m == 0)).collect(),
        DType::U8 => mask.as_slice::<u8>()?.iter().map(|&m| hidden(m == 0)).collect(),
        found => {
            let expected = "one of I64, I32, U8".to_owned();
            return Err(ErrorKind::DType { argument: "mask", found, expected }.into());
        }
    };
    engine.budget.tensor(numbers, mask.shape())
}

/// `[q, k, v]`, then sinks and key mask as declared.
pub(super) fn attention(engine: &Engine, attention: &Attention, inputs: &[Tensor]) -> Result<Tensor> {
    let mut extras = inputs[3..].iter();
    let mut extra = |presence: Presence| if presence == Presence::Given { extras.next() } else { None };
    let sinks = extra(attention.sinks).map(Tensor::to_f32).transpose()?;
    let key_mask = extra(attention.key_mask).map(Tensor::to_f32).transpose()?;
    let [q, k, v] = [0, 1, 2].map(|idx| inputs[idx].dense(&engine.budget));
    let (q, k, v) = (q?, k?, v?);
    let keys = k.shape()[1];
    let plan = kernels::attention::Attention {
        batch: q.shape()[0],
        queries: q.shape()[1],
        keys,
        heads: q.shape()[2],
        kv_heads: k.shape()[2],
        head_dim: q.shape()[3],
        value_dim: v.shape()[3],
        scale: attention.scale,
        mask: attention.mask,
        softcap: attention.softcap,
        bias: key_mask.as_deref().map(|data| Bias { data, strides: [keys, 0, 0] }),
        sinks: sinks.as_deref(),
    };
    let shape = [plan.batch, plan.queries, plan.heads, plan.value_dim];
    with_float!(q.dtype(), T => {
        let qkv = [q.as_slice::<T>()?, k.as_slice::<T>()?, v.as_slice::<T>()?];
        Tensor::build(&engine.budget, &shape, |out: &mut [T]| Ok(kernels::attention::attention(engine.profile, &plan, qkv, out)?))
    })
}
