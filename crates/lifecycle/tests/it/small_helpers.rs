//! `small_helpers`, but for `expand_special_targets`, which `compressed-tensors` holds and tests.

use std::collections::BTreeMap;

use lifecycle::{
    ModuleFacts,
    matching::match_modules,
    precision::parse_dtype,
    sparsity::{reduce_targets_and_ignores, tensor_follows_mask_structure, tensor_sparsity},
};
use serde_json::{Value, json};

use crate::toys::{NamedModel, cases, outcome, same};

fn matrix(value: &Value) -> (Vec<f32>, [usize; 2]) {
    let rows: Vec<Vec<f32>> = serde_json::from_value(value.clone()).unwrap();
    (rows.concat(), [rows.len(), rows[0].len()])
}

fn expected(case: &Value) -> Value {
    match case.get("ok") {
        Some(ok) => json!({"ok": ok}),
        None => json!({"error": case["error"]}),
    }
}

#[test]
fn small_functions_are_the_references() {
    let mut counts = BTreeMap::new();
    for case in cases("small_helpers.json", 34) {
        let operation = case["op"].as_str().unwrap().to_owned();
        match operation.as_str() {
            "parse_dtype" => {
                let found = parse_dtype(case["in"].as_str().unwrap());
                let name = found.map_or("auto".to_owned(), |it| format!("torch.{}", it.torch_name().unwrap()));
                assert_eq!(name, case["out"].as_str().unwrap(), "{case}");
            }
            "follows_mask" => {
                let (values, _) = matrix(&case["tensor"]);
                let result = tensor_follows_mask_structure(&values, case["mask"].as_str().unwrap());
                assert_eq!(outcome(result.map(Value::from)), expected(&case), "{case}");
            }
            "reduce_targets" => {
                let names = |key: &str| serde_json::from_value(case[key].clone()).unwrap();
                let (mut targets, mut ignores) = reduce_targets_and_ignores(&names("targets"), &names("ignore"));
                targets.sort();
                ignores.sort();
                assert_eq!(json!([targets, ignores]), case["out"], "{case}");
            }
            "tensor_sparsity" => {
                let (values, shape) = matrix(&case["tensor"]);
                let dims: Vec<usize> = match &case["dim"] {
                    Value::Null => Vec::new(),
                    Value::Array(dims) => dims.iter().map(|it| it.as_u64().unwrap() as usize).collect(),
                    dim => vec![dim.as_u64().unwrap() as usize],
                };
                let result = tensor_sparsity(&values, &shape, &dims).map(|found| match dims.len() {
                    0 => json!(found[0]),
                    1 => json!(found),
                    _ => found.chunks(shape[dims[1]]).map(|it| json!(it)).collect(),
                });
                assert!(same(&outcome(result), &expected(&case)), "{case}");
            }
            "expand_special_targets" => {}
            other => panic!("{other}"),
        }
        *counts.entry(operation).or_insert(0) += 1;
    }
    let counts: Vec<_> = counts.into_values().collect();
    assert_eq!(counts, [5, 8, 12, 3, 6]);
}

#[test]
fn a_target_that_matches_nothing_is_an_error_with_the_nearest_names_and_an_idle_ignore_is_told() {
    let facts = |name: &str, class: &str, internal: bool| ModuleFacts {
        name: name.into(),
        classes: vec![class.into()],
        internal,
        ..ModuleFacts::default()
    };
    let modules = vec![
        facts("", "Net", false),
        facts("layers.0.q_proj", "Linear", false),
        facts("layers.0.q_proj.observer", "Linear", true),
        facts("lm_head", "LinearBase", false),
    ];
    let model = NamedModel("m", modules);
    let found = match_modules(&model, &["Linear"], &["lm_head", "re:.*gate"]).unwrap();
    assert_eq!(found.modules, ["layers.0.q_proj"]);
    assert_eq!(found.idle_ignores, ["re:.*gate"]);
    let error = match_modules(&model, &["Linear", "lm_heat"], &[] as &[&str]).unwrap_err();
    assert!(error.to_string().starts_with("unknown target `lm_heat`, did you mean `lm_head`"), "{error}");
    assert!(match_modules(&model, &["re:("], &[] as &[&str]).is_err());
}
