//! Parts of a graph that run on their own, one after the other.

use std::collections::{BTreeMap, BTreeSet};

use indexmap::{IndexMap, IndexSet};

use crate::error::{Error, Result};
use crate::node::{Graph, Mark, MarkKind, Node, NodeKind, Port, ScopeId};
use crate::{ModuleId, ModuleTree, NodeId};

/// A part of a model's graph, with the names of what it takes and of what nobody needs after it.
#[derive(Clone, Debug)]
pub struct Subgraph {
    /// Its nodes; the output node gives carried values first, then results of the model.
    pub graph: Graph,
    /// Values it takes, each once, in order of the placeholders.
    pub input_names: IndexSet<String>,
    /// Inputs that no later subgraph takes, in the same order.
    pub consumed_names: IndexSet<String>,
}

impl Subgraph {
    /// Modules that its nodes call and all they hold, each once, parents before children, in running order.
    pub fn submodules(&self, tree: &ModuleTree) -> IndexSet<ModuleId> {
        let mut found = IndexSet::new();
        let mut pending: Vec<ModuleId> = Vec::new();
        for (_, node) in self.graph.nodes() {
            for &module in node.modules() {
                pending.push(module);
                while let Some(next) = pending.pop() {
                    found.insert(next);
                    let children: Vec<_> = tree.children(next).map(|(_, child)| child).collect();
                    pending.extend(children.into_iter().rev());
                }
            }
        }
        found
    }

    /// Parameters that its nodes name, each once, in running order.
    pub fn parameters(&self) -> IndexSet<&str> {
        let name =
            |node| if let &Node { kind: NodeKind::GetAttr(ref name), .. } = node { Some(name.as_str()) } else { None };
        self.graph.nodes().filter_map(|(_, node)| name(node)).collect()
    }
}

/// Makes each part a subgraph; values that a later part takes are carried by name.
///
/// A value of another part becomes a placeholder, in order of first use; a part gives every value of its own that a later part
/// takes, and the model's results where it holds the output node.
/// `consumed_names` stay empty, see [`trace_consumed_names`].
///
/// # Errors
/// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed) where a part takes a value of a later one.
pub fn partition_graph(graph: &Graph, partitions: &[Vec<NodeId>]) -> Result<Vec<Subgraph>> {
    let marks = place_marks(graph, partitions);
    let mut subgraphs = Vec::with_capacity(partitions.len());
    for (idx, part) in partitions.iter().enumerate() {
        let later: BTreeSet<NodeId> = partitions[idx + 1..].iter().flatten().copied().collect();
        subgraphs.push(extract(graph, part, &later, &marks[idx])?);
    }
    Ok(subgraphs)
}

fn extract(graph: &Graph, part: &[NodeId], later: &BTreeSet<NodeId>, marks: &[Mark]) -> Result<Subgraph> {
    let members: BTreeSet<NodeId> = part.iter().copied().collect();
    let mut own = Graph::new();
    own.copy_scopes(graph);
    let mut ports: BTreeMap<Port, Port> = BTreeMap::new();
    for port in part.iter().flat_map(|&id| graph.node(id).args.iter().copied()) {
        if !members.contains(&port.node) && !ports.contains_key(&port) {
            let mut node = Node::new(graph.port_name(port), NodeKind::Placeholder, Vec::new());
            node.specs = vec![graph.spec(port).cloned()];
            ports.insert(port, own.push(node)?.into());
        }
    }
    let mut results = Vec::new();
    for &id in part {
        let node = graph.node(id);
        let take = |port: &Port| {
            ports.get(port).copied().ok_or_else(|| Error::malformed("parts run in order", graph.port_name(*port)))
        };
        let args = node.args.iter().map(take).collect::<Result<Vec<_>>>()?;
        if let NodeKind::Output { names, .. } = &node.kind {
            results.extend(names.iter().cloned().zip(args));
            continue;
        }
        let copy = own.push(Node { args, ..node.clone() })?;
        if own.node(copy).name != node.name {
            return Err(Error::malformed("names are unique", &node.name));
        }
        for output in 0..node.specs.len() {
            ports.insert(Port { node: id, output }, Port { node: copy, output });
        }
    }
    let carried = carried(graph, part, later);
    let n_carried = carried.len();
    let named = carried.iter().map(|port| (graph.port_name(*port), ports[port])).chain(results);
    let (names, args) = named.unzip();
    let input_names = own.nodes().filter(|(_, node)| node.kind == NodeKind::Placeholder);
    let input_names = input_names.map(|(_, node)| node.name.clone()).collect();
    for mark in marks {
        let values = mark.values.iter().map(|port| port.and_then(|port| ports.get(&port).copied())).collect();
        let node = ports.get(&mark.node.into()).map_or(mark.node, |port| port.node);
        own.push_mark(Mark { node, values, ..mark.clone() });
    }
    own.push(Node::new("output", NodeKind::Output { names, n_carried }, args))?;
    own.check()?;
    Ok(Subgraph { graph: own, input_names, consumed_names: IndexSet::new() })
}

