//! The reference's graph functions, case by case (goldens/core).

use std::collections::{BTreeMap, BTreeSet};

use graph::{
    Concrete, Function, Graph, ModuleId, ModuleTree, Node, NodeId, NodeKind, Parameter, ParameterKind, Port, Subgraph,
    find_target_nodes, get_sequential_ancestors, partition_graph, populate_concrete_args, topological_partition,
    trace_consumed_names,
};
use serde_json::Value;
use testkit::Goldens;

fn cases(file: &str) -> Vec<Value> {
    Goldens::open("core").json(file)["cases"].as_array().unwrap().clone()
}

fn names(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect()
}

/// The graph of a case and the ids of its modules.
fn build(case: &Value) -> (Graph, BTreeMap<String, ModuleId>) {
    let mut tree = ModuleTree::new("Root");
    let mut modules = BTreeMap::new();
    for name in names(&case["modules"]) {
        modules.insert(name.to_owned(), tree.add(tree.root(), name, "Mod").unwrap());
    }
    let mut graph = Graph::new();
    let mut ids: BTreeMap<&str, NodeId> = BTreeMap::new();
    for node in case["nodes"].as_array().unwrap() {
        let name = node["name"].as_str().unwrap();
        let target = node["target"].as_str().unwrap_or_default();
        let args: Vec<Port> = names(&node["args"]).iter().map(|arg| ids[arg].into()).collect();
        let kind = match node["op"].as_str().unwrap() {
            "placeholder" => NodeKind::Placeholder,
            "get_attr" => NodeKind::GetAttr(target.to_owned()),
            "call_module" => NodeKind::CallModule(vec![modules[target]]),
            "call_function" => NodeKind::CallFunction(Function::Named("fn".to_owned())),
            "call_method" => NodeKind::CallMethod("size".to_owned()),
            "output" => {
                NodeKind::Output { names: names(&node["args"]).iter().map(|it| it.to_string()).collect(), n_carried: 0 }
            }
            other => panic!("unknown kind {other}"),
        };
        ids.insert(name, graph.push(Node::new(name, kind, args)).unwrap());
    }
    graph.check().unwrap();
    (graph, modules)
}

#[test]
fn partitions_subgraphs_and_target_nodes_equal_the_reference() {
    let cases = cases("partitions.json");
    assert_eq!(cases.len(), 100);
    for case in &cases {
        let (graph, modules) = build(&case["graph"]);
        let targets: BTreeSet<ModuleId> = names(&case["targets"]).iter().map(|name| modules[*name]).collect();
        let count = usize::try_from(case["targets_per_subgraph"].as_i64().unwrap()).unwrap_or(0);
        let out = &case["out"];
        let parts = match topological_partition(&graph, &targets, count) {
            Ok(parts) => parts,
            Err(error) => {
                assert_eq!(out["error"], "ValueError", "{case}");
                assert_eq!(error.kind(), &graph::ErrorKind::TargetsPerSubgraph { found: 0 });
                continue;
            }
        };
        let name = |id: &NodeId| graph.node(*id).name.clone();
        let named: Vec<Vec<String>> = parts.iter().map(|part| part.iter().map(name).collect()).collect();
        assert_eq!(serde_json::json!(named), out["partitions"], "{case}");
        let mut found: Vec<String> = find_target_nodes(&graph, &targets).iter().map(name).collect();
        found.sort();
        assert_eq!(serde_json::json!(found), out["target_nodes"], "{case}");
        let mut subgraphs = partition_graph(&graph, &parts).unwrap();
        trace_consumed_names(&mut subgraphs);
        let expected = out["subgraphs"].as_array().unwrap();
        assert_eq!(subgraphs.len(), expected.len());
        for (subgraph, expected) in subgraphs.iter().zip(expected) {
            assert_eq!(sorted(&subgraph.input_names), names(&expected["inputs"]), "{case}");
            assert_eq!(sorted(&subgraph.consumed_names), names(&expected["consumed"]), "{case}");
            let (carried, results) = outputs(subgraph);
            // Where a subgraph holds the output node the reference forgets what later ones need; it is kept here.
            if expected["outputs"].is_null() {
                let output = graph.output().unwrap();
                let NodeKind::Output { names, .. } = &graph.node(output).kind else { panic!("an output node") };
                assert_eq!(&results, names, "{case}");
            } else {
                assert_eq!(carried, names(&expected["outputs"]), "{case}");
                assert!(results.is_empty(), "{case}");
            }
        }
    }
}

