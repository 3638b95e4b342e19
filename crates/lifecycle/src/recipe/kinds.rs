//! Whether a value fits a field, and what it becomes there.

use serde_json::{Map, Number, Value};

use super::{
    names::nearest,
    registry::{FieldKind, FieldSpec},
};

/// A value that does not fit, with the path to it inside the field.
#[derive(Debug)]
pub(super) struct Misfit {
    pub(super) path: String,
    pub(super) found: String,
    pub(super) expected: String,
}

impl Misfit {
    fn new(value: &Value, expected: impl Into<String>) -> Self {
        Self { path: String::new(), found: format!("`{value}`"), expected: expected.into() }
    }

    fn inside(self, outer: &str) -> Self {
        Self { path: format!(".{outer}{}", self.path), ..self }
    }
}

impl FieldKind {
    /// The value as the field holds it.
    pub(super) fn read(&self, value: &Value) -> Result<Value, Misfit> {
        let misfit = || Misfit::new(value, self.expected());
        match self {
            Self::Any => Ok(value.clone()),
            Self::Bool => truth(value).map(Value::Bool).ok_or_else(misfit),
            Self::Int => int(value).map(Value::from).ok_or_else(misfit),
            Self::Float => float(value).map(Value::Number).ok_or_else(misfit),
            Self::Text if value.is_string() => Ok(value.clone()),
            Self::Choice(choices) if value.as_str().is_some_and(|it| choices.contains(&it)) => Ok(value.clone()),
            Self::TextOrList if value.is_string() => Ok(value.clone()),
            Self::TextList if value.is_string() => Ok(Value::Array(vec![value.clone()])),
            Self::TextOrList | Self::TextList => list(&Self::Text, value).unwrap_or_else(|| Err(misfit())),
            Self::List(kind) => list(kind, value).unwrap_or_else(|| Err(misfit())),
            Self::Map(kind) => {
                let map = value.as_object().ok_or_else(misfit)?;
                let pair = |(name, value): (&String, &Value)| {
                    Ok((name.clone(), kind.read(value).map_err(|it| it.inside(name))?))
                };
                Ok(Value::Object(map.iter().map(pair).collect::<Result<_, _>>()?))
            }
            Self::Object(fields) => Ok(Value::Object(object(fields, value.as_object().ok_or_else(misfit)?)?)),
            Self::OneOf(kinds) => kinds.iter().find_map(|it| it.read(value).ok()).ok_or_else(misfit),
            Self::Text | Self::Choice(_) => Err(misfit()),
        }
    }

    /// What the field takes, in words.
    pub fn expected(&self) -> String {
        match self {
            Self::Bool => "true or false".to_owned(),
            Self::Int => "a whole number".to_owned(),
            Self::Float => "a number".to_owned(),
            Self::Text => "a text".to_owned(),
            Self::Choice(choices) => {
                format!("one of {}", choices.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(", "))
            }
            Self::List(kind) => format!("a list, each {}", kind.expected()),
            Self::TextOrList | Self::TextList => "a text or a list of texts".to_owned(),
            Self::Map(kind) => format!("a mapping, each value {}", kind.expected()),
            Self::Object(_) => "a mapping".to_owned(),
            Self::OneOf(kinds) => kinds.iter().map(Self::expected).collect::<Vec<_>>().join(", or "),
            Self::Any => "anything".to_owned(),
        }
    }
}

impl FieldSpec {
    /// The value as the field holds it; null where the field may be null.
    pub(super) fn read(&self, value: &Value) -> Result<Value, Misfit> {
        if value.is_null() && self.default == Some("null") {
            return Ok(Value::Null);
        }
        self.kind.read(value)
    }
}

/// All fields of an object, defaults written out.
fn object(fields: &[FieldSpec], map: &Map<String, Value>) -> Result<Map<String, Value>, Misfit> {
    if let Some(unknown) = map.keys().find(|name| fields.iter().all(|it| it.name != **name)) {
        let known = || fields.iter().map(|it| it.name);
        let near = nearest(unknown, known());
        let names = if near.is_empty() { known().map(str::to_owned).collect() } else { near };
        let expected = format!("the keys {}", names.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(", "));
        return Err(Misfit { path: String::new(), found: format!("a mapping with the key `{unknown}`"), expected });
    }
    let mut out = Map::new();
    for field in fields {
        let value = match map.get(field.name) {
            Some(value) => field.read(value).map_err(|it| it.inside(field.name))?,
            None => field.default_value().ok_or_else(|| Misfit {
                path: String::new(),
                found: "a mapping".to_owned(),
                expected: format!("one with the key `{}`", field.name),
            })?,
        };
        out.insert(field.name.to_owned(), value);
    }
    Ok(out)
}

/// A list whose items fit, or nothing where the value is no list.
fn list(kind: &FieldKind, value: &Value) -> Option<Result<Value, Misfit>> {
    let items = value.as_array()?.iter().enumerate();
    let item = |(position, item): (usize, &Value)| kind.read(item).map_err(|it| it.inside(&position.to_string()));
    Some(items.map(item).collect::<Result<Vec<_>, _>>().map(Value::Array))
}

fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::Number(number) => match number.as_f64() {
            Some(1.0) => Some(true),
            Some(0.0) => Some(false),
            _ => None,
        },
        Value::String(text) => match text.to_lowercase().as_str() {
            "1" | "on" | "t" | "true" | "y" | "yes" => Some(true),
            "0" | "off" | "f" | "false" | "n" | "no" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Bool(value) => Some(i64::from(*value)),
        Value::Number(number) => number.as_i64().or_else(|| {
            // Above 2^53 a float no longer says which whole number is meant.
            const EXACT: f64 = 9_007_199_254_740_992.0;
            number.as_f64().filter(|it| it.fract() == 0.0 && it.abs() <= EXACT).map(|it| it as i64)
        }),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn float(value: &Value) -> Option<Number> {
    let float = match value {
        Value::Bool(value) => f64::from(u8::from(*value)),
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    Number::from_f64(float)
}
