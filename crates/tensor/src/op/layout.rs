//! Operations that look at the same elements in another way.

use super::Op;
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
