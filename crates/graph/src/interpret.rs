//! Runs a graph, forward.

use std::collections::BTreeSet;

use indexmap::IndexMap;
use tensor::{Op, Tensor};

use crate::error::{Error, ErrorKind};
use crate::node::{Function, Graph, MarkKind, NodeKind, Port};
use crate::{ModuleId, NodeId};

/// What a run asks of the model that owns the graph.
pub trait Host {
    /// What can go wrong in it.
    type Error: From<Error>;

    /// The tensor of a parameter.
    fn parameter(&mut self, name: &str) -> Result<Tensor, Self::Error>;

    /// Computes an operation inside `scope`.
    fn call_function(
        &mut self,
        op: &Op,
        scope: Option<ModuleId>,
        inputs: Vec<Tensor>,
    ) -> Result<Vec<Tensor>, Self::Error>;

    /// Calls leaf modules, hooks included.
    fn call_module(&mut self, modules: &[ModuleId], inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Self::Error>;

    /// Lets hooks on the inputs of leaf modules hear `inputs`, without a call.
    fn hear_inputs(&mut self, modules: &[ModuleId], inputs: &[Tensor]) -> Result<(), Self::Error>;

    /// Lets hooks on a container hear its inputs or outputs.
    fn mark(&mut self, kind: MarkKind, module: ModuleId, values: &[Option<Tensor>]) -> Result<(), Self::Error>;
}

/// How far a run goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// To the end.
    Whole,
    /// To the inputs of these modules, which hooks hear; they are called only where another of them needs it.
    InputsOf(BTreeSet<ModuleId>),
}

/// What a run gives.
#[derive(Clone, Debug, Default)]
pub struct Produced {
    /// Values for later subgraphs, by name.
    pub carried: IndexMap<String, Tensor>,
    /// Results of the model, by name.
    pub outputs: IndexMap<String, Tensor>,
}

/// Runs `graph` on inputs by name; a value is dropped after its last use.
///
/// Under [`Extent::InputsOf`] nothing is given back.
///
/// # Errors
/// [`ErrorKind::MissingInput`], and whatever the host finds.
pub fn forward<H: Host>(
    graph: &Graph,
    host: &mut H,
    mut inputs: impl FnMut(&str) -> Option<Tensor>,
    extent: &Extent,
) -> Result<Produced, H::Error> {
    let plan = Plan::new(graph, extent);
    let mut values: Vec<Vec<Option<Tensor>>> = vec![Vec::new(); graph.len()];
    let mut produced = Produced::default();
    for (id, node) in graph.nodes() {
        if !plan.runs(id) {
            continue;
        }
        for mark in graph.marks().iter().filter(|mark| mark.node == id && mark.kind == MarkKind::Enter) {
            host.mark(mark.kind, mark.module, &look(&values, &mark.values))?;
        }
        if plan.only_heard.contains(&id) {
            let args = take(&mut values, &plan, id, &node.args)?;
            host.hear_inputs(node.modules(), &args)?;
            continue;
        }
        let results = match &node.kind {
            NodeKind::Placeholder => {
                let name = &node.name;
                vec![inputs(name).ok_or_else(|| Error::from(ErrorKind::MissingInput { name: name.clone() }))?]
            }
            NodeKind::GetAttr(name) => vec![host.parameter(name)?],
            NodeKind::CallFunction(Function::Op(op)) => {
                let args = take(&mut values, &plan, id, &node.args)?;
                host.call_function(op, node.scope.map(|scope| graph.scope(scope).module), args)?
            }
            NodeKind::CallFunction(Function::Named(name)) | NodeKind::CallMethod(name) => {
                return Err(Error::from(ErrorKind::NotComputable { name: name.clone() }).at(&node.name).into());
            }
            NodeKind::CallModule(modules) => {
                let args = take(&mut values, &plan, id, &node.args)?;
                host.call_module(modules, args)?
            }
            NodeKind::Output { names, n_carried } => {
                let args = take(&mut values, &plan, id, &node.args)?;
                for (idx, (name, value)) in names.iter().zip(args).enumerate() {
                    let place = if idx < *n_carried { &mut produced.carried } else { &mut produced.outputs };
                    place.insert(name.clone(), value);
                }
                continue;
            }
        };
        if results.len() != node.specs.len() {
            let found = format!("{} of {}", results.len(), node.specs.len());
            return Err(Error::malformed("a node gives as many values as it says", found).at(&node.name).into());
        }
        values[id.0] = results.into_iter().map(Some).collect();
        for mark in graph.marks().iter().filter(|mark| mark.node == id && mark.kind == MarkKind::Exit) {
            host.mark(mark.kind, mark.module, &look(&values, &mark.values))?;
        }
        plan.drop_dead(&mut values, id);
    }
    Ok(produced)
}

