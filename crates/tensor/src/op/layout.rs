//! Operations that look at the same elements in another way.

use super::{Op, with_float};
use crate::error::Result;
use crate::{Engine, Tensor};

/// The result of a layout operation, whose inputs were checked.
pub(super) fn view(engine: &Engine, op: &Op, inputs: &[Tensor]) -> Result<Tensor> {
    let x = &inputs[0];
    let (outer, last) = x.shape().split_at(x.shape().len().saturating_sub(1));
    let shape = match op {
        Op::SplitHeads { head_dim } => [outer, &[last[0] / head_dim, *head_dim]].concat(),
        Op::MergeHeads => {
            let (outer, heads) = outer.split_at(outer.len() - 1);
            [outer, &[heads[0] * last[0]]].concat()
        }
        Op::Flatten => vec![outer[0] * outer[1], last[0]],
        Op::Unflatten => [&inputs[1].shape()[..2], last].concat(),
        Op::Narrow { start, len } => return x.slice(outer.len(), *start, *len),
        Op::Transpose { a, b } => return x.transpose(*a, *b),
        _ => x.shape().to_vec(),
    };
    x.dense(&engine.budget)?.reshape(&shape)
}

/// a (B, T, H, D), b (B, T, H, D') or (B, T, 1, D') -> (B, T, H, D + D').
pub(super) fn concat_heads(engine: &Engine, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let (a, b) = (a.dense(&engine.budget)?, b.dense(&engine.budget)?);
    let (&[batch, tokens, heads, left], right) = (&[0, 1, 2, 3].map(|dim| a.shape()[dim]), b.shape()[3]);
    let repeat = heads.checked_div(b.shape()[2]).unwrap_or(1).max(1);
    with_float!(a.dtype(), T => {
        let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
        Tensor::build(&engine.budget, &[batch, tokens, heads, left + right], |out: &mut [T]| {
            for (idx, out) in out.chunks_exact_mut((left + right).max(1)).enumerate() {
                let (from_a, from_b) = out.split_at_mut(left);
                from_a.copy_from_slice(&a[idx * left..][..left]);
                from_b.copy_from_slice(&b[idx / repeat * right..][..right]);
            }
            Ok(())
        })
    })
}