fn sorted(names: &indexmap::IndexSet<String>) -> Vec<&str> {
    let mut names: Vec<_> = names.iter().map(String::as_str).collect();
    names.sort_unstable();
    names
}

fn outputs(subgraph: &Subgraph) -> (Vec<String>, Vec<String>) {
    let output = subgraph.graph.output().unwrap();
    let NodeKind::Output { names, n_carried } = &subgraph.graph.node(output).kind else { panic!("an output node") };
    (names[..*n_carried].to_vec(), names[*n_carried..].to_vec())
}

#[test]
fn consumed_names_equal_the_reference() {
    for case in cases("consumed_names.json") {
        let named = |names: &Value| self::names(names).iter().map(|it| it.to_string()).collect();
        let mut subgraphs: Vec<Subgraph> = case["inputs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|inputs| Subgraph {
                graph: Graph::new(),
                input_names: named(inputs),
                consumed_names: Default::default(),
            })
            .collect();
        trace_consumed_names(&mut subgraphs);
        for (subgraph, expected) in subgraphs.iter().zip(case["consumed"].as_array().unwrap()) {
            assert_eq!(sorted(&subgraph.consumed_names), names(expected));
        }
    }
}

fn grow(tree: &mut ModuleTree, parent: ModuleId, children: &Value) {
    for (name, below) in children.as_object().unwrap() {
        let child = tree.add(parent, name, "Module").unwrap();
        grow(tree, child, below);
    }
}

#[test]
fn sequential_ancestors_equal_the_reference() {
    let mut n_shared = 0;
    for case in cases("ancestors.json") {
        let mut tree = ModuleTree::new("Module");
        if case["tree"].is_object() {
            let root = tree.root();
            grow(&mut tree, root, &case["tree"]);
        } else {
            // One module held by p1 and p2.
            n_shared += 1;
            let p1 = tree.add(tree.root(), "p1", "Module").unwrap();
            let shared = tree.add(p1, "s", "Module").unwrap();
            let p2 = tree.add(tree.root(), "p2", "Module").unwrap();
            tree.share(p2, "s", shared).unwrap();
        }
        let targets = names(&case["targets"]).iter().map(|path| tree.find(path).unwrap()).collect();
        let found = get_sequential_ancestors(&tree, &targets);
        let mut found: Vec<&str> = found.iter().map(|&id| tree.path(id)).collect();
        found.sort_unstable();
        assert_eq!(serde_json::json!(found), case["ancestors"], "{case}");
    }
    assert_eq!(n_shared, 1);
}

#[test]
fn concrete_args_equal_the_reference() {
    let parameter = |name: &str, kind, default| Parameter { name: name.to_owned(), kind, default };
    let signature = [
        parameter("input_ids", ParameterKind::Named, Concrete::NoDefault),
        parameter("attention_mask", ParameterKind::Named, Concrete::None),
        parameter("use_cache", ParameterKind::Named, Concrete::Bool(true)),
        parameter("args", ParameterKind::VarPositional, Concrete::NoDefault),
        parameter("labels", ParameterKind::Named, Concrete::Int(3)),
        parameter("required", ParameterKind::Named, Concrete::NoDefault),
        parameter("kwargs", ParameterKind::VarKeyword, Concrete::NoDefault),
    ];
    let shown = |value: &Concrete| match value {
        Concrete::NoDefault => "<no default>".into(),
        Concrete::None => Value::Null,
        Concrete::Bool(value) => (*value).into(),
        Concrete::Int(value) => (*value).into(),
        Concrete::EmptyList => serde_json::json!([]),
        Concrete::EmptyMap => serde_json::json!({}),
    };
    for case in cases("concrete_args.json") {
        let found = populate_concrete_args(&signature, &names(&case["sample_input"]));
        let found: serde_json::Map<String, Value> =
            found.iter().map(|(name, value)| (name.clone(), shown(value))).collect();
        assert_eq!(Value::Object(found), case["out"], "{case}");
    }
}
