//! Linear layers and the embedding.

use kernels::{Element, Mat, MatMut, gemm};

use super::with_float;
use crate::error::{ErrorKind, Result};
use crate::{DType, Engine, Scalar, Tensor};

/// x (..., C), w (O, C), bias (O) or none.
pub(super) fn linear(engine: &Engine, inputs: &[Tensor]) -> Result<Tensor> {
    let x = inputs[0].dense(&engine.budget)?;
    let w = inputs[1].dense(&engine.budget)?;
    let mut shape = x.shape().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = w.shape()[0];
    }
    with_float!(x.dtype(), T => Tensor::build(&engine.budget, &shape, |y: &mut [T]| into(engine, &x, &w, inputs.get(2), y)))
}

/// Writes `x @ w^T (+ bias)` of dense operands to `y`.
pub(super) fn into<T: Scalar + Element>(
    engine: &Engine,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    y: &mut [T],
) -> Result<()> {
    let (rows, columns) = (w.shape()[0], w.shape()[1]);
    let tokens = x.elements().checked_div(columns).unwrap_or(0);
    let bias = bias.map(Tensor::to_f32).transpose()?;
    let x = Mat::new(x.as_slice::<T>()?, tokens, columns)?;
    let w = Mat::new(w.as_slice::<T>()?, rows, columns)?;
    Ok(gemm::linear(engine.profile, x, w, bias.as_deref(), MatMut::new(y, tokens, rows)?)?)
}

pub(super) fn embedding(engine: &Engine, ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    let table = table.dense(&engine.budget)?;
    let rows = indices(ids, table.shape()[0])?;
    let width = table.shape()[1];
    let shape = [ids.shape(), &[width]].concat();
    with_float!(table.dtype(), T => Tensor::build(&engine.budget, &shape, |out: &mut [T]| {
        Ok(kernels::embedding::gather(&rows, table.as_slice::<T>()?, width, out)?)
    }))
}

/// Ids of type I64, I32 or U32 as numbers below `bound`.
///
/// # Errors
/// [`ErrorKind::Index`] for a number outside, [`ErrorKind::DType`] for another type.
pub fn indices(ids: &Tensor, bound: usize) -> Result<Vec<u32>> {
    let wide: Vec<i64> = match ids.dtype() {
        DType::I64 => ids.as_slice::<i64>()?.to_vec(),
        DType::I32 => ids.as_slice::<i32>()?.iter().map(|&id| id.into()).collect(),
        _ => ids.as_slice::<u32>()?.iter().map(|&id| id.into()).collect(),
    };
    let narrow = |id: i64| {
        let fits = usize::try_from(id).is_ok_and(|id| id < bound);
        u32::try_from(id).ok().filter(|_| fits).ok_or_else(|| ErrorKind::Index { found: id, bound }.into())
    };
    wide.into_iter().map(narrow).collect()
}
