//! Everything in `goldens/core/matching.json`: matching over the modules of a small model.

use compressed_tensors::target::{
    FusedMap, Matcher, NamedModule, Norms, Pattern, Patterns, Rematch, expand_special_targets, is_narrow_match,
    lowest_common_ancestor, match_modules_set, match_name, match_named_modules, match_named_parameters,
    match_quantizable_tensors,
};
use serde_json::{Value, json};
use testkit::Goldens;

/// Modules of the golden model with their classes, and its parameters.
struct Net {
    modules: Vec<(String, Vec<String>)>,
}

impl Net {
    fn read(case: &Value) -> Self {
        let modules = case["modules"].as_array().unwrap();
        Self { modules: modules.iter().map(|it| (text(&it[0]).to_owned(), texts(&it[1]))).collect() }
    }

    /// The linear head has a bias, the norms and the other linears have what their class has in the goldens.
    fn parameters(&self) -> Vec<String> {
        let mut names = Vec::new();
        for (name, classes) in &self.modules {
            let own: &[&str] = match (classes[0].as_str(), name.as_str()) {
                ("LayerNorm", _) | ("Linear", "head") => &["weight", "bias"],
                ("Linear" | "Embedding", _) => &["weight"],
                _ => &[],
            };
            names.extend(own.iter().map(|parameter| format!("{name}.{parameter}")));
        }
        names
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().map(|it| it.iter().map(|it| text(it).to_owned()).collect()).unwrap_or_default()
}

fn matcher(case: &Value) -> Matcher {
    Matcher::compile(&texts(&case["targets"]), &texts(&case["ignore"])).unwrap()
}

fn answer(case: &Value, net: &Net) -> Value {
    let classes: Vec<Vec<&str>> = net.modules.iter().map(|it| it.1.iter().map(String::as_str).collect()).collect();
    let modules: Vec<NamedModule<'_>> =
        net.modules.iter().zip(&classes).map(|(it, classes)| NamedModule { name: &it.0, classes }).collect();
    let name = case["name"].as_str().unwrap_or_default();
    let module = modules.iter().copied().find(|it| it.name == name);
    match text(&case["op"]) {
        "match_name" => json!(match_name(name, text(&case["target"])).unwrap()),
        "match_name_fused" => {
            let fused: FusedMap =
                case["fused"].as_object().unwrap().iter().map(|(key, shards)| (key.clone(), texts(shards))).collect();
            json!(Pattern::parse(text(&case["target"])).unwrap().matches_fused(name, &fused).unwrap())
        }
        "lowest_common_ancestor" => {
            json!(lowest_common_ancestor(case["names"].as_array().unwrap().iter().map(Value::as_str)))
        }
        "match_named_modules" => json!(match_named_modules(modules, &matcher(case)).unwrap()),
        "match_named_parameters" => {
            let names = net.parameters();
            json!(match_named_parameters(names.iter().map(String::as_str), &matcher(case)).unwrap())
        }
        "match_targets order" => {
            json!(Patterns::compile(&texts(&case["targets"])).unwrap().matching(module.unwrap()).unwrap())
        }
        "match_modules_set" => match match_modules_set(modules, &matcher(case), Rematch::Error) {
            Ok(sets) => json!(sets),
            Err(_) => json!("ValueError"),
        },
        "is_narrow_match" => {
            let targets = Patterns::compile(&[text(&case["target"])]).unwrap();
            json!(is_narrow_match(modules, &targets, name).unwrap())
        }
        "match_quantizable_tensors" => {
            let names = texts(&case["tensors"]);
            let parameters = Patterns::compile(&texts(&case["param_targets"])).unwrap();
            let names = names.iter().map(String::as_str);
            let found = match_quantizable_tensors(names, &matcher(case), &parameters, Norms::Skip).unwrap();
            json!(found.iter().map(|&(module, name)| [module, name]).collect::<Vec<_>>())
        }
        other => panic!("no test for `{other}`"),
    }
}

#[test]
fn a_whole_model_is_matched_as_in_the_reference() {
    let file = Goldens::open("core").json("matching.json");
    let cases = file["cases"].as_array().unwrap();
    let net = Net::read(cases.iter().find(|it| it["op"] == "model").unwrap());
    let mut n_checks = 0;
    for case in cases.iter().filter(|it| it["op"] != "model") {
        let expected = ["out", "ok", "error"].iter().find_map(|key| case.get(*key)).unwrap();
        assert_eq!(&answer(case, &net), expected, "{case}");
        n_checks += 1;
    }
    assert_eq!(n_checks, 94);
}

#[test]
fn a_module_may_stand_under_two_targets_when_that_is_allowed() {
    let modules = [("a.x", "Linear"), ("a.y", "Linear")];
    let classes: Vec<[&str; 1]> = modules.iter().map(|it| [it.1]).collect();
    let named = modules.iter().zip(&classes).map(|(it, classes)| NamedModule { name: it.0, classes });
    let matcher = Matcher::compile(&["Linear", "re:.*y"], &Vec::<String>::new()).unwrap();
    let sets = match_modules_set(named.clone(), &matcher, Rematch::Allow).unwrap();
    assert_eq!(sets, [[vec!["a.x", "a.y"], vec!["a.y"]]]);
    let error = match_modules_set(named, &matcher, Rematch::Error).unwrap_err();
    assert!(error.to_string().contains("which both match `a.y`"), "{error}");
}

#[test]
fn names_for_families_of_classes_are_expanded_as_in_the_reference() {
    let file = Goldens::open("core").json("small_helpers.json");
    let cases = file["cases"].as_array().unwrap().iter().filter(|it| it["op"] == "expand_special_targets");
    let mut n_checks = 0;
    for case in cases {
        let targets = case["in"].as_str().map_or_else(|| texts(&case["in"]), |one| vec![one.to_owned()]);
        match expand_special_targets(&targets) {
            Ok(found) => assert_eq!(json!(found), case["ok"], "{case}"),
            Err(error) => assert_eq!(case["error"], "ValueError", "{case}: {error}"),
        }
        n_checks += 1;
    }
    assert_eq!(n_checks, 5);
}
