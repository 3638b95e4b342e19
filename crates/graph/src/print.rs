//! The printed form of a graph.

use std::fmt::{self, Write as _};

use crate::node::{Function, Graph, Node, NodeKind};
use crate::{ModuleTree, Port};

/// A graph with the tree that its modules are named by.
struct Printed<'a>(&'a Graph, &'a ModuleTree);

impl Graph {
    /// One line per node: `%name: F32[B, T, 32] = kind target(%arg, ...)`.
    pub fn display<'a>(&'a self, tree: &'a ModuleTree) -> impl fmt::Display + 'a {
        Printed(self, tree)
    }
}

impl fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(graph, tree) = self;
        for (_, node) in graph.nodes() {
            let specs: Vec<_> =
                node.specs.iter().map(|it| it.as_ref().map_or("?".to_owned(), ToString::to_string)).collect();
            match &node.kind {
                NodeKind::Output { names, .. } => {
                    let results: Vec<_> = names
                        .iter()
                        .zip(&node.args)
                        .map(|(name, &port)| format!("{name}=%{}", graph.port_name(port)))
                        .collect();
                    writeln!(f, "return {}", results.join(", "))?;
                }
                _ => {
                    let call = call(node, tree);
                    writeln!(f, "%{}: {} = {call}{}", node.name, specs.join(", "), arguments(graph, node))?;
                }
            }
        }
        Ok(())
    }
}

fn call(node: &Node, tree: &ModuleTree) -> String {
    match &node.kind {
        NodeKind::Placeholder => "placeholder".to_owned(),
        NodeKind::GetAttr(name) => format!("get_attr {name}"),
        NodeKind::CallFunction(Function::Op(op)) => format!("call_function {}", op.name()),
        NodeKind::CallFunction(Function::Named(name)) => format!("call_function {name}"),
        NodeKind::CallMethod(name) => format!("call_method {name}"),
        NodeKind::CallModule(modules) => {
            let mut text = "call_module".to_owned();
            if let Some(&first) = modules.first() {
                let _ = write!(text, " {}", tree.path(first));
            }
            if modules.len() > 1 {
                let _ = write!(text, " and {} more", modules.len() - 1);
            }
            text
        }
        NodeKind::Output { .. } => "return".to_owned(),
    }
}

fn arguments(graph: &Graph, node: &Node) -> String {
    if matches!(node.kind, NodeKind::Placeholder | NodeKind::GetAttr(_)) {
        return String::new();
    }
    let shown = |port: &Port| format!("%{}", graph.port_name(*port));
    format!("({})", node.args.iter().map(shown).collect::<Vec<_>>().join(", "))
}
