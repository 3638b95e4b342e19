//! Waves of targets that are equally deep.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::node::Timing;
use crate::{Graph, ModuleId, NodeId, find_target_nodes, graph_is_well_formed};

/// Cuts into waves: a target's depth is the longest path to it, counted in target calls; equally deep targets form a wave.
///
/// Part 0 holds what runs before the first wave and is left out where nothing does; each further part is a wave's cheap
/// prologue, its targets, and what can run once they have, up to the prologue of the next.
/// A node runs as soon as its inputs exist, but a prologue node ([`Timing::Prologue`]) whose values go no earlier than a
/// wave's targets runs in that wave, so that it sees the weights that are current then.
/// A module that is called at several depths joins the waves between its first and last call, so that one wave holds all of
/// its calls.
/// A parameter stands in every part that uses it.
///
/// # Errors
/// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed) where users and inputs disagree.
pub fn before_targets(graph: &Graph, targets: &BTreeSet<ModuleId>) -> Result<Vec<Vec<NodeId>>> {
    if !graph_is_well_formed(graph) {
        return Err(Error::malformed("a node lists exactly the nodes that take its values", "another list"));
    }
    let target_nodes = find_target_nodes(graph, targets);
    let wave_of_depth = merge_depths(graph, targets, &depths(graph, &target_nodes), &target_nodes);
    let parts = place(graph, &target_nodes, &wave_of_depth);
    let n_parts = parts.iter().flatten().max().map_or(0, |last| last + 1);
    let mut out = vec![Vec::new(); n_parts];
    for (id, node) in graph.nodes() {
        if node.is_parameter() {
            let used_in: BTreeSet<usize> = node.users().iter().filter_map(|user| parts[user.0]).collect();
            used_in.into_iter().for_each(|part| out[part].push(id));
        } else if let Some(part) = parts[id.0] {
            out[part].push(id);
        }
    }
    out.retain(|part| !part.is_empty());
    Ok(out)
}

/// Target calls on the longest path to each node, itself not counted.
fn depths(graph: &Graph, target_nodes: &BTreeSet<NodeId>) -> Vec<usize> {
    let mut depth = vec![0; graph.len()];
    for (id, node) in graph.nodes() {
        let behind = |input: &NodeId| depth[input.0] + usize::from(target_nodes.contains(input));
        depth[id.0] = node.input_nodes().iter().map(behind).max().unwrap_or(0);
    }
    depth
}

/// The wave of each depth: depths that a module's calls span become one.
fn merge_depths(
    graph: &Graph,
    targets: &BTreeSet<ModuleId>,
    depth: &[usize],
    target_nodes: &BTreeSet<NodeId>,
) -> Vec<usize> {
    let deepest = target_nodes.iter().map(|id| depth[id.0]).max().unwrap_or(0);
    // joined[d]: depth d + 1 belongs to the wave of depth d.
    let mut joined = vec![false; deepest];
    let mut span: BTreeMap<ModuleId, (usize, usize)> = BTreeMap::new();
    for &id in target_nodes {
        for &module in graph.node(id).modules().iter().filter(|module| targets.contains(module)) {
            let (first, last) = span.entry(module).or_insert((depth[id.0], depth[id.0]));
            *first = depth[id.0].min(*first);
            *last = depth[id.0].max(*last);
        }
    }
    for (first, last) in span.into_values() {
        joined[first..last].fill(true);
    }
    let mut waves = vec![0; deepest + 1];
    for d in 1..=deepest {
        waves[d] = waves[d - 1] + usize::from(!joined[d - 1]);
    }
    waves
}

/// The part of each node but parameters: 0 before all waves, w + 1 for wave w.
fn place(graph: &Graph, target_nodes: &BTreeSet<NodeId>, wave_of_depth: &[usize]) -> Vec<Option<usize>> {
    let mut parts: Vec<Option<usize>> = vec![None; graph.len()];
    let mut depth_parts = vec![0; graph.len()];
    for ((id, node), depth) in graph.nodes().zip(depths(graph, target_nodes)) {
        let early = node.input_nodes().iter().map(|input| depth_parts[input.0]).max().unwrap_or(0);
        depth_parts[id.0] = if target_nodes.contains(&id) { wave_of_depth[depth] + 1 } else { early };
        parts[id.0] = (!node.is_parameter()).then_some(depth_parts[id.0]);
    }
    let mut is_prologue = vec![false; graph.len()];
    for (id, node) in graph.nodes().rev() {
        if node.timing != Timing::Prologue || target_nodes.contains(&id) {
            continue;
        }
        let Some(first_use) = node.users().iter().filter_map(|user| parts[user.0]).min() else { continue };
        let feeds =
            |user: &&NodeId| parts[user.0] == Some(first_use) && (target_nodes.contains(user) || is_prologue[user.0]);
        if node.users().iter().any(|user| feeds(&user)) {
            parts[id.0] = Some(first_use);
            is_prologue[id.0] = true;
        }
    }
    parts
}
