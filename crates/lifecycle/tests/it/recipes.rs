//! `recipes` and `recipe_merge`.

use std::collections::BTreeSet;

use lifecycle::{
    MemoryModel, Modifier, ModuleFacts, Recipe, RecipeInput, Result,
    error::{Error, ErrorKind, Place},
    recipe::{Plan, append_recipe_dict, filter_dict},
};
use serde_json::{Map, Value, json};

use crate::{
    specs::{Carrier, registry},
    toys::{cases, kind, same},
};

/// What we do where the reference ignores or loses something.
enum Mended {
    /// A kind of fault instead of a result or of an unclear fault.
    Refused(fn(&ErrorKind) -> bool),
    /// Modifiers that the reference drops or refuses, as type names with one field each.
    Read(&'static [(&'static str, &'static str, f64)]),
    /// The same modifiers, but YAML that keeps more.
    Yaml(&'static str),
    /// Rust has no such input.
    Inapplicable,
}

const NO_MODIFIERS: Mended = Mended::Refused(|it| matches!(it, ErrorKind::NoModifiers { .. }));
const SHAPE: Mended = Mended::Refused(|it| matches!(it, ErrorKind::Shape { .. }));
const TOY_A: &str = "ToyAModifier";

/// Where a case of the reference is a defect, what happens instead.
fn mended(name: &str, stage: Option<&str>) -> Option<Mended> {
    Some(match (name, stage) {
        ("basic", Some(_)) | ("two stages: all modifiers, last stage name", Some("s" | "zzz")) | ("empty stage", _) => {
            NO_MODIFIERS
        }
        ("same type twice in a group: last one wins (YAML mapping)", _) => {
            Mended::Refused(|it| *it == ErrorKind::DuplicateKey { name: TOY_A.into() })
        }
        ("two stages: all modifiers, last stage name", None) => Mended::Yaml(
            "one_stage:\n  g_modifiers:\n    ToyAModifier: {requires_calibration_data: false, targets: Linear, \
             sparsity: 0.1, flag: false}\ntwo_stage:\n  g_modifiers:\n    ToyBModifier:\n      \
             requires_calibration_data: false\n      ignore: []\n      alpha: 2.0\n",
        ),
        ("explicit group inside modifier", _) => {
            Mended::Refused(|it| matches!(it, ErrorKind::InvalidField { field, .. } if field == "group"))
        }
        ("args kept verbatim", _) => Mended::Yaml(
            "args: {a: 1, b: eval(a*2)}\ns_stage:\n  g_modifiers:\n    ToyAModifier: {requires_calibration_data: \
             false, targets: Linear, sparsity: 0.3, flag: false}\n",
        ),
        ("run_type and other stage keys ignored", _) => Mended::Yaml(
            "s_stage:\n  run_type: oneshot\n  g_modifiers:\n    ToyAModifier: {requires_calibration_data: false, \
             targets: Linear, sparsity: 0.5, flag: false}\n",
        ),
        ("eval string is not evaluated", _) => Mended::Read(&[(TOY_A, "sparsity", 2.0)]),
        ("top level groups ignored" | "plain modifiers key ignored" | "stages key ignored", _)
        | ("list of modifiers in group ignored", _) => Mended::Read(&[(TOY_A, "sparsity", 0.3)]),
        ("null modifier args" | "file e.yaml" | "file f.yaml", _) => SHAPE,
        ("numbered stage (as written by a merged recipe.yaml) is dropped", _) => {
            Mended::Read(&[(TOY_A, "sparsity", 0.5), ("ToyBModifier", "", 0.0)])
        }
        ("AWQ then quantizer", _) => Mended::Yaml(
            "s_stage:\n  g_modifiers:\n    AWQModifier: {requires_calibration_data: true, duo_scaling: true, n_grid: \
             20}\n    QuantizationModifier:\n      targets: [Linear]\n      ignore: []\n      scheme: W4A16\n      \
             bypass_divisibility_checks: false\n      requires_calibration_data: false\n",
        ),
        ("quantizer then AWQ then quantizer", _) => Mended::Yaml(
            "s_stage:\n  g_modifiers:\n    QuantizationModifier:\n      targets: [Linear]\n      ignore: []\n      \
             scheme: W4A16\n      bypass_divisibility_checks: false\n      requires_calibration_data: false\n    \
             AWQModifier: {requires_calibration_data: true, duo_scaling: true, n_grid: 20}\n    GPTQModifier:\n      \
             targets: [Linear]\n      ignore: []\n      scheme: W4A16\n      bypass_divisibility_checks: false\n      \
             requires_calibration_data: true\n      block_size: 128\n      dampening_frac: 0.01\n      actorder: \
             static\n      batched_quantization: auto\n",
        ),
        ("instances: nested list is flattened", _) => Mended::Yaml(
            "default_stage:\n  default_modifiers:\n  - ToyAModifier: {requires_calibration_data: false, targets: \
             Linear, sparsity: 0.5, flag: false}\n  - ToyBModifier:\n      requires_calibration_data: false\n      \
             ignore: []\n  - ToyAModifier: {requires_calibration_data: false, targets: Linear, sparsity: 0.9, flag: \
             false}\n",
        ),
        ("instances: same type twice: serialization keeps only the last", _) => Mended::Yaml(
            "default_stage:\n  default_modifiers:\n  - ToyAModifier: {requires_calibration_data: false, targets: \
             Linear, sparsity: 0.1, flag: false}\n  - ToyAModifier: {requires_calibration_data: false, targets: \
             Linear, sparsity: 0.2, flag: false}\n",
        ),
        ("instances: not modifiers", _) => Mended::Inapplicable,
        _ => return None,
    })
}

/// The golden's normal form: last stage name, arguments, modifiers with all public fields.
fn normal(plan: &Plan) -> Value {
    let modifiers: Vec<Value> = plan
        .modifiers
        .iter()
        .map(|it| {
            let mut fields = it.fields.clone();
            fields.retain(|name, _| !name.ends_with('_'));
            json!({"type": it.spec.name, "args": fields})
        })
        .collect();
    let recipe = plan.recipe();
    json!({"stage": recipe.stages.last().map_or("default", |it| &it.name), "args": recipe.args, "modifiers": modifiers})
}

fn plan(case: &Value) -> Result<Plan> {
    let stage = case["target_stage"].as_str();
    if let Some(file) = case["file"].as_str() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(file);
        std::fs::write(&path, case["content"].as_str().unwrap()).unwrap();
        return Recipe::from_file(&path, stage)?.resolve(&registry());
    }
    Recipe::from_text(case["in"].as_str().unwrap(), stage)?.resolve(&registry())
}

#[test]
fn recipes_mean_what_they_mean_in_the_reference_and_lose_nothing() {
    let mut differing = 0;
    let mut instances = 0;
    for case in cases("recipes.json", 69) {
        let name = case["name"].as_str().unwrap();
        if name.starts_with("instances:") {
            instances += 1;
            differing += usize::from(check_instances(&case));
            continue;
        }
        let result = plan(&case);
        let mended = mended(name, case["target_stage"].as_str());
        differing += usize::from(mended.is_some());
        match (mended, result) {
            (None, Err(error)) => {
                // A validation error and a JSON error are value errors.
                let expected = match case["error"].as_str().unwrap_or_else(|| panic!("{name}: {error}")) {
                    "ValidationError" | "JSONDecodeError" => "ValueError",
                    other => other,
                };
                assert_eq!(kind(&error), expected, "{name}: {error}");
            }
            (None, Ok(plan)) => {
                assert!(same(&normal(&plan), &case["ok"]), "{name}: {}", normal(&plan));
                if let Some(yaml) = case["yaml"].as_str() {
                    assert_eq!(plan.recipe().yaml(), yaml, "{name}");
                }
                reads_back(&plan);
            }
            (Some(Mended::Refused(is_it)), Err(error)) => {
                assert!(is_it(error.kind()), "{name}: {error}");
                assert!(["ValueError", "RuntimeError"].contains(&kind(&error)));
            }
            (Some(Mended::Read(expected)), Ok(plan)) => {
                let types: Vec<&str> = plan.modifiers.iter().map(|it| it.spec.name).collect();
                assert_eq!(types, expected.iter().map(|it| it.0).collect::<Vec<_>>(), "{name}");
                for (modifier, (_, field, value)) in plan.modifiers.iter().zip(expected) {
                    assert!(field.is_empty() || modifier.fields[*field] == json!(value), "{name}");
                }
                reads_back(&plan);
            }
            (Some(Mended::Yaml(yaml)), Ok(plan)) => {
                // The marker of an absent device is null here.
                let expected = case["ok"].to_string().replace("\"not_provided\"", "null");
                let expected: Value = serde_json::from_str(&expected).unwrap();
                assert!(same(&normal(&plan), &expected), "{name}: {}", normal(&plan));
                assert_eq!(plan.recipe().yaml(), yaml, "{name}");
                reads_back(&plan);
            }
            (_, result) => panic!("{name}: {:?}", result.map(|it| it.recipe().clone())),
        }
    }
    assert_eq!((instances, differing), (8, 26));
}

fn reads_back(plan: &Plan) {
    let text = plan.recipe().yaml();
    let again = Recipe::from_text(&text, None).unwrap().resolve(&registry()).unwrap();
    assert_eq!(again.recipe(), plan.recipe(), "{text}");
}

/// Recipes of modifiers that the caller made. Says whether the case differs from the reference.
fn check_instances(case: &Value) -> bool {
    let name = case["name"].as_str().unwrap();
    let mended = mended(name, None);
    let text = |it: &str| RecipeInput::Text(it.to_owned());
    if name == "instances: strings list (type says allowed)" {
        // Texts in a list are several recipes; this one has no modifiers.
        let error = RecipeInput::List(vec![text("a_stage: {}")]).load(&registry(), None, None).err().unwrap();
        assert_eq!(kind(&error), case["error"].as_str().unwrap());
        return false;
    }
    if matches!(mended, Some(Mended::Inapplicable)) {
        return true;
    }
    let made = |modifier: &Value| -> Box<dyn Modifier> {
        let type_name = if modifier["type"] == TOY_A { TOY_A } else { "ToyBModifier" };
        Box::new(Carrier::new(type_name, modifier["args"].as_object().unwrap()))
    };
    let modifiers: Vec<_> = case["ok"]["modifiers"].as_array().unwrap().iter().map(made).collect();
    let recipe = Recipe::from_modifiers(&modifiers, case["modifier_group_name"].as_str());
    for (entry, expected) in recipe.entries().zip(case["ok"]["modifiers"].as_array().unwrap()) {
        let mut fields = expected["args"].as_object().unwrap().clone();
        fields.retain(|name, value| name != "group" && !value.is_null());
        assert!(same(&json!(entry.fields), &json!(fields)), "{name}");
    }
    let yaml = match &mended {
        Some(Mended::Yaml(yaml)) => yaml,
        _ => case["yaml"].as_str().unwrap(),
    };
    assert_eq!(recipe.yaml(), yaml, "{name}");
    // The same modifiers through a nested input.
    let mut nested = RecipeInput::default();
    for modifier in modifiers {
        nested = RecipeInput::List(vec![nested, RecipeInput::List(vec![modifier.into()])]);
    }
    let loaded = nested.load(&registry(), None, None).unwrap();
    assert_eq!(loaded.recipe.entries().collect::<Vec<_>>(), recipe.entries().collect::<Vec<_>>());
    mended.is_some()
}

fn line(error: &Error) -> (u64, u64) {
    match error.place() {
        Some(Place::Recipe { line, column, .. }) => (*line, *column),
        other => panic!("{error}: {other:?}"),
    }
}

#[test]
fn faults_carry_line_column_and_the_nearest_names() {
    let resolve = |text: &str| Recipe::from_text(text, None).and_then(|it| it.resolve(&registry())).err().unwrap();
    let cases = [
        ("s_stage:\n  g_modifiers:\n    GTPQModifier: {}\n", (3, 5), "did you mean `GPTQModifier`"),
        ("s_stage:\n  g_modifiers:\n    GPTQModifier:\n      schme: W4A16\n", (4, 7), "did you mean `scheme`"),
        ("s_stage:\n  g_modifiers:\n    ToyAModifier: {sparsity: abc}\n", (3, 20), "expected a number"),
        ("s_stage:\n  g_modifiers:\n    ToyAModifier: {sparsity: eval(q)}\n", (3, 5), "`q` is not defined"),
        ("s_stage:\n  g_modifier:\n    ToyAModifier: {}\n", (2, 3), "<name>_modifiers"),
        ("s_stages:\n  g_modifiers:\n    ToyAModifier: {}\n", (1, 1), "<name>_stage"),
        ("s_stage:\n  run_type: nope\n", (2, 13), "expected `oneshot` or `train`"),
        ("s_stage:\n  g_modifiers: 3\n", (2, 16), "expected a mapping or a list of modifiers"),
        ("s_stage:\n  g_modifiers:\n    ToyAModifier: {}\n    ToyAModifier: {}\n", (4, 5), "stands twice"),
        ("s_stage:\n  a: [1, 2\n", (2, 6), "not valid YAML"),
        ("s_stage: !!python/object/apply:os.system [x]\n", (1, 1), "not valid YAML"),
        (
            "s_stage:\n  g_modifiers:\n    QuantizationModifier:\n      config_groups:\n        g0: {weights: {bits: 4}}\n",
            (4, 7),
            "field `config_groups.g0.weights` of QuantizationModifier is a mapping with the key `bits`",
        ),
        (
            "s_stage:\n  g_modifiers:\n    QuantizationModifier:\n      scheme: W4A16\n      config_groups: {}\n",
            (4, 7),
            "expected absent beside `config_groups`",
        ),
        ("s_stage:\n  g_modifiers:\n    AWQModifier: {}\n", (3, 5), "must be followed by"),
        (
            "{\n\t\"s_stage\": {\"g_modifiers\": {\"NopeModifier\": {}}}}",
            (2, 30),
            "unknown modifier `NopeModifier`, known are `ToyAModifier`",
        ),
        ("s_stage: {}\n", (1, 1), "no modifiers found"),
    ];
    for (text, place, message) in cases {
        let error = resolve(text);
        assert!(error.to_string().contains(message), "{text}: {error}");
        assert_eq!(line(&error).0, place.0, "{text}: {error}");
        // The parser's own faults have columns of its own choosing.
        if !error.to_string().contains("not valid") {
            assert_eq!(line(&error), place, "{text}: {error}");
        }
    }
    let json = "{\"s_stage\": {\"g_modifiers\": {\"ToyAModifier\": {}, \"ToyAModifier\": {}}}}";
    assert_eq!(*resolve(json).kind(), ErrorKind::DuplicateKey { name: TOY_A.into() });
}

#[test]
fn a_markdown_recipe_keeps_the_files_line_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("r.md");
    std::fs::write(&path, "# title\n\n---\ns_stage:\n  g_modifiers:\n    NopeModifier: {}\n---\n").unwrap();
    let error = Recipe::from_file(&path, None).unwrap().resolve(&registry()).unwrap_err();
    assert_eq!(line(&error), (6, 5));
    assert!(error.to_string().starts_with(&format!("{}:6:5: ", path.display())), "{error}");
    let absent = Recipe::from_file(&folder.path().join("absent.yaml"), None).unwrap_err();
    assert!(matches!(absent.kind(), ErrorKind::Io { .. }) && absent.place().is_some());
}

