//! Rotary tables, rotation and attention.

use kernels::attention::Bias;
use kernels::elementary::{ln_f64, pow_f64};
use kernels::rope::{Pairing, Rope};
use kernels::{Element, rope as ropes};

use super::{Attention, LongFrequencies, Longer, Presence, with_float};
use crate::error::{ErrorKind, Result};
use crate::{DType, Engine, Scalar, Tensor};

pub(super) fn rope_table(
    engine: &Engine,
    frequencies: &[f32],
    scaling: f32,
    longer: Option<&Longer>,
    x: &Tensor,
) -> Result<Vec<Tensor>> {
    let (first, tokens) = (engine.first_position, x.shape()[1]);
    let end = first.saturating_add(tokens);
    let long = longer.filter(|it| end > it.after).map(|it| it.of(end, frequencies.len()));
    let frequencies = long.as_deref().unwrap_or(frequencies);
    let number = |position: usize| {
        u32::try_from(position).map_err(|_| ErrorKind::Index { found: position as i64, bound: u32::MAX as usize })
    };
    let positions: Vec<u32> = (number(first)?..number(end)?).collect();
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
    engine.budget.tensor(key_mask_numbers(mask)?, mask.shape())
}

fn key_mask_numbers(mask: &Tensor) -> Result<Vec<f32>> {
    let hidden = |is_hidden: bool| if is_hidden { f32::NEG_INFINITY } else { 0.0 };
    Ok(match mask.dtype() {
        DType::I64 => mask.as_slice::<i64>()?.iter().map(|&m| hidden(m == 0)).collect(),
        DType::I32 => mask.as_slice::<i32>()?.iter().map(|&m| hidden(m == 0)).collect(),
        DType::U8 => mask.as_slice::<u8>()?.iter().map(|&m| hidden(m == 0)).collect(),
        found => {
            let expected = "one of I64, I32, U8".to_owned();
            return Err(ErrorKind::DType { argument: "mask", found, expected }.into());
        }
    })
}

impl Longer {
    /// `n` inverse frequencies of a row of `tokens`.
    fn of(&self, tokens: usize, n: usize) -> Vec<f32> {
        match &self.frequencies {
            LongFrequencies::Given(frequencies) => frequencies.to_vec(),
            LongFrequencies::Grown { theta, factor } => {
                let growth = factor * tokens as f64 / self.after as f64 - (factor - 1.0);
                let width = 2.0 * n as f64;
                ropes::inverse_frequencies(theta * pow_f64(growth, width / (width - 2.0)), 2 * n)
            }
        }
    }
}

/// Whether each of the tokens of a mask is hidden.
fn hidden(mask: &Tensor) -> Result<Vec<bool>> {
    Ok(key_mask_numbers(mask)?.into_iter().map(|number| number != 0.0).collect())
}

/// ids (B, T), none or a mask (B, T); tokens before the first position are visible.
pub(super) fn positions(engine: &Engine, offset: u32, inputs: &[Tensor]) -> Result<Tensor> {
    let shape = inputs[0].shape();
    let first = u32::try_from(engine.first_position)
        .map_err(|_| ErrorKind::Index { found: engine.first_position as i64, bound: u32::MAX as usize })?;
    let tokens = shape[1].max(1);
    let hidden = inputs.get(1).map(hidden).transpose()?.unwrap_or_else(|| vec![false; shape[0] * shape[1]]);
    let mut ids = Vec::with_capacity(hidden.len());
    for row in hidden.chunks_exact(tokens) {
        let mut next = offset.saturating_add(first);
        for &is_hidden in row {
            ids.push(if is_hidden { offset.saturating_sub(1) } else { next });
            next += u32::from(!is_hidden);
        }
    }
    engine.budget.tensor::<u32>(ids, shape)
}

/// x (B, T, C), none or a key mask (B, T); keys before the first position are visible, and have numbers too.
pub(super) fn alibi(
    engine: &Engine,
    slopes: &[f32],
    rounded_to: Option<DType>,
    factor: f32,
    inputs: &[Tensor],
) -> Result<Tensor> {
    let (batch, tokens, first) = (inputs[0].shape()[0], inputs[0].shape()[1], engine.first_position);
    let mask = inputs.get(1).map(Tensor::to_f32).transpose()?;
    let mut numbers = Vec::with_capacity(batch * slopes.len() * (first + tokens));
    with_float!(rounded_to.unwrap_or(inputs[0].dtype()), T => {
        for row in 0..batch {
            for slope in slopes {
                let mut position = 0u32;
                for key in 0..first + tokens {
                    let token = key.checked_sub(first);
                    let hidden = mask.as_ref().zip(token).map_or(0.0, |(mask, token)| mask[row * tokens + token]);
                    let product = <T as Element>::from_f32(slope * position as f32);
                    numbers.push(if hidden == 0.0 { Element::to_f32(product) * factor } else { hidden });
                    position += u32::from(hidden == 0.0);
                }
            }
        }
        Ok::<_, crate::Error>(())
    })?;
    engine.budget.tensor::<f32>(numbers, &[batch, slopes.len(), first + tokens])
}

/// `[period, scale]`; x (B, T, H, D).
pub(super) fn scale_by_position(engine: &Engine, [period, scale]: [f32; 2], x: &Tensor) -> Result<Tensor> {
    let x = x.dense(&engine.budget)?;
    let (tokens, width) = (x.shape()[1].max(1), x.shape()[2] * x.shape()[3]);
    let factor = |row: usize| {
        let step = ((engine.first_position + row % tokens) as f32 + 1.0) / period;
        ln_f64(1.0 + f64::from(step.floor())) as f32 * scale + 1.0
    };
    with_float!(x.dtype(), T => {
        let from = x.as_slice::<T>()?;
        Tensor::build(&engine.budget, x.shape(), |y: &mut [T]| {
            for (row, (y, x)) in y.chunks_exact_mut(width.max(1)).zip(from.chunks_exact(width.max(1))).enumerate() {
                let factor = factor(row);
                y.iter_mut().zip(x).for_each(|(y, &x)| *y = <T as Element>::from_f32(Element::to_f32(x) * factor));
            }
            Ok(())
        })
    })
}

/// `[q, k, v]`, then sinks and key mask as declared.
pub(super) fn attention(engine: &Engine, attention: &Attention, inputs: &[Tensor]) -> Result<Tensor> {
    let mut extras = inputs[3..].iter();
    let mut extra = |presence: Presence| if presence == Presence::Given { extras.next() } else { None };
    let sinks = extra(attention.sinks).map(Tensor::to_f32).transpose()?;
    let key_mask = extra(attention.key_mask);
    let is_by_head = key_mask.is_some_and(|mask| mask.shape().len() == 3);
    let key_mask = key_mask.map(Tensor::to_f32).transpose()?;
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
        bias: key_mask
            .as_deref()
            .map(|data| Bias { data, strides: if is_by_head { [q.shape()[2] * keys, keys, 0] } else { [keys, 0, 0] } }),
        sinks: sinks.as_deref(),
    };
    let shape = [plan.batch, plan.queries, plan.heads, plan.value_dim];
    with_float!(q.dtype(), T => {
        let qkv = [q.as_slice::<T>()?, k.as_slice::<T>()?, v.as_slice::<T>()?];
        Tensor::build(&engine.budget, &shape, |out: &mut [T]| Ok(kernels::attention::attention(engine.profile, &plan, qkv, out)?))
    })
}
