//! The graph: nodes in the order they run, and the scopes around them.

use std::collections::HashSet;

use tensor::{Op, Spec};

use crate::ModuleId;
use crate::error::{Error, Result};

/// A node of a [`Graph`]; ids rise in running order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) usize);

/// One of the values that a node gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port {
    /// The node.
    pub node: NodeId,
    /// Which of its values.
    pub output: usize,
}

/// What a `call_function` node calls.
#[derive(Clone, Debug, PartialEq)]
pub enum Function {
    /// An operation.
    Op(Op),
    /// A function known by name only.
    Named(String),
}

/// The kinds of node, as in torch.fx.
#[derive(Clone, Debug, PartialEq)]
pub enum NodeKind {
    /// An input.
    Placeholder,
    /// A parameter, by name.
    GetAttr(String),
    /// A function of values.
    CallFunction(Function),
    /// A method of its first argument, known by name only.
    CallMethod(String),
    /// A module; several where a group of like modules runs as one (experts).
    CallModule(Vec<ModuleId>),
    /// The result: the first `n_carried` values are for later subgraphs, the others are the model's.
    Output {
        /// Name of each value.
        names: Vec<String>,
        /// How many of them are carried on.
        n_carried: usize,
    },
}

/// Whether a node may run again, late, with the weights that its consumer finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Timing {
    /// It runs once, as soon as it can.
    #[default]
    Early,
    /// It is cheap and runs with its consumer (a norm, a gate).
    Prologue,
}

/// A node: what it is, what it takes, who uses it.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Unique in its graph.
    pub name: String,
    /// What it is.
    pub kind: NodeKind,
    /// Values it takes, in order.
    pub args: Vec<Port>,
    /// One entry per value it gives, none where nothing is known of it.
    pub specs: Vec<Option<Spec>>,
    /// The innermost scope around it.
    pub scope: Option<ScopeId>,
    /// Whether it may run late.
    pub timing: Timing,
    /// Nodes that take its values, each once, in running order.
    pub(crate) users: Vec<NodeId>,
}

/// A scope of a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeId(pub(crate) usize);

/// One call of a module that is not a node: its inputs, its outputs, and the scope around it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scope {
    /// The module.
    pub module: ModuleId,
    /// The scope around this one.
    pub parent: Option<ScopeId>,
    /// What it was called with.
    pub inputs: Vec<Port>,
    /// What it gave.
    pub outputs: Vec<Port>,
}

/// Whether a [`Mark`] is the start or the end of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkKind {
    /// The module is entered: heard just before the node.
    Enter,
    /// The module is left: heard just after the node.
    Exit,
}

/// A point of a run where hooks of a scope's module are heard.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// The node before or after which it is heard.
    pub node: NodeId,
    /// Start or end.
    pub kind: MarkKind,
    /// The module.
    pub module: ModuleId,
    /// Inputs or outputs of the call; none for a value that this graph does not hold.
    pub values: Vec<Option<Port>>,
}

/// Nodes in running order.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    scopes: Vec<Scope>,
    marks: Vec<Mark>,
    names: HashSet<String>,
}

impl Graph {
    /// A graph without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node at the end, under `name` or, where that is taken, `name_1`, `name_2`, ...
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed) where the node breaks a rule of graphs, or what its operation
    /// refuses; placed at the node.
    pub fn push(&mut self, mut node: Node) -> Result<NodeId> {
        node.name = self.free_name(&node.name);
        node.users.clear();
        let id = NodeId(self.nodes.len());
        self.check_node(id, &node).map_err(|error| error.at(&node.name))?;
        for user_of in input_nodes(&node) {
            self.nodes[user_of.0].users.push(id);
        }
        self.names.insert(node.name.clone());
        self.nodes.push(node);
        Ok(id)
    }

    fn free_name(&self, wanted: &str) -> String {
        if !self.names.contains(wanted) {
            return wanted.to_owned();
        }
        let mut suffix = 1usize;
        loop {
            let name = format!("{wanted}_{suffix}");
            if !self.names.contains(&name) {
                return name;
            }
            suffix += 1;
        }
    }

    /// All nodes in running order.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> + ExactSizeIterator {
        self.nodes.iter().enumerate().map(|(idx, node)| (NodeId(idx), node))
    }

    /// A node of this graph.
    ///
    /// # Panics
    /// Never for an id that this graph gave.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Looks a node up by name.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().position(|node| node.name == name).map(NodeId)
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Scopes of a trace; empty in a subgraph, which has [`Graph::marks`].
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    /// A scope of this graph.
    pub fn scope(&self, id: ScopeId) -> &Scope {
        &self.scopes[id.0]
    }

    /// Where a subgraph tells of the calls of containers, in running order.
    pub fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// The name under which a value travels between subgraphs: the node's, with `#n` for further values.
    pub fn port_name(&self, port: Port) -> String {
        let name = &self.nodes[port.node.0].name;
        if port.output == 0 { name.clone() } else { format!("{name}#{}", port.output) }
    }

    /// What is known of a value.
    pub fn spec(&self, port: Port) -> Option<&Spec> {
        self.nodes[port.node.0].specs.get(port.output).and_then(Option::as_ref)
    }

    pub(crate) fn open_scope(&mut self, scope: Scope) -> ScopeId {
        self.scopes.push(scope);
        ScopeId(self.scopes.len() - 1)
    }

    pub(crate) fn close_scope(&mut self, id: ScopeId, outputs: Vec<Port>) {
        self.scopes[id.0].outputs = outputs;
    }

    pub(crate) fn push_mark(&mut self, mark: Mark) {
        self.marks.push(mark);
    }

    pub(crate) fn copy_scopes(&mut self, other: &Self) {
        self.scopes.clone_from(&other.scopes);
    }

    /// Lets `user` of `node` be forgotten, or be listed though it is none, to test the check.
    #[cfg(test)]
    pub(crate) fn users_mut(&mut self, node: NodeId) -> &mut Vec<NodeId> {
        &mut self.nodes[node.0].users
    }
}

