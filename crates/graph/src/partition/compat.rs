//! The reference's partition (spec core.md section 11.2).

use std::collections::{BTreeSet, VecDeque};

use crate::error::{Error, ErrorKind, Result};
use crate::{Graph, ModuleId, NodeId, find_target_nodes, graph_is_well_formed};

/// Cuts before each target, or each `targets_per_subgraph`-th, in the order of a breadth-first walk; the first part holds what
/// precedes all targets.
///
/// A node goes to the part that is current when all its inputs have been placed.
/// A parameter goes to the front of the first part that uses it; one without users is left out.
///
/// # Errors
/// [`ErrorKind::Malformed`] where users and inputs disagree, then [`ErrorKind::TargetsPerSubgraph`] for 0.
pub fn topological_partition(
    graph: &Graph,
    targets: &BTreeSet<ModuleId>,
    targets_per_subgraph: usize,
) -> Result<Vec<Vec<NodeId>>> {
    if !graph_is_well_formed(graph) {
        return Err(Error::malformed("a node lists exactly the nodes that take its values", "another list"));
    }
    if targets_per_subgraph == 0 {
        return Err(ErrorKind::TargetsPerSubgraph { found: targets_per_subgraph }.into());
    }
    let target_nodes = find_target_nodes(graph, targets);
    let is_parameter = |id: NodeId| graph.node(id).is_parameter();
    let mut waiting_for: Vec<usize> = graph
        .nodes()
        .map(|(_, node)| node.input_nodes().into_iter().filter(|&input| !is_parameter(input)).count())
        .collect();
    let starts = graph.nodes().map(|(id, _)| id).filter(|&id| waiting_for[id.0] == 0 && !is_parameter(id));
    let mut queue: VecDeque<NodeId> = starts.collect();
    let mut parts: Vec<Vec<NodeId>> = vec![Vec::new()];
    let mut part_of = vec![None; graph.len()];
    let mut n_targets = 0;
    while let Some(id) = queue.pop_front() {
        let is_target = target_nodes.contains(&id);
        let idx = parts.len() - 1;
        if is_target && (idx == 0 && !parts[0].is_empty() || n_targets >= targets_per_subgraph) {
            parts.push(Vec::new());
            n_targets = 0;
        }
        n_targets += usize::from(is_target);
        let idx = parts.len() - 1;
        parts[idx].push(id);
        part_of[id.0] = Some(idx);
        for &user in graph.node(id).users() {
            waiting_for[user.0] -= 1;
            if waiting_for[user.0] == 0 {
                queue.push_back(user);
            }
        }
    }
    for (id, node) in graph.nodes().filter(|(_, node)| node.is_parameter()) {
        if let Some(first) = node.users().iter().filter_map(|user| part_of[user.0]).min() {
            parts[first].insert(0, id);
        }
    }
    Ok(parts)
}
