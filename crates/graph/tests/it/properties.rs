//! Properties of both partitions over random graphs.

use std::collections::{BTreeMap, BTreeSet};

use graph::{
    Extent, Function, Graph, Host, MarkKind, ModuleId, ModuleTree, Node, NodeId, NodeKind, Policy, Port, Timing,
    before_targets, find_target_nodes, forward, partition, partition_graph, trace_consumed_names,
};
use proptest::prelude::*;
use tensor::{Activation, Budget, DType, Dim, Engine, Op, Spec, Symbol, Tensor};

const WIDTH: usize = 4;

/// A graph over (B, 4) values: modules are numbered linears, functions are adds and activations.
#[derive(Debug, Clone)]
struct Plan {
    nodes: Vec<(u8, Vec<usize>)>,
    targets: Vec<bool>,
}

fn plans() -> impl Strategy<Value = Plan> {
    let node = (0u8..4, prop::collection::vec(any::<usize>(), 2));
    (prop::collection::vec(node, 1..24), prop::collection::vec(any::<bool>(), 6))
        .prop_map(|(nodes, targets)| Plan { nodes, targets })
}

fn build(plan: &Plan) -> (Graph, ModuleTree, BTreeSet<ModuleId>) {
    let mut tree = ModuleTree::new("Root");
    let modules: Vec<_> =
        (0..plan.targets.len()).map(|i| tree.add(tree.root(), &format!("m{i}"), "Linear").unwrap()).collect();
    let spec = Spec::new(DType::F32, vec![Dim::symbol(Symbol::Batch), WIDTH.into()]);
    let mut graph = Graph::new();
    let mut push = |name: &str, kind, args: Vec<Port>, timing| {
        let mut node = Node::new(name, kind, args);
        node.specs = vec![Some(spec.clone())];
        node.timing = timing;
        graph.push(node).unwrap()
    };
    let mut values: Vec<NodeId> = vec![push("x", NodeKind::Placeholder, vec![], Timing::Early)];
    values.push(push("p", NodeKind::GetAttr("p".into()), vec![], Timing::Early));
    for (kind, picks) in &plan.nodes {
        let near = |pick: &usize| values[values.len() - 1 - pick % values.len().min(5)].into();
        let args: Vec<Port> = picks.iter().map(near).collect();
        let id = match kind {
            0 => push("add", NodeKind::CallFunction(Function::Op(Op::Add)), args, Timing::Early),
            1 => {
                let op = Op::Activate(Activation::Silu);
                push("silu", NodeKind::CallFunction(Function::Op(op)), args[..1].to_vec(), Timing::Prologue)
            }
            _ => {
                let module = modules[picks[1] % modules.len()];
                push(tree.path(module), NodeKind::CallModule(vec![module]), args[..1].to_vec(), Timing::Early)
            }
        };
        values.push(id);
    }
    let last = values[values.len() - 1].into();
    let kind = NodeKind::Output { names: vec!["y".into()], n_carried: 0 };
    graph.push(Node::new("output", kind, vec![last])).unwrap();
    let targets = modules.iter().zip(&plan.targets).filter(|(_, is_target)| **is_target).map(|(id, _)| *id).collect();
    (graph, tree, targets)
}

/// Module m multiplies by a number of its own.
struct Numbers(Engine);

impl Host for Numbers {
    type Error = graph::Error;

    fn parameter(&mut self, _: &str) -> graph::Result<Tensor> {
        Ok(self.0.budget.tensor(vec![0.5f32; 3 * WIDTH], &[3, WIDTH])?)
    }

    fn call_function(&mut self, op: &Op, _: Option<ModuleId>, inputs: Vec<Tensor>) -> graph::Result<Vec<Tensor>> {
        Ok(op.forward(&self.0, inputs)?)
    }

    fn call_module(&mut self, modules: &[ModuleId], inputs: Vec<Tensor>) -> graph::Result<Vec<Tensor>> {
        let factor = 0.3 + modules[0].index() as f32 * 0.2;
        Ok(Op::Scale { factor }.forward(&self.0, inputs)?)
    }

    fn hear_inputs(&mut self, _: &[ModuleId], _: &[Tensor]) -> graph::Result<()> {
        Ok(())
    }

    fn mark(&mut self, _: MarkKind, _: ModuleId, _: &[Option<Tensor>]) -> graph::Result<()> {
        Ok(())
    }
}

fn input(engine: &Engine) -> Tensor {
    let numbers = (0..3 * WIDTH).map(|i| i as f32 * 0.37 - 2.0).collect();
    engine.budget.tensor::<f32>(numbers, &[3, WIDTH]).unwrap()
}

/// Runs parts in order over a cache that forgets what is consumed.
fn run_parts(graph: &Graph, targets: &BTreeSet<ModuleId>, policy: Policy, host: &mut Numbers) -> Vec<f32> {
    let parts = partition(graph, targets, policy).unwrap();
    let mut subgraphs = partition_graph(graph, &parts).unwrap();
    trace_consumed_names(&mut subgraphs);
    let mut cache = BTreeMap::from([("x".to_owned(), input(&host.0))]);
    let mut result = None;
    for subgraph in &subgraphs {
        subgraph.graph.check().unwrap();
        let produced = forward(&subgraph.graph, host, |name| cache.get(name).cloned(), &Extent::Whole).unwrap();
        cache.extend(produced.carried);
        cache.retain(|name, _| !subgraph.consumed_names.contains(name));
        result = produced.outputs.get("y").cloned().or(result);
    }
    result.unwrap().to_f32().unwrap().into_owned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn parts_in_order_equal_the_whole_bit_for_bit(plan in plans()) {
        let (graph, _, targets) = build(&plan);
        let mut host = Numbers(Engine::new(Budget::unlimited()));
        let x = input(&host.0);
        let whole = forward(&graph, &mut host, |_| Some(x.clone()), &Extent::Whole).unwrap();
        let whole = whole.outputs["y"].to_f32().unwrap().into_owned();
        for policy in [Policy::COMPAT, Policy::BeforeTargets] {
            prop_assert_eq!(&run_parts(&graph, &targets, policy, &mut host), &whole);
        }
    }

    #[test]
    fn a_wave_holds_every_call_of_its_modules_and_no_node_is_lost(plan in plans()) {
        let (graph, _, targets) = build(&plan);
        let parts = before_targets(&graph, &targets).unwrap();
        let mut part_of = BTreeMap::new();
        for (idx, part) in parts.iter().enumerate() {
            for &id in part {
                let is_parameter = matches!(graph.node(id).kind, NodeKind::GetAttr(_));
                prop_assert!(part_of.insert(id, idx).is_none() || is_parameter);
            }
        }
        let mut wave_of = BTreeMap::new();
        for id in find_target_nodes(&graph, &targets) {
            let module = graph.node(id).modules()[0];
            prop_assert_eq!(*wave_of.entry(module).or_insert(part_of[&id]), part_of[&id]);
        }
        let unused_parameter = |id: &NodeId| graph.node(*id).users().is_empty();
        prop_assert!(graph.nodes().all(|(id, _)| part_of.contains_key(&id) || unused_parameter(&id)));
    }
}