impl Node {
    /// A node without scope or specs, before it is pushed.
    pub fn new(name: impl Into<String>, kind: NodeKind, args: Vec<Port>) -> Self {
        let specs = if matches!(kind, NodeKind::Output { .. }) { Vec::new() } else { vec![None] };
        Self { name: name.into(), kind, args, specs, scope: None, timing: Timing::Early, users: Vec::new() }
    }

    /// Nodes that take its values, each once, in running order.
    pub fn users(&self) -> &[NodeId] {
        &self.users
    }

    /// Nodes whose values it takes, each once, in order of first use.
    pub fn input_nodes(&self) -> Vec<NodeId> {
        input_nodes(self)
    }

    /// The modules it calls.
    pub fn modules(&self) -> &[ModuleId] {
        if let NodeKind::CallModule(modules) = &self.kind { modules } else { &[] }
    }

    pub(crate) fn is_parameter(&self) -> bool {
        matches!(self.kind, NodeKind::GetAttr(_))
    }
}

fn input_nodes(node: &Node) -> Vec<NodeId> {
    let mut seen = Vec::with_capacity(node.args.len());
    for port in &node.args {
        if !seen.contains(&port.node) {
            seen.push(port.node);
        }
    }
    seen
}

impl From<NodeId> for Port {
    fn from(node: NodeId) -> Self {
        Self { node, output: 0 }
    }
}

impl Graph {
    /// The rules for one node, given those before it.
    pub(crate) fn check_node(&self, id: NodeId, node: &Node) -> Result<()> {
        if let Some((_, last)) = self.nodes().take(id.0).next_back()
            && matches!(last.kind, NodeKind::Output { .. })
        {
            return Err(Error::malformed("nothing follows the output node", &node.name));
        }
        for port in &node.args {
            if port.node >= id {
                return Err(Error::malformed(
                    "a node takes values of nodes before it",
                    format!("argument {}", port.node.0),
                ));
            }
            let giver = &self.nodes[port.node.0];
            if port.output >= giver.specs.len() {
                let found = format!("value {} of `{}`, which gives {}", port.output, giver.name, giver.specs.len());
                return Err(Error::malformed("an argument is a value that its node gives", found));
            }
        }
        self.check_kind(node)
    }

    fn check_kind(&self, node: &Node) -> Result<()> {
        let Node { kind, args, specs, .. } = node;
        let gives_one = specs.len() == 1;
        match kind {
            NodeKind::Placeholder | NodeKind::GetAttr(_) if !args.is_empty() || !gives_one => {
                Err(Error::malformed("an input takes nothing and gives one value", format!("{} arguments", args.len())))
            }
            NodeKind::CallModule(modules) if modules.is_empty() => {
                Err(Error::malformed("call_module names a module", "no module"))
            }
            NodeKind::CallMethod(name) if args.is_empty() => {
                Err(Error::malformed("call_method has an object", format!("no argument of `{name}`")))
            }
            NodeKind::Output { names, n_carried } if names.len() != args.len() || *n_carried > names.len() => {
                let found = format!("{} names for {} values", names.len(), args.len());
                Err(Error::malformed("every result has a name", found))
            }
            NodeKind::Output { .. } if !specs.is_empty() => Err(Error::malformed("an output gives nothing", "a value")),
            NodeKind::CallFunction(Function::Op(op)) => {
                let inputs: Option<Vec<Spec>> = args.iter().map(|&port| self.spec(port).cloned()).collect();
                let given: Option<Vec<Spec>> = specs.iter().cloned().collect();
                if let (Some(inputs), Some(given)) = (inputs, given) {
                    let inferred = op.infer(&inputs)?;
                    if inferred != given {
                        let shown: Vec<_> = given.iter().map(ToString::to_string).collect();
                        return Err(Error::malformed("an operation gives what its inputs imply", shown.join(", ")));
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
