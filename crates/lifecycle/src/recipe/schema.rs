//! A JSON schema of recipes, for editors, made from the registry.

use serde_json::{Map, Value, json};

use super::registry::{FieldKind, FieldSpec, Registry};

impl Registry {
    /// The schema of recipes that name this registry's modifiers, in draft 2020-12.
    pub fn json_schema(&self) -> Value {
        let mut modifiers = Map::new();
        for spec in self.specs() {
            let mut schema = object(&spec.all_fields());
            schema["description"] = spec.doc.into();
            modifiers.insert(spec.name.to_owned(), schema);
        }
        let names: Vec<&str> = self.specs().iter().map(|it| it.name).collect();
        let reference = |name: &str| json!({"$ref": format!("#/$defs/{name}")});
        let properties: Map<String, Value> = names
            .iter()
            .map(|name| ((*name).to_owned(), json!({"$ref": format!("#/$defs/modifiers/{name}")})))
            .collect();
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "LLM Compressor recipe",
            "type": "object",
            "properties": {
                "args": {"type": "object", "description": "Values that eval(...) in fields may name."},
                "stages": {"type": "object", "additionalProperties": reference("stage")},
                "modifiers": reference("group"),
            },
            "patternProperties": {
                "_stage(_[0-9]+)?$": reference("stage"),
                "_modifiers$": reference("group"),
            },
            "$defs": {
                "stage": {
                    "type": "object",
                    "properties": {
                        "args": {"type": "object", "description": "Values that hold in this stage."},
                        "run_type": {"enum": ["oneshot", "train"]},
                        "modifiers": reference("group"),
                    },
                    "patternProperties": {"_modifiers(_[0-9]+)?$": reference("group")},
                    "additionalProperties": false,
                },
                "group": {
                    "anyOf": [
                        reference("mapping"),
                        {"type": "array", "items": {"anyOf": [reference("mapping"), reference("typed")]}},
                    ],
                },
                "mapping": {"type": "object", "properties": properties, "additionalProperties": false},
                "typed": {
                    "type": "object",
                    "properties": {"type": {"enum": names}, "args": {"type": "object"}, "group": {"type": "string"}},
                    "required": ["type"],
                    "additionalProperties": false,
                },
                "modifiers": modifiers,
            },
        })
    }
}

fn object(fields: &[FieldSpec]) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in fields {
        // The recipe's structure says the group, and a trailing underscore marks state.
        if field.name == "group" || field.name.ends_with('_') {
            continue;
        }
        let mut schema = kind(&field.kind);
        if field.default == Some("null") {
            schema = json!({"anyOf": [schema, {"type": "null"}]});
        }
        schema["description"] = field.doc.into();
        match field.default_value() {
            Some(default) => schema["default"] = default,
            None => required.push(field.name),
        }
        properties.insert(field.name.to_owned(), schema);
    }
    let mut schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    schema
}

fn kind(kind: &FieldKind) -> Value {
    // Any number or truth value may be computed.
    let or_eval = |schema: Value| json!({"anyOf": [schema, {"type": "string", "pattern": "eval\\("}]});
    let text = || json!({"type": "string"});
    let list = |items: Value| json!({"type": "array", "items": items});
    match kind {
        FieldKind::Bool => or_eval(json!({"type": "boolean"})),
        FieldKind::Int => or_eval(json!({"type": "integer"})),
        FieldKind::Float => or_eval(json!({"type": "number"})),
        FieldKind::Text => text(),
        FieldKind::Choice(choices) => json!({"enum": choices}),
        FieldKind::List(items) => list(self::kind(items)),
        FieldKind::TextOrList | FieldKind::TextList => json!({"anyOf": [text(), list(text())]}),
        FieldKind::Map(values) => json!({"type": "object", "additionalProperties": self::kind(values)}),
        FieldKind::Object(fields) => object(fields),
        FieldKind::OneOf(kinds) => json!({"anyOf": kinds.iter().map(self::kind).collect::<Vec<_>>()}),
        FieldKind::Any => json!({}),
    }
}
