//! Graphs that break rules, and the waves of a decoder.

use std::collections::BTreeSet;

use testkit::Goldens;

use crate::node::{Function, Graph, Node, NodeKind, Port, Timing};
use crate::{ErrorKind, ModuleId, ModuleTree, NodeId, before_targets, graph_is_well_formed, topological_partition};

/// The decoder of the reference's case: embedding, mask, rotary table, three layers, norm, head.
fn decoder() -> Graph {
    let mut graph = Graph::new();
    let mut tree = ModuleTree::new("Root");
    let mut push = |name: &str, is_module: bool, args: &[NodeId]| {
        let kind = match (is_module, args) {
            (_, []) => NodeKind::Placeholder,
            (true, _) => NodeKind::CallModule(vec![tree.add(tree.root(), name, "Mod").unwrap()]),
            (false, _) => NodeKind::CallFunction(Function::Named("fn".to_owned())),
        };
        graph.push(Node::new(name, kind, args.iter().map(|&id| id.into()).collect())).unwrap()
    };
    let (ids, mask) = (push("ids", false, &[]), push("mask", false, &[]));
    let emb = push("emb", true, &[ids]);
    let mask4 = push("mask4", false, &[mask, emb]);
    let h0 = push("h0", true, &[emb, mask4]);
    let h1 = push("h1", true, &[h0, mask4]);
    push("log", true, &[h1]);
    graph
}

#[test]
fn well_formedness_equals_the_reference() {
    let find = |graph: &Graph, name| graph.find(name).unwrap();
    for case in Goldens::open("core").json("well_formed.json")["cases"].as_array().unwrap() {
        let mut graph = decoder();
        let (h0, h1) = (find(&graph, "h0"), find(&graph, "h1"));
        let (ids, log) = (find(&graph, "ids"), find(&graph, "log"));
        match case["name"].as_str().unwrap() {
            "valid" => {}
            "user edge removed (h0 no longer lists h1)" => graph.users_mut(h0).retain(|&user| user != h1),
            "extra user edge (ids lists log)" => graph.users_mut(ids).push(log),
            other => panic!("unknown case {other}"),
        }
        assert_eq!(graph_is_well_formed(&graph), case["ok"].as_bool().unwrap(), "{case}");
        assert_eq!(graph.check().is_ok(), case["ok"].as_bool().unwrap(), "{case}");
        let partitioned =
            [topological_partition(&graph, &BTreeSet::new(), 1), before_targets(&graph, &BTreeSet::new())];
        assert!(partitioned.iter().all(|parts| parts.is_ok() == case["ok"].as_bool().unwrap()), "{case}");
    }
}

#[test]
fn a_node_that_breaks_a_rule_is_refused_by_name() {
    let mut graph = Graph::new();
    let x = graph.push(Node::new("x", NodeKind::Placeholder, vec![])).unwrap();
    let later = Port { node: NodeId(7), output: 0 };
    let second = Port { node: x, output: 1 };
    let named = || NodeKind::CallFunction(Function::Named("fn".to_owned()));
    for (rule, kind, args) in [
        ("a node takes values of nodes before it", named(), vec![later]),
        ("an argument is a value that its node gives", named(), vec![second]),
        ("call_module names a module", NodeKind::CallModule(vec![]), vec![x.into()]),
        ("call_method has an object", NodeKind::CallMethod("size".into()), vec![]),
        ("an input takes nothing and gives one value", NodeKind::Placeholder, vec![x.into()]),
        ("every result has a name", NodeKind::Output { names: vec![], n_carried: 0 }, vec![x.into()]),
    ] {
        let error = graph.push(Node::new("bad", kind, args)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Malformed { rule: found, .. } if *found == rule), "{error}");
        assert_eq!(error.place(), Some("bad"));
    }
    graph
        .push(Node::new("output", NodeKind::Output { names: vec!["y".into()], n_carried: 0 }, vec![x.into()]))
        .unwrap();
    let error = graph.push(Node::new("late", NodeKind::Placeholder, vec![])).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Malformed { rule: "nothing follows the output node", .. }));
}

/// One decoder layer of linears: norm, q k v, attention, o, residual, norm, gate up, gated, down, residual.
#[test]
fn waves_of_a_layer_begin_with_the_norm_or_the_gate() {
    let mut tree = ModuleTree::new("Root");
    let mut graph = Graph::new();
    let mut targets = BTreeSet::new();
    let mut push = |name: &str, args: &[NodeId]| {
        let is_linear = ["q", "k", "v", "o", "gate", "up", "down"].contains(&name);
        let kind = match args {
            [] => NodeKind::Placeholder,
            _ if is_linear => {
                let module = tree.add(tree.root(), name, "Linear").unwrap();
                targets.insert(module);
                NodeKind::CallModule(vec![module])
            }
            _ => NodeKind::CallFunction(Function::Named(name.to_owned())),
        };
        let mut node = Node::new(name, kind, args.iter().map(|&id| id.into()).collect());
        node.timing = if ["norm1", "norm2", "gated"].contains(&name) { Timing::Prologue } else { Timing::Early };
        graph.push(node).unwrap()
    };
    let x = push("x", &[]);
    let embedded = push("embedded", &[x]);
    let norm1 = push("norm1", &[embedded]);
    let qkv = ["q", "k", "v"].map(|name| push(name, &[norm1]));
    let attention = push("attention", &qkv);
    let o = push("o", &[attention]);
    let residual = push("residual", &[embedded, o]);
    let norm2 = push("norm2", &[residual]);
    let (gate, up) = (push("gate", &[norm2]), push("up", &[norm2]));
    let gated = push("gated", &[gate, up]);
    let down = push("down", &[gated]);
    push("sum", &[residual, down]);
    let parts = before_targets(&graph, &targets).unwrap();
    let named: Vec<Vec<&str>> =
        parts.iter().map(|part| part.iter().map(|&id| graph.node(id).name.as_str()).collect()).collect();
    let expected = [
        vec!["x", "embedded"],
        vec!["norm1", "q", "k", "v", "attention"],
        vec!["o", "residual"],
        vec!["norm2", "gate", "up"],
        vec!["gated", "down", "sum"],
    ];
    assert_eq!(named, expected);
    // Both calls of a module, and what lies between, are one wave.
    let q: ModuleId = tree.find("q").unwrap();
    let again = graph.push(Node::new("q_again", NodeKind::CallModule(vec![q]), vec![down.into()])).unwrap();
    let parts = before_targets(&graph, &targets).unwrap();
    assert_eq!(parts.len(), 2);
    assert!(parts[1].contains(&again));
}