#[test]
fn alias_bombs_and_deep_nesting_are_errors() {
    let mut bomb = String::from("a: &a [x, x, x, x, x, x, x, x, x, x]\n");
    for (last, next) in ('a'..'i').zip('b'..='i') {
        let items = vec![format!("*{last}"); 10].join(", ");
        bomb.push_str(&format!("{next}: &{next} [{items}]\n"));
    }
    assert!(matches!(Recipe::from_text(&bomb, None).unwrap_err().kind(), ErrorKind::Syntax { .. }));
    for depth in [100, 120, 130, 1000, 2000, 100_000] {
        let deep = format!("a: {}{}\ns_stage: {{g_modifiers: {{A: {{}}}}}}\n", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(Recipe::from_text(&deep, None).is_ok(), depth <= 120, "{depth}");
    }
    assert!(Recipe::from_text(&("{\"a\":".repeat(100_000)), None).is_err());
}

#[test]
fn arguments_reach_fields_and_can_be_overridden_from_outside() {
    let text = "args: {a: eval(b / 4), b: 1}\ns_stage:\n  args: {c: eval(a * 2), b: 100}\n  g_modifiers:\n    \
                ToyAModifier: {sparsity: eval(a), start: eval(c), targets: ['re:.*eval']}\n";
    let fields = |args: Value| {
        let loaded = RecipeInput::from(text).load(&registry(), None, args.as_object().cloned()).unwrap();
        let entry = loaded.recipe.entries().next().unwrap().clone();
        (entry.fields["sparsity"].clone(), entry.fields["start"].clone())
    };
    assert_eq!(fields(Value::Null), (json!(0.25), json!(0.5)));
    assert_eq!(fields(json!({"b": 2})), (json!(0.5), json!(1.0)));
    assert_eq!(fields(json!({"a": 3})), (json!(3.0), json!(6.0)));
}

#[test]
fn several_files_are_one_recipe() {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<_> = ["a", "b"]
        .iter()
        .map(|name| {
            let path = folder.path().join(format!("{name}.yaml"));
            let text = format!(
                "args: {{x: 0.{}}}\ndefault_stage:\n  g_modifiers:\n    ToyAModifier: {{sparsity: eval(x)}}\n",
                name.len() + usize::from(*name == "b")
            );
            std::fs::write(&path, text).unwrap();
            path
        })
        .collect();
    let recipe = Recipe::from_files(&paths, None).unwrap();
    let plan = recipe.resolve(&registry()).unwrap();
    let values: Vec<_> = plan.modifiers.iter().map(|it| it.fields["sparsity"].clone()).collect();
    // Both give `x` another value, and each keeps its own.
    assert_eq!(values, [json!(0.1), json!(0.2)]);
    assert_eq!(Recipe::from_text(&recipe.yaml(), None).unwrap(), recipe);
    let inputs: Vec<&str> = paths.iter().map(|it| it.to_str().unwrap()).collect();
    let loaded = RecipeInput::from(inputs).load(&registry(), None, None).unwrap();
    assert_eq!(loaded.modifiers.len(), 2);
}

#[test]
fn a_recipe_written_behind_another_keeps_every_run() {
    let recipe = |sparsity: f64| {
        let text = format!("default_stage:\n  default_modifiers:\n    ToyAModifier: {{sparsity: {sparsity:?}}}\n");
        Recipe::from_text(&text, None).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("recipe.yaml");
    recipe(0.0).write_yaml(&path, None).unwrap();
    for run in 1..5 {
        recipe(f64::from(run) / 8.0).write_yaml(&path, Some(&path)).unwrap();
    }
    let all = Recipe::from_file(&path, None).unwrap();
    let values: Vec<_> = all.entries().map(|it| it.fields["sparsity"].as_f64().unwrap()).collect();
    assert_eq!(values, [0.0, 0.125, 0.25, 0.375, 0.5]);
    assert!(std::fs::read_to_string(&path).unwrap().starts_with("default_stage_0:\n"));
    assert_eq!(recipe(1.0).yaml_behind("default_stage: {}\n").unwrap(), recipe(1.0).yaml());
    assert!(recipe(1.0).yaml_behind("[1").is_err());
}

#[test]
fn numbered_stages_run_in_the_order_of_their_numbers() {
    let stage =
        |number: usize| format!("a_stage_{number}:\n  g_modifiers:\n    ToyAModifier: {{sparsity: {number}}}\n");
    let text = [stage(10), stage(2), "b_stage:\n  g_modifiers:\n    ToyBModifier: {}\n".to_owned(), stage(1)].concat();
    let recipe = Recipe::from_text(&text, None).unwrap();
    let order: Vec<_> = recipe.entries().map(|it| it.fields.get("sparsity").and_then(Value::as_i64)).collect();
    assert_eq!(order, [Some(1), Some(2), None, Some(10)]);
}

#[test]
fn mappings_are_merged_and_filtered_as_by_the_reference_and_nothing_is_lost() {
    let mut seen = BTreeSet::new();
    for case in cases("recipe_merge.json", 13) {
        let map = |name: &str| case[name].as_object().cloned().unwrap_or_default();
        seen.insert(case["op"].as_str().unwrap().to_owned());
        if case["op"] == "filter" {
            let found = filter_dict(&map("in"), case["target_stage"].as_str());
            assert_eq!(json!(found), case["out"], "{case}");
            continue;
        }
        let items = |it: Map<String, Value>| it.into_iter().map(|(key, value)| json!([key, value])).collect::<Value>();
        let found = items(append_recipe_dict(&map("d1"), &map("d2")));
        if case["d1"].as_object().unwrap().len() == 3 {
            // The fourth run: the reference overwrites the first and the second.
            let kept = json!([
                ["default_stage_0", {"x": 1}],
                ["default_stage_1", {"x": 2}],
                ["default_stage_2", {"x": 3}],
                ["default_stage_3", {"x": 4}],
            ]);
            assert_eq!(found, kept);
            assert_ne!(found, case["out_items"]);
        } else {
            assert_eq!(found, case["out_items"], "{case}");
        }
    }
    assert_eq!(seen.len(), 2);
}

#[test]
fn modifiers_made_from_a_recipe_say_the_same_recipe_again() {
    let text =
        "s_stage:\n  pruning_modifiers:\n    ToyAModifier: {start: 1, sparsity: 0.25}\n    ToyBModifier: {alpha: 2}\n";
    let plan = Recipe::from_text(text, None).unwrap().resolve(&registry()).unwrap();
    let again = Recipe::from_modifiers(&plan.build().unwrap(), Some("s"));
    // A trailing underscore marks state, which a modifier may show and a recipe never does.
    assert_eq!(again, *plan.recipe());
}

#[test]
fn the_targets_of_a_plan_are_found_in_a_model_or_named_with_the_nearest() {
    let linear = |name: &str| ModuleFacts { name: name.into(), classes: vec!["Linear".into()], ..Default::default() };
    let model = MemoryModel::from_facts(vec![linear("q_proj"), linear("lm_head")]);
    let targets = |text: &str| {
        let text = format!("s_stage:\n  g_modifiers:\n    {text}\n");
        Recipe::from_text(&text, None).unwrap().resolve(&registry()).unwrap().targets_in(&model)
    };
    let found = targets("GPTQModifier: {scheme: W4A16, ignore: [lm_head, gate]}").unwrap();
    assert_eq!(
        (found[0].modules.as_slice(), found[0].idle_ignores.as_slice()),
        (&["q_proj".into()][..], &["gate".into()][..])
    );
    assert_eq!(targets("ConstantPruningModifier: {}").unwrap()[0].modules, ["q_proj", "lm_head"]);
    assert_eq!(targets("SmoothQuantModifier: {}").unwrap()[0].modules, [""; 0]);
    let error = targets("GPTQModifier: {targets: [q_prj]}").unwrap_err();
    assert_eq!((line(&error), error.to_string().contains("did you mean `q_proj`")), ((3, 5), true), "{error}");
}

#[test]
fn a_plan_prints_what_will_run() {
    let text = "s_stage:\n  g_modifiers:\n    SmoothQuantModifier: {smoothing_strength: 0.8}\n    QuantizationModifier: {scheme: W8A8}\n";
    let plan = Recipe::from_text(text, None).unwrap().resolve(&registry()).unwrap();
    let printed = plan.to_string();
    assert!(printed.starts_with("1. SmoothQuantModifier (needs data), stage s, group g\n"), "{printed}");
    assert!(printed.contains("2. QuantizationModifier (no data), stage s, group g\n"), "{printed}");
    assert!(printed.contains("smoothing_strength: 0.8"), "{printed}");
}
