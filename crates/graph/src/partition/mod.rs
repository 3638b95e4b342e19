//! Cutting a graph at its targets.

mod compat;
mod waves;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

pub use compat::topological_partition;
pub use waves::before_targets;

use crate::error::Result;
use crate::{Graph, ModuleId, NodeId};

/// How a graph is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// As the reference: a new subgraph before a target, in the order of a breadth-first walk.
    Compat {
        /// How many targets share a subgraph.
        targets_per_subgraph: NonZeroUsize,
    },
    /// Targets that are equally deep in target calls share a wave; cheap work runs with its consumer.
    BeforeTargets,
}

impl Policy {
    /// The reference's default.
    pub const COMPAT: Self = Self::Compat { targets_per_subgraph: NonZeroUsize::MIN };
}

/// Cuts a graph by a policy; nodes of a part are in running order.
///
/// # Errors
/// Those of [`topological_partition`] and [`before_targets`].
pub fn partition(graph: &Graph, targets: &BTreeSet<ModuleId>, policy: Policy) -> Result<Vec<Vec<NodeId>>> {
    match policy {
        Policy::Compat { targets_per_subgraph } => topological_partition(graph, targets, targets_per_subgraph.get()),
        Policy::BeforeTargets => before_targets(graph, targets),
    }
}

/// All nodes that call a target.
pub fn find_target_nodes(graph: &Graph, targets: &BTreeSet<ModuleId>) -> BTreeSet<NodeId> {
    let calls_target = |modules: &[ModuleId]| modules.iter().any(|module| targets.contains(module));
    graph.nodes().filter(|(_, node)| calls_target(node.modules())).map(|(id, _)| id).collect()
}
