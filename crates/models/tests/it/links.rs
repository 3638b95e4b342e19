//! Published links against the data flow of a trace.

use std::collections::BTreeSet;

use graph::{Function, Graph, ModuleId, NodeId, NodeKind, Port};
use models::{ChannelMap, Link, Model, TraceInputs};
use tensor::Op;

use crate::golden::{everything, open, open_at};

/// Where the channels of a value go.
#[derive(Default)]
struct Flow {
    consumers: BTreeSet<ModuleId>,
    repeat: Option<(usize, usize)>,
    /// A use that would change if the channels were scaled.
    is_open: bool,
}

/// Follows channels from `port`; `expert` is the member of a group that gave them.
fn follow(model: &Model, graph: &Graph, port: Port, expert: Option<usize>, flow: &mut Flow) {
    for &user in graph.node(port.node).users() {
        let node = graph.node(user);
        for (idx, _) in node.args.iter().enumerate().filter(|(_, arg)| **arg == port) {
            match &node.kind {
                NodeKind::CallModule(modules) => {
                    let class = model.tree().class(modules[0]);
                    if idx == 0 && (model.linear(modules[0]).is_some() || class.ends_with("Router")) {
                        match expert.filter(|_| modules.len() > 1) {
                            Some(expert) => flow.consumers.insert(modules[expert]),
                            None => modules.iter().fold(true, |_, &module| flow.consumers.insert(module)),
                        };
                    } else {
                        flow.is_open = true;
                    }
                }
                NodeKind::CallFunction(Function::Op(op)) => follow_op(model, graph, (user, op, idx), expert, flow),
                _ => flow.is_open = true,
            }
        }
    }
}

fn follow_op(
    model: &Model,
    graph: &Graph,
    (user, op, idx): (NodeId, &Op, usize),
    expert: Option<usize>,
    flow: &mut Flow,
) {
    let keeps_channels = match op {
        Op::SplitHeads { .. } | Op::MergeHeads | Op::Flatten | Op::Dispatch { .. } | Op::WeighRows => idx == 0,
        // Only its second input lends its shape, which scaling leaves alone.
        Op::Unflatten if idx == 1 => return,
        Op::Unflatten => true,
        Op::Gated(_) | Op::ScaleRows(_) => idx == 1,
        Op::Attention(_) if idx == 2 => {
            let width =
                |arg: usize, dim: usize| graph.spec(graph.node(user).args[arg]).unwrap().shape[dim].known().unwrap();
            flow.repeat = Some((width(2, 3), width(0, 2) / width(2, 2)));
            true
        }
        _ => false,
    };
    if keeps_channels {
        follow(model, graph, user.into(), expert, flow);
    } else {
        flow.is_open = true;
    }
}

#[test]
fn links_are_exactly_what_the_graph_says() {
    for golden in everything() {
        let model = open_at(&golden).model;
        let has_weights = |id: &ModuleId| model.linear(*id).is_some() || !model.own_parameters(*id).is_empty();
        let is_innermost = |id: &ModuleId| model.tree().children(*id).next().is_none();
        let targets = model.tree().ids().filter(has_weights).filter(is_innermost).collect();
        let graph = model.trace(&targets, TraceInputs::Ids).unwrap();
        let published = |module| model.links().links.iter().filter(move |link: &&Link| link.producer == module);
        let mut n_found = 0;
        for (id, node) in graph.nodes() {
            for (idx, &module) in node.modules().iter().enumerate() {
                let class = model.tree().class(module);
                let is_linear = model.linear(module).is_some();
                let is_scalable = is_linear || !model.own_parameters(module).is_empty();
                if !is_linear && !class.contains("Norm") || !is_scalable {
                    continue;
                }
                let mut flow = Flow::default();
                follow(&model, &graph, id.into(), (node.modules().len() > 1).then_some(idx), &mut flow);
                // A norm by head has one weight for the channels of all heads, which a consumer tells apart.
                if let (false, [own]) = (is_linear, model.own_parameters(module)) {
                    let width = model.store().info(*own).shape[0];
                    let columns = |id: &ModuleId| {
                        model.linear(*id).is_none_or(|it| model.store().info(it.weight).shape[1] == width)
                    };
                    flow.is_open |= !flow.consumers.iter().all(columns);
                }
                let path = model.tree().path(module);
                let links: Vec<_> = published(module).collect();
                if flow.is_open {
                    assert!(links.is_empty(), "{golden}: {path} cannot be scaled");
                    continue;
                }
                let [link] = links.as_slice() else { panic!("{golden}: one link of {path}") };
                assert_eq!(link.consumers.iter().copied().collect::<BTreeSet<_>>(), flow.consumers, "{golden}: {path}");
                assert_eq!(link.consumers.len(), flow.consumers.len(), "{golden}: {path}");
                let channels = match flow.repeat {
                    Some((head_dim, repeat)) => ChannelMap::RepeatedHeads { head_dim, repeat },
                    None => ChannelMap::Same,
                };
                assert_eq!(link.channels, channels, "{golden}: {path}");
                n_found += 1;
            }
        }
        assert_eq!(n_found, model.links().links.len(), "{golden}");
    }
}

#[test]
fn writers_and_readers_of_the_residual_stream_are_listed() {
    let model = open("qwen3_moe").model;
    let paths = |ids: &[ModuleId]| ids.iter().map(|&id| model.tree().path(id).to_owned()).collect::<Vec<_>>();
    let readers = paths(&model.links().residual_readers);
    assert_eq!(readers.len(), 5);
    assert_eq!(readers[..2], ["model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"]);
    let writers = paths(&model.links().residual_writers);
    assert_eq!(writers.len(), 1 + 2 * (1 + 6));
    assert_eq!(
        writers[..3],
        ["model.embed_tokens", "model.layers.0.self_attn.o_proj", "model.layers.0.mlp.experts.0.down_proj"]
    );
    assert_eq!(model.links().fused.len(), 2 * (1 + 6));
}
