//! What running a subgraph costs: operations in linear layers, attention and scans, and bytes of what is kept.

use std::collections::{BTreeMap, HashMap};

use graph::{Function, ModuleId, Node, NodeKind, Port, ScopeId, Subgraph};
use models::{Model, TraceInputs};
use tensor::{DType, Mask, Op, Spec, Symbol};

use crate::error::Result;

/// Operations of every call of every module, for one row of a known length.
pub(super) struct Costs {
    /// Tokens of the row.
    tokens: usize,
    /// Rows that a token becomes where it goes to experts.
    routed: usize,
    /// For each module the operations of its calls that are still to come, the next one last.
    calls: HashMap<ModuleId, Vec<u64>>,
}

impl Costs {
    /// Costs of `model` on a row of `tokens` tokens.
    ///
    /// # Errors
    /// What a module refuses.
    pub(super) fn of(model: &Model, tokens: usize) -> Result<Self> {
        let graph = model.trace_operations(TraceInputs::Ids)?;
        let mut costs = Self { tokens, routed: 1, calls: HashMap::new() };
        let mut of_scope: BTreeMap<ScopeId, u64> = BTreeMap::new();
        for (_, node) in graph.nodes() {
            let NodeKind::CallFunction(Function::Op(op)) = &node.kind else { continue };
            let inputs = specs(node, |port| graph.spec(port));
            if let (Op::Dispatch { .. }, Some(chosen)) = (op, inputs.get(1)) {
                costs.routed = chosen.width().map_err(models::Error::from)?;
            }
            let flop = costs.flop(op, &inputs);
            let mut scope = node.scope;
            while let Some(id) = scope {
                *of_scope.entry(id).or_default() += flop;
                scope = graph.scope(id).parent;
            }
        }
        for (scope, flop) in of_scope.into_iter().rev() {
            costs.calls.entry(graph.scope(scope).module).or_default().push(flop);
        }
        Ok(costs)
    }

    /// Mean operations of a token in a subgraph; subgraphs are asked for once, in running order.
    pub(super) fn flop_per_token(&mut self, model: &Model, subgraph: &Subgraph) -> u64 {
        let mut sum = 0u64;
        for (_, node) in subgraph.graph.nodes() {
            let inputs = specs(node, |port| subgraph.graph.spec(port));
            let flop = match &node.kind {
                NodeKind::CallFunction(Function::Op(op)) => self.flop(op, &inputs),
                NodeKind::CallModule(modules) => match modules[..] {
                    // A group of experts takes rows and offsets.
                    [module] if inputs.len() == 1 || model.linear(module).is_none() => {
                        self.calls.get_mut(&module).and_then(Vec::pop).unwrap_or(0)
                    }
                    _ => {
                        let rows = node.specs.first().and_then(Option::as_ref);
                        inputs.first().zip(rows).map_or(0, |(x, y)| 2 * self.elements(x) * width(y))
                    }
                },
                _ => 0,
            };
            sum = sum.saturating_add(flop);
        }
        sum / self.tokens as u64
    }

    /// Bytes of values for each token, and those that do not depend on their number.
    pub(super) fn kept_bytes<'s>(&self, values: impl Iterator<Item = &'s Spec>) -> (u64, u64) {
        let (mut by_token, mut fixed) = (0, 0);
        for spec in values {
            let one = |symbol| if symbol == Symbol::Routed { self.routed } else { 1 };
            let elements = |of: &dyn Fn(Symbol) -> usize| spec.shape.iter().map(|it| it.resolve(of) as u64).product();
            let (n, none): (u64, u64) = (elements(&one), elements(&|_| 0));
            // An extent that is a symbol is zero where symbols are.
            *(if none == 0 { &mut by_token } else { &mut fixed }) += bytes(n, spec.dtype);
        }
        (by_token, fixed)
    }

    /// Operations of an operation on the row; those that are cheap beside a linear layer count nothing.
    fn flop(&self, op: &Op, inputs: &[&Spec]) -> u64 {
        let n = |idx: usize| inputs.get(idx).map_or(0, |it| self.elements(it));
        let last = |idx: usize| inputs.get(idx).map_or(0, |it| width(it));
        let rows = |idx: usize| inputs.get(idx).and_then(|it| it.shape.first()).map_or(0, |it| self.extent(it));
        match op {
            Op::Linear => 2 * n(0) * rows(1),
            Op::GroupedLinear { .. } => 2 * n(0) * rows(2),
            Op::CausalConv => 2 * n(0) * last(1),
            // For each query head and key that it sees: a product with the key, and a sum with the value.
            Op::Attention(rule) => {
                let heads = n(0) / last(0).max(1) / (self.tokens as u64).max(1);
                2 * heads * (last(0) + last(2)) * pairs(rule.mask, self.tokens as u64)
            }
            // Decay, outer product, sum, and what a query reads, for each number of the state.
            Op::SelectiveScan { .. } => 5 * n(0) * last(2),
            // As above, and what the key reads before.
            Op::DeltaScan => 7 * n(0) * last(1),
            _ => 0,
        }
    }

    fn elements(&self, spec: &Spec) -> u64 {
        spec.shape.iter().map(|it| self.extent(it)).product()
    }

    fn extent(&self, dim: &tensor::Dim) -> u64 {
        let value = |symbol| match symbol {
            Symbol::Batch => 1,
            Symbol::Time => self.tokens,
            Symbol::Routed => self.tokens * self.routed,
        };
        dim.resolve(value) as u64
    }
}

/// Bytes of `n` elements.
pub(super) fn bytes(n: u64, dtype: DType) -> u64 {
    n.saturating_mul(dtype.bits() as u64) / 8
}

/// Pairs of a query and a key that it sees, in a row of `n` tokens.
fn pairs(mask: Mask, n: u64) -> u64 {
    let causal = |n: u64| n * (n + 1) / 2;
    match mask {
        Mask::Full => n * n,
        Mask::Causal => causal(n),
        Mask::Window(width) => {
            let width = (width as u64).min(n);
            causal(width) + (n - width) * width
        }
        Mask::Chunk(size) => {
            let size = (size as u64).max(1);
            n / size * causal(size) + causal(n % size)
        }
    }
}

fn width(spec: &Spec) -> u64 {
    spec.width().map_or(0, |it| it as u64)
}

fn specs<'g>(node: &Node, spec: impl Fn(Port) -> Option<&'g Spec>) -> Vec<&'g Spec> {
    node.args.iter().filter_map(|port| spec(*port)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_those_that_a_count_of_visible_keys_gives() {
        for n in 1..40u64 {
            let count = |seen: &dyn Fn(u64) -> u64| (1..=n).map(seen).sum::<u64>();
            assert_eq!(pairs(Mask::Causal, n), count(&|i| i));
            assert_eq!(pairs(Mask::Window(7), n), count(&|i| i.min(7)));
            assert_eq!(pairs(Mask::Chunk(5), n), count(&|i| (i - 1) % 5 + 1));
            assert_eq!(pairs(Mask::Full, n), n * n);
        }
    }
}
