//! The JSON schema of recipes, made from the registry.

use serde_json::{Value, json};

use crate::specs::registry;

#[test]
fn the_schema_says_what_the_registry_says() {
    let schema = registry().json_schema();
    let defs = &schema["$defs"];
    let types: Vec<&str> = registry().specs().iter().map(|it| it.name).collect();
    let names = |it: &Value| it.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&defs["modifiers"]), types);
    assert_eq!(names(&defs["mapping"]["properties"]), types);
    let toy = &defs["modifiers"]["ToyAModifier"];
    // Neither the group, which the structure says, nor state.
    let fields =
        ["requires_calibration_data", "index", "start", "end", "update", "targets", "sparsity", "flag", "nested"];
    assert_eq!(names(&toy["properties"]), fields);
    assert_eq!(toy["additionalProperties"], json!(false));
    assert_eq!(toy["properties"]["sparsity"]["default"], json!(0.5));
    assert_eq!(toy["properties"]["sparsity"]["anyOf"][0], json!({"type": "number"}));
    assert_eq!(toy["properties"]["nested"]["anyOf"][1], json!({"type": "null"}));
}

#[test]
fn every_reference_of_the_schema_has_a_target() {
    fn walk(value: &Value, root: &Value, seen: &mut usize) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    *seen += 1;
                    assert!(root.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
                }
                map.values().for_each(|it| walk(it, root, seen));
            }
            Value::Array(items) => items.iter().for_each(|it| walk(it, root, seen)),
            _ => {}
        }
    }
    let schema = registry().json_schema();
    let mut seen = 0;
    walk(&schema, &schema, &mut seen);
    assert!(seen > 10);
}