/// Values of the part's own nodes that later parts take, in running order.
fn carried(graph: &Graph, part: &[NodeId], later: &BTreeSet<NodeId>) -> Vec<Port> {
    let mut carried = Vec::new();
    for &id in part {
        let node = graph.node(id);
        for output in 0..node.specs.len() {
            let port = Port { node: id, output };
            // A parameter that a later part holds itself is read there.
            let takes = |user: &&NodeId| {
                later.contains(user)
                    && graph.node(**user).args.contains(&port)
                    && !(node.is_parameter() && later.contains(&id))
            };
            if node.users().iter().any(|user| takes(&user)) {
                carried.push(port);
            }
        }
    }
    carried
}

/// For each part the marks of scopes that begin or end in it, in running order.
fn place_marks(graph: &Graph, partitions: &[Vec<NodeId>]) -> Vec<Vec<Mark>> {
    let mut order: IndexMap<NodeId, usize> = IndexMap::new();
    for (idx, part) in partitions.iter().enumerate() {
        for &id in part.iter().filter(|&&id| !graph.node(id).is_parameter()) {
            order.insert(id, idx);
        }
    }
    let position = |id: NodeId| order.get_index_of(&id);
    let mut first: BTreeMap<ScopeId, (usize, NodeId)> = BTreeMap::new();
    for (at, &id) in order.keys().enumerate() {
        let mut scope = graph.node(id).scope;
        while let Some(inside) = scope {
            first.entry(inside).or_insert((at, id));
            scope = graph.scope(inside).parent;
        }
    }
    let mut marks = vec![Vec::new(); partitions.len()];
    for (idx, scope) in graph.scopes().iter().enumerate() {
        let id = ScopeId(idx);
        let Some(&(_, enters_before)) = first.get(&id) else { continue };
        let mark = |node, kind, values: &[Port]| {
            let values = values.iter().copied().map(Some).collect();
            Mark { node, kind, module: scope.module, values }
        };
        if let Some(&part) = order.get(&enters_before) {
            // Scopes are listed outermost first, and so are heard.
            marks[part].push(mark(enters_before, MarkKind::Enter, &scope.inputs));
        }
        let last = scope.outputs.iter().map(|port| port.node).filter_map(|node| Some((position(node)?, node))).max();
        if let Some((_, leaves_after)) = last
            && let Some(&part) = order.get(&leaves_after)
        {
            marks[part].push(mark(leaves_after, MarkKind::Exit, &scope.outputs));
        }
    }
    for marks in &mut marks {
        // Ends are heard innermost first.
        let (starts, ends): (Vec<_>, Vec<_>) = marks.drain(..).partition(|mark| mark.kind == MarkKind::Enter);
        marks.extend(starts);
        marks.extend(ends.into_iter().rev());
    }
    marks
}

/// Fills in `consumed_names`: the inputs that no later subgraph takes.
pub fn trace_consumed_names(subgraphs: &mut [Subgraph]) {
    let mut needed_later: BTreeSet<String> = BTreeSet::new();
    for subgraph in subgraphs.iter_mut().rev() {
        let names = &subgraph.input_names;
        subgraph.consumed_names = names.iter().filter(|name| !needed_later.contains(*name)).cloned().collect();
        needed_later.extend(names.iter().cloned());
    }
}
