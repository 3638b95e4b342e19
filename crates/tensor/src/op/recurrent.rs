//! Mixers of positions that carry a state, and the rows that they must not see.

use kernels::Element;
use kernels::recurrence::{self, Scan, Selective};

use super::with_float;
use crate::error::Result;
use crate::{Engine, Tensor};

/// x (B, T, C), w (C, 1, K), bias (C) or none.
pub(super) fn causal_conv(engine: &Engine, inputs: &[Tensor]) -> Result<Tensor> {
    let (x, w) = (inputs[0].dense(&engine.budget)?, inputs[1].to_f32()?);
    let bias = inputs.get(2).map(Tensor::to_f32).transpose()?;
    let extents = [x.shape()[1], x.shape()[2], inputs[1].shape()[2]];
    with_float!(x.dtype(), T => {
        let from = x.as_slice::<T>()?;
        Tensor::build(&engine.budget, x.shape(), |y: &mut [T]| {
            Ok(recurrence::causal_conv(extents, &w, bias.as_deref(), from, y)?)
        })
    })
}

/// `[x, steps, k, q, decay, bias, skip]`.
pub(super) fn selective_scan(engine: &Engine, limits: [f32; 2], inputs: &[Tensor]) -> Result<Tensor> {
    let dense = inputs[..4].iter().map(|it| it.dense(&engine.budget)).collect::<Result<Vec<_>>>()?;
    let (decay_log, step_bias, skip) = (inputs[4].to_f32()?, inputs[5].to_f32()?, inputs[6].to_f32()?);
    let parameters = Selective { decay_log: &decay_log, step_bias: &step_bias, skip: &skip, limits };
    with_float!(dense[0].dtype(), T => {
        let numbers = [dense[0].as_slice::<T>()?, dense[1].as_slice()?, dense[2].as_slice()?, dense[3].as_slice()?];
        Tensor::build(&engine.budget, dense[0].shape(), |y: &mut [T]| {
            Ok(recurrence::selective_scan(scan(&dense[0], &dense[2]), parameters, numbers, y)?)
        })
    })
}

/// `[v, k, q, betas, gates, decay, bias]`.
pub(super) fn delta_scan(engine: &Engine, inputs: &[Tensor]) -> Result<Tensor> {
    let dense = inputs[..5].iter().map(|it| it.dense(&engine.budget)).collect::<Result<Vec<_>>>()?;
    let (decay_log, gate_bias) = (inputs[5].to_f32()?, inputs[6].to_f32()?);
    with_float!(dense[0].dtype(), T => {
        let [v, k, q, betas, gates] = [0, 1, 2, 3, 4].map(|idx| dense[idx].as_slice::<T>());
        let numbers = [v?, k?, q?, betas?, gates?];
        Tensor::build(&engine.budget, dense[0].shape(), |y: &mut [T]| {
            Ok(recurrence::delta_scan(scan(&dense[0], &dense[1]), [&decay_log, &gate_bias], numbers, y)?)
        })
    })
}

/// The shape of a scan of values (B, T, H, P) by keys (B, T, G, D).
fn scan(values: &Tensor, keys: &Tensor) -> Scan {
    let (v, k) = (values.shape(), keys.shape());
    Scan { batch: v[0], tokens: v[1], heads: v[2], groups: k[2], key_dim: k[3], value_dim: v[3] }
}

/// x (B, T, C), key mask (B, T).
pub(super) fn hide_rows(engine: &Engine, x: &Tensor, key_mask: &Tensor) -> Result<Tensor> {
    let (x, key_mask) = (x.dense(&engine.budget)?, key_mask.to_f32()?);
    let width = x.shape()[2].max(1);
    with_float!(x.dtype(), T => {
        let from = x.as_slice::<T>()?;
        Tensor::build(&engine.budget, x.shape(), |y: &mut [T]| {
            for ((y, x), &hidden) in y.chunks_exact_mut(width).zip(from.chunks_exact(width)).zip(key_mask.iter()) {
                if hidden == 0.0 {
                    y.copy_from_slice(x);
                } else {
                    y.fill(<T as Element>::from_f32(0.0));
                }
            }
            Ok(())
        })
    })
}
