//! Records what model code does as a graph.

use std::collections::BTreeSet;

use tensor::{Op, Spec};

use crate::error::{Error, Result};
use crate::node::{Function, Graph, Node, NodeKind, Port, Scope, ScopeId, Timing};
use crate::{ModuleId, ModuleTree, Value};

/// Records nodes; modules that hold no target are one node each.
#[derive(Debug)]
pub struct SequentialTracer {
    graph: Graph,
    /// Modules that are scopes; none where every module is.
    ancestors: Option<BTreeSet<ModuleId>>,
    scopes: Vec<ScopeId>,
    /// How many leaf modules the trace is inside of; nothing is recorded there.
    leaf_depth: usize,
}

impl SequentialTracer {
    /// A tracer for targets with these ancestors ([`get_sequential_ancestors`](crate::get_sequential_ancestors)).
    pub fn new(ancestors: BTreeSet<ModuleId>) -> Self {
        Self { graph: Graph::new(), ancestors: Some(ancestors), scopes: Vec::new(), leaf_depth: 0 }
    }

    /// A tracer for which no module is a leaf: the graph consists of operations and parameters alone.
    pub fn of_operations() -> Self {
        Self { graph: Graph::new(), ancestors: None, scopes: Vec::new(), leaf_depth: 0 }
    }

    /// Whether a module is recorded as one node.
    pub fn is_leaf(&self, module: ModuleId) -> bool {
        self.ancestors.as_ref().is_some_and(|ancestors| !ancestors.contains(&module))
    }

    /// Whether the trace is inside a leaf, where values have specs and no nodes.
    pub fn is_inside_leaf(&self) -> bool {
        self.leaf_depth > 0
    }

    /// An input of the model.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed).
    pub fn placeholder(&mut self, name: &str, spec: Spec) -> Result<Value> {
        self.record(name, NodeKind::Placeholder, &[], vec![spec], Timing::Early).map(first)
    }

    /// A parameter.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed).
    pub fn parameter(&mut self, name: &str, spec: Spec) -> Result<Value> {
        let kind = NodeKind::GetAttr(name.to_owned());
        self.record(&name.replace('.', "_"), kind, &[], vec![spec], Timing::Early).map(first)
    }

    /// An operation.
    ///
    /// # Errors
    /// What the operation refuses.
    pub fn function(&mut self, op: Op, inputs: &[Value]) -> Result<Vec<Value>> {
        let specs =
            inputs.iter().map(|value| value.traced().map(|(spec, _)| spec.clone())).collect::<Result<Vec<_>>>()?;
        let outputs = op.infer(&specs)?;
        let timing = if op.is_prologue() { Timing::Prologue } else { Timing::Early };
        let name = op.name();
        self.record(name, NodeKind::CallFunction(Function::Op(op)), inputs, outputs, timing)
    }

    /// A call of leaf modules, whose results have `outputs`.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed).
    pub fn module(
        &mut self,
        tree: &ModuleTree,
        modules: &[ModuleId],
        inputs: &[Value],
        outputs: Vec<Spec>,
        timing: Timing,
    ) -> Result<Vec<Value>> {
        let path = modules.first().map_or("", |&module| tree.path(module));
        self.record(&path.replace('.', "_"), NodeKind::CallModule(modules.to_vec()), inputs, outputs, timing)
    }

    /// Starts to follow the inside of a leaf; nothing is recorded until [`SequentialTracer::leave_leaf`].
    pub fn enter_leaf(&mut self) {
        self.leaf_depth += 1;
    }

    /// Ends what [`SequentialTracer::enter_leaf`] started.
    pub fn leave_leaf(&mut self) {
        self.leaf_depth = self.leaf_depth.saturating_sub(1);
    }

    /// Starts the scope of a module; nodes until [`SequentialTracer::exit`] are inside.
    ///
    /// # Errors
    /// [`ErrorKind::Mixed`](crate::ErrorKind::Mixed) for a computed input.
    pub fn enter(&mut self, module: ModuleId, inputs: &[Value]) -> Result<()> {
        if self.is_inside_leaf() {
            return Ok(());
        }
        let scope = Scope { module, parent: self.scopes.last().copied(), inputs: ports(inputs)?, outputs: Vec::new() };
        let id = self.graph.open_scope(scope);
        self.scopes.push(id);
        Ok(())
    }

    /// Ends the innermost scope.
    ///
    /// # Errors
    /// [`ErrorKind::Mixed`](crate::ErrorKind::Mixed) for a computed output.
    pub fn exit(&mut self, outputs: &[Value]) -> Result<()> {
        if self.is_inside_leaf() {
            return Ok(());
        }
        if let Some(scope) = self.scopes.pop() {
            self.graph.close_scope(scope, ports(outputs)?);
        }
        Ok(())
    }

