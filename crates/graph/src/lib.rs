//! Values, traces, graphs, partitions and interpreters.
//!
//! Model code calls operations on [`Value`]s. A computed value runs at once; a traced one records a node with a
//! [`SequentialTracer`]. The recorded [`Graph`] is cut by a [`Policy`] into [`Subgraph`]s, which run one after the other and
//! together do what the model does, bit for bit.
//!
//! Nodes have the kinds of torch.fx. A module that holds no sequential target is one `call_module` node; a module that holds
//! one is a [`Scope`] with enter and exit, so that hooks on it are heard under every partition.
//! Batch, time and routed-row extents stay symbolic: a trace runs with any of them.
#![forbid(unsafe_code)]

mod check;
mod concrete_args;
mod error;
mod interpret;
mod node;
mod partition;
mod print;
mod sequential_targets;
mod subgraph;
#[cfg(test)]
mod tests;
mod tracer;
mod tree;
mod value;

pub use check::graph_is_well_formed;
pub use concrete_args::{Concrete, Parameter, ParameterKind, populate_concrete_args};
pub use error::{Error, ErrorKind, Result};
pub use interpret::{Extent, Host, Produced, forward};
pub use node::{Function, Graph, Mark, MarkKind, Node, NodeId, NodeKind, Port, Scope, ScopeId, Timing};
pub use partition::{Policy, before_targets, find_target_nodes, partition, topological_partition};
pub use sequential_targets::get_sequential_targets;
pub use subgraph::{Subgraph, partition_graph, trace_consumed_names};
pub use tracer::SequentialTracer;
pub use tree::{ModuleId, ModuleTree, get_sequential_ancestors, match_modules};
pub use value::Value;
