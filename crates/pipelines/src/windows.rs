//! Batches that run as one: joined along their rows before a subgraph, taken apart behind it.

use std::ops::Range;

use graph::{NodeKind, Port, Subgraph};
use tensor::{Budget, Dim, Spec, Symbol, Tensor};

use crate::error::Result;

/// How a value changes when batches are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Along {
    /// Its first dimension grows.
    Rows,
    /// Not at all.
    Nothing,
}

fn depends(dim: &Dim, symbol: Symbol) -> bool {
    dim.resolve(|it| 1 + usize::from(it == symbol)) != dim.resolve(|_| 1)
}

/// Whether a subgraph ends between the rows that experts are handed and where they come together again.
pub(crate) fn gives_routed_rows(subgraph: &Subgraph) -> bool {
    let graph = &subgraph.graph;
    let outputs = graph.nodes().filter(|(_, node)| matches!(node.kind, NodeKind::Output { .. }));
    let mut ports = outputs.flat_map(|(_, node)| &node.args);
    ports.any(|it| graph.spec(*it).is_some_and(|spec| spec.shape.iter().any(|dim| depends(dim, Symbol::Routed))))
}

/// How a value joins; none where it cannot.
fn along(spec: &Spec) -> Option<Along> {
    let mut found = Along::Nothing;
    for (idx, dim) in spec.shape.iter().enumerate() {
        if depends(dim, Symbol::Routed) || (idx > 0 && depends(dim, Symbol::Batch)) {
            return None;
        }
        if depends(dim, Symbol::Batch) {
            found = Along::Rows;
        }
    }
    Some(found)
}

/// How each value that a subgraph takes or gives joins, by name.
pub(crate) struct Joints(Vec<(String, Along)>);

impl Joints {
    /// Of a subgraph; none where some value in it cannot be joined, such as the rows that a router hands to experts.
    pub(crate) fn of(subgraph: &Subgraph) -> Option<Self> {
        let graph = &subgraph.graph;
        let mut joints = Vec::new();
        for (id, node) in graph.nodes() {
            for spec in node.specs.iter().flatten() {
                along(spec)?;
            }
            if node.kind == NodeKind::Placeholder {
                joints.push((node.name.clone(), along(graph.spec(Port::from(id))?)?));
            }
            if let NodeKind::Output { names, .. } = &node.kind {
                for (name, port) in names.iter().zip(&node.args) {
                    joints.push((name.clone(), along(graph.spec(*port)?)?));
                }
            }
        }
        Some(Self(joints))
    }

    /// How the value of this name joins.
    pub(crate) fn along(&self, name: &str) -> Along {
        self.0.iter().find(|it| it.0 == name).map_or(Along::Rows, |it| it.1)
    }
}

/// Runs of at most `window` batches of equal shape.
pub(crate) fn windows(shapes: &[Vec<usize>], window: usize) -> Vec<Range<usize>> {
    let mut windows: Vec<Range<usize>> = Vec::new();
    for (idx, shape) in shapes.iter().enumerate() {
        match windows.last_mut() {
            Some(last) if last.len() < window && shapes[last.start] == *shape => last.end = idx + 1,
            _ => windows.push(idx..idx + 1),
        }
    }
    windows
}

/// One tensor of all rows.
pub(crate) fn join(tensors: &[Tensor], along: Along, budget: &Budget) -> Result<Option<Tensor>> {
    let Some(first) = tensors.first() else { return Ok(None) };
    if along == Along::Nothing || tensors.len() == 1 {
        return Ok(Some(first.clone()));
    }
    let mut shape = first.shape().to_vec();
    shape[0] = tensors.iter().map(|it| it.shape()[0]).sum();
    let joined = Tensor::build_bytes(budget, first.dtype(), &shape, |out| {
        let mut rest = out;
        for tensor in tensors {
            let dense = tensor.dense(budget)?;
            let bytes = dense.as_bytes()?;
            let (part, after) = rest.split_at_mut(bytes.len());
            part.copy_from_slice(bytes);
            rest = after;
        }
        Ok::<(), tensor::Error>(())
    })?;
    Ok(Some(joined))
}

/// The parts of a tensor of all rows, one for each of `n` batches.
pub(crate) fn split(tensor: &Tensor, along: Along, n: usize, budget: &Budget) -> Result<Vec<Tensor>> {
    if along == Along::Nothing || n == 1 {
        return Ok(vec![tensor.clone(); n]);
    }
    let rows = tensor.shape()[0] / n;
    let part = |idx: usize| {
        let view = tensor.slice(0, idx * rows, rows)?;
        // A copy of its own, so that no part keeps the others in memory.
        Tensor::build_bytes(budget, view.dtype(), view.shape(), |out| {
            out.copy_from_slice(view.dense(budget)?.as_bytes()?);
            Ok::<(), tensor::Error>(())
        })
    };
    Ok((0..n).map(part).collect::<tensor::Result<_>>()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use tensor::DType;

    use super::*;

    #[test]
    fn windows_hold_neighbours_of_one_shape() {
        let shapes = [vec![1, 4], vec![1, 4], vec![1, 4], vec![1, 3], vec![1, 4]];
        assert_eq!(windows(&shapes, 2), [0..2, 2..3, 3..4, 4..5]);
        assert_eq!(windows(&shapes, 1).len(), 5);
    }

    #[test]
    fn what_is_joined_comes_apart_again() {
        let budget = Budget::unlimited();
        let tensors = [1.0f32, 5.0].map(|it| budget.tensor(vec![it, it + 1.0], &[1, 2]).unwrap());
        let joined = join(&tensors, Along::Rows, &budget).unwrap().unwrap();
        assert_eq!((joined.shape(), joined.as_slice::<f32>().unwrap()), (&[2, 2][..], &[1.0, 2.0, 5.0, 6.0][..]));
        let parts = split(&joined, Along::Rows, 2, &budget).unwrap();
        assert_eq!(parts[1].as_slice::<f32>().unwrap(), [5.0, 6.0]);
        assert_eq!(split(&joined, Along::Nothing, 2, &budget).unwrap()[1].shape(), [2, 2]);
    }

    #[test]
    fn routed_rows_and_inner_batches_cannot_be_joined() {
        let symbol = Dim::symbol;
        let spec = |shape| along(&Spec::new(DType::F32, shape));
        assert_eq!(spec(vec![symbol(Symbol::Batch).times(&symbol(Symbol::Time)), 4.into()]), Some(Along::Rows));
        assert_eq!(spec(vec![symbol(Symbol::Time), 4.into()]), Some(Along::Nothing));
        assert_eq!(spec(vec![symbol(Symbol::Routed), 4.into()]), None);
        assert_eq!(spec(vec![4.into(), symbol(Symbol::Batch)]), None);
    }
}