    /// The graph with these results.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed) where a scope is still open or a rule is broken.
    pub fn finish(mut self, results: &[(&str, Value)]) -> Result<Graph> {
        if let Some(open) = self.scopes.last() {
            return Err(Error::malformed("every scope is left", format!("scope {} still open", open.0)));
        }
        let values: Vec<_> = results.iter().map(|(_, value)| value.clone()).collect();
        let names = results.iter().map(|(name, _)| (*name).to_owned()).collect();
        let node = Node::new("output", NodeKind::Output { names, n_carried: 0 }, ports(&values)?);
        self.graph.push(node)?;
        self.graph.check()?;
        Ok(self.graph)
    }

    fn record(
        &mut self,
        name: &str,
        kind: NodeKind,
        inputs: &[Value],
        outputs: Vec<Spec>,
        timing: Timing,
    ) -> Result<Vec<Value>> {
        if self.is_inside_leaf() {
            return Ok(outputs.into_iter().map(|spec| Value::Traced { spec, port: None }).collect());
        }
        let mut node = Node::new(name, kind, ports(inputs)?);
        node.specs = outputs.iter().cloned().map(Some).collect();
        node.scope = self.scopes.last().copied();
        node.timing = timing;
        let node = self.graph.push(node)?;
        let value = |(output, spec)| Value::Traced { spec, port: Some(Port { node, output }) };
        Ok(outputs.into_iter().enumerate().map(value).collect())
    }
}

fn ports(values: &[Value]) -> Result<Vec<Port>> {
    let port = |value: &Value| {
        let (_, port) = value.traced()?;
        port.ok_or_else(|| Error::malformed("a value inside a leaf stays there", "its use outside"))
    };
    values.iter().map(port).collect()
}

fn first(values: Vec<Value>) -> Value {
    values.into_iter().next().expect("an input node gives one value")
}

#[cfg(test)]
mod tests {
    use tensor::{Budget, DType, Dim, Symbol};

    use super::*;
    use crate::ErrorKind;

    fn input(tracer: &mut SequentialTracer) -> Value {
        let shape = vec![Dim::symbol(Symbol::Batch), 8.into()];
        tracer.placeholder("x", Spec::new(DType::F32, shape)).unwrap()
    }

    #[test]
    fn a_symbolic_extent_cannot_be_read_as_a_number() {
        let x = input(&mut SequentialTracer::of_operations());
        assert_eq!(x.dim(1).unwrap(), 8);
        let error = x.dim(0).unwrap_err();
        let ErrorKind::Tensor(error) = error.kind() else { panic!("{error}") };
        assert_eq!(error.kind(), &tensor::ErrorKind::Symbolic { dim: Dim::symbol(Symbol::Batch) });
        assert!(x.dim(2).is_err());
    }

    #[test]
    fn computed_and_traced_values_do_not_mix() {
        let mut tracer = SequentialTracer::of_operations();
        let x = input(&mut tracer);
        let y = Value::from(Budget::unlimited().tensor(vec![0.0f32; 8], &[1, 8]).unwrap());
        let error = tracer.function(Op::Add, &[x.clone(), y]).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Mixed { found: "computed", expected: "traced" });
        assert!(x.into_tensor().is_err());
    }

    #[test]
    fn a_scope_left_open_is_refused_and_names_are_made_unique() {
        let tree = ModuleTree::new("Root");
        let mut tracer = SequentialTracer::of_operations();
        let x = input(&mut tracer);
        tracer.enter(tree.root(), std::slice::from_ref(&x)).unwrap();
        let y = tracer.function(Op::Add, &[x.clone(), x.clone()]).unwrap().remove(0);
        let error = tracer.finish(&[("y", y)]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Malformed { rule: "every scope is left", .. }));
        let mut tracer = SequentialTracer::of_operations();
        let x = input(&mut tracer);
        let y = tracer.function(Op::Add, &[x.clone(), x.clone()]).unwrap().remove(0);
        let z = tracer.function(Op::Add, &[y, x]).unwrap().remove(0);
        let graph = tracer.finish(&[("z", z)]).unwrap();
        let names: Vec<_> = graph.nodes().map(|(_, node)| node.name.as_str()).collect();
        assert_eq!(names, ["x", "add", "add_1", "output"]);
        assert_eq!(
            graph.display(&tree).to_string().lines().nth(2),
            Some("%add_1: F32[B, 8] = call_function add(%add, %x)")
        );
    }
}
