//! Reading JSON values field by field: the lax coercions of the reference and the errors they end in.

use serde_json::{Map, Value};

use crate::{Error, ErrorKind, Result};

/// Longest excerpt of a refused value that an error repeats.
const EXCERPT_CHARS: usize = 80;

/// Whether a document comes from a person, or from a checkpoint that some version wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// Refuses everything that the reference's current schema refuses.
    Strict,
    /// Also takes what earlier versions wrote and the current one refuses.
    Checkpoint,
}

/// An error about one field.
pub(crate) fn refuse(field: &str, found: &Value, expected: impl Into<String>) -> Error {
    let text = found.to_string();
    let found = match text.char_indices().nth(EXCERPT_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    };
    ErrorKind::InvalidField { field: field.to_owned(), found, expected: expected.into() }.into()
}

/// The value as an object; `what` names it in the error.
pub(crate) fn object<'a>(what: &str, value: &'a Value) -> Result<&'a Map<String, Value>> {
    value.as_object().ok_or_else(|| refuse(what, value, "an object"))
}

/// Refuses keys that are not in `known`.
pub(crate) fn only_known(map: &Map<String, Value>, known: &[&str]) -> Result<()> {
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(ErrorKind::UnknownField {
            field: key.clone(),
            known: known.iter().map(|&name| name.to_owned()).collect(),
        }
        .into()),
    }
}

/// Integers, integer-valued floats, numeric strings and booleans.
pub(crate) fn integer(field: &str, value: &Value) -> Result<i64> {
    let whole = |v: f64| (v.fract() == 0.0 && v.abs() < 9.0e15).then_some(v as i64);
    let found = match value {
        Value::Number(number) => number.as_i64().or_else(|| number.as_f64().and_then(whole)),
        Value::String(text) => text.trim().parse().ok(),
        Value::Bool(flag) => Some(i64::from(*flag)),
        _ => None,
    };
    found.ok_or_else(|| refuse(field, value, "an integer"))
}

/// Booleans, 0 and 1, and the usual words.
pub(crate) fn boolean(field: &str, value: &Value) -> Result<bool> {
    let found = match value {
        Value::Bool(flag) => Some(*flag),
        Value::Number(number) => match number.as_f64() {
            Some(0.0) => Some(false),
            Some(1.0) => Some(true),
            _ => None,
        },
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
            "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    };
    found.ok_or_else(|| refuse(field, value, "true or false"))
}

/// Strings only.
pub(crate) fn string(field: &str, value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).ok_or_else(|| refuse(field, value, "a string"))
}

/// A list of strings; a bare string is refused.
pub(crate) fn strings(field: &str, value: &Value) -> Result<Vec<String>> {
    let list = value.as_array().ok_or_else(|| refuse(field, value, "a list of strings"))?;
    list.iter()
        .map(|item| item.as_str().map(str::to_owned).ok_or_else(|| refuse(field, item, "a list of strings")))
        .collect()
}

/// The value under `key`, with null read as absent.
pub(crate) fn given<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|value| !value.is_null())
}

/// Numbers and numeric strings.
pub(crate) fn number(field: &str, value: &Value) -> Result<f64> {
    let found = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    found.ok_or_else(|| refuse(field, value, "a number"))
}

/// Parses JSON text; the error names line and column.
pub(crate) fn parse(text: &str) -> Result<Value> {
    serde_json::from_str(text)
        .map_err(|e| ErrorKind::Json { line: e.line(), column: e.column(), reason: e.to_string() }.into())
}

/// The value with the keys of every object in alphabetical order.
pub(crate) fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().map(|(key, it)| (key, sorted(it))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
        other => other,
    }
}
