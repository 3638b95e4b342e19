//! The rules that every graph keeps.

use crate::error::{Error, Result};
use crate::{Graph, NodeKind};

impl Graph {
    /// Checks every rule for every node: order, arguments, kinds, inferred specs, unique names, users.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed) with the rule and what breaks it, placed at the node.
    pub fn check(&self) -> Result<()> {
        let mut names = std::collections::HashSet::new();
        for (id, node) in self.nodes() {
            self.check_node(id, node).map_err(|error| error.at(&node.name))?;
            if !names.insert(node.name.as_str()) {
                return Err(Error::malformed("names are unique", &node.name));
            }
        }
        if !graph_is_well_formed(self) {
            return Err(Error::malformed("a node lists exactly the nodes that take its values", "another list"));
        }
        Ok(())
    }

    /// The output node; none in a graph that is still being built.
    pub fn output(&self) -> Option<crate::NodeId> {
        self.nodes().next_back().filter(|(_, node)| matches!(node.kind, NodeKind::Output { .. })).map(|(id, _)| id)
    }
}

/// Whether users and inputs agree: A is listed as a user of B exactly once if A takes a value of B, and else not at all.
pub fn graph_is_well_formed(graph: &Graph) -> bool {
    let listed = |of: crate::NodeId, user| graph.node(of).users().iter().filter(|&&it| it == user).count();
    graph.nodes().all(|(id, node)| {
        let inputs = node.input_nodes();
        inputs.iter().all(|&input| listed(input, id) == 1)
            && node.users().iter().all(|&user| listed(id, user) == 1 && graph.node(user).input_nodes().contains(&id))
    })
}