/// Which nodes run, and when their values die.
struct Plan {
    runs: Option<BTreeSet<NodeId>>,
    only_heard: BTreeSet<NodeId>,
    /// Per value the last node that takes it.
    last_use: Vec<Vec<Option<NodeId>>>,
    /// Per node the values that die after it.
    dead_after: Vec<Vec<Port>>,
}

impl Plan {
    fn new(graph: &Graph, extent: &Extent) -> Self {
        let mut plan = Self {
            runs: None,
            only_heard: BTreeSet::new(),
            last_use: graph.nodes().map(|(_, node)| vec![None; node.specs.len()]).collect(),
            dead_after: vec![Vec::new(); graph.len()],
        };
        if let Extent::InputsOf(targets) = extent {
            plan.stop_at(graph, targets);
        }
        let runs: Vec<bool> = graph.nodes().map(|(id, _)| plan.runs(id)).collect();
        for (id, node) in graph.nodes() {
            for port in node.args.iter().filter(|_| runs[id.0]) {
                plan.last_use[port.node.0][port.output] = Some(id);
            }
        }
        for mark in graph.marks() {
            for port in mark.values.iter().flatten().filter(|_| runs[mark.node.0]) {
                let last = &mut plan.last_use[port.node.0][port.output];
                *last = (*last).max(Some(mark.node));
            }
        }
        for (id, node) in graph.nodes() {
            for output in 0..node.specs.len() {
                let last = plan.last_use[id.0][output].unwrap_or(id);
                plan.dead_after[last.0].push(Port { node: id, output });
            }
        }
        plan
    }

    /// Keeps what the inputs of `targets` need.
    fn stop_at(&mut self, graph: &Graph, targets: &BTreeSet<ModuleId>) {
        let is_target = |id: NodeId| graph.node(id).modules().iter().any(|module| targets.contains(module));
        let mut needed: BTreeSet<NodeId> = BTreeSet::new();
        let mut runs: BTreeSet<NodeId> = BTreeSet::new();
        for (id, node) in graph.nodes().rev() {
            if needed.contains(&id) || is_target(id) {
                runs.insert(id);
                needed.extend(node.input_nodes());
            }
        }
        self.only_heard = runs.iter().copied().filter(|&id| is_target(id) && !needed.contains(&id)).collect();
        self.runs = Some(runs);
    }

    fn runs(&self, id: NodeId) -> bool {
        self.runs.as_ref().is_none_or(|runs| runs.contains(&id))
    }

    fn drop_dead(&self, values: &mut [Vec<Option<Tensor>>], id: NodeId) {
        for port in &self.dead_after[id.0] {
            if let Some(value) = values[port.node.0].get_mut(port.output) {
                *value = None;
            }
        }
    }
}

/// Values for a node, handed over where this is their last use and no mark after the node wants them.
fn take<E: From<Error>>(
    values: &mut [Vec<Option<Tensor>>],
    plan: &Plan,
    id: NodeId,
    args: &[Port],
) -> Result<Vec<Tensor>, E> {
    let mut taken = Vec::with_capacity(args.len());
    for (idx, port) in args.iter().enumerate() {
        let is_last = plan.last_use[port.node.0][port.output] == Some(id) && !args[idx + 1..].contains(port);
        let slot = values[port.node.0].get_mut(port.output);
        let value = slot.and_then(|slot| if is_last { slot.take() } else { slot.clone() });
        let name = || format!("value {} of node {}", port.output, port.node.0);
        taken.push(value.ok_or_else(|| Error::from(ErrorKind::MissingInput { name: name() }))?);
    }
    Ok(taken)
}

fn look(values: &[Vec<Option<Tensor>>], ports: &[Option<Port>]) -> Vec<Option<Tensor>> {
    let value = |port: Port| values[port.node.0].get(port.output).cloned().flatten();
    ports.iter().map(|port| port.and_then(value)).collect()
}
