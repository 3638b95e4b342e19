//! JSON text as Python's `json.dumps(ensure_ascii=False)` writes it.

use std::fmt::Write;

use serde_json::Value;

/// Writes `value`: one line with a space after `,` and `:`, or indented.
pub(crate) fn dumps(value: &Value, indent: Option<usize>, separators: (&str, &str), sort_keys: KeyOrder) -> String {
    let mut out = String::new();
    write(&mut out, value, &Style { indent, separators, sort_keys }, 0);
    out
}

/// Order of an object's keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyOrder {
    AsGiven,
    Sorted,
}

struct Style<'a> {
    indent: Option<usize>,
    separators: (&'a str, &'a str),
    sort_keys: KeyOrder,
}

fn write(out: &mut String, value: &Value, style: &Style<'_>, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&self::number(number)),
        Value::String(text) => string(out, text),
        Value::Array(items) => sequence(out, style, depth, ('[', ']'), items.iter(), |out, item, depth| {
            write(out, item, style, depth);
        }),
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            if style.sort_keys == KeyOrder::Sorted {
                entries.sort_by_key(|(key, _)| key.as_str());
            }
            sequence(out, style, depth, ('{', '}'), entries.into_iter(), |out, (key, value), depth| {
                string(out, key);
                out.push_str(style.separators.1);
                write(out, value, style, depth);
            });
        }
    }
}

fn sequence<T>(
    out: &mut String,
    style: &Style<'_>,
    depth: usize,
    brackets: (char, char),
    items: impl ExactSizeIterator<Item = T>,
    each: impl Fn(&mut String, T, usize),
) {
    out.push(brackets.0);
    let is_empty = items.len() == 0;
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push_str(style.separators.0);
        }
        new_line(out, style, depth + 1);
        each(out, item, depth + 1);
    }
    if !is_empty {
        new_line(out, style, depth);
    }
    out.push(brackets.1);
}

fn new_line(out: &mut String, style: &Style<'_>, depth: usize) {
    if let Some(indent) = style.indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent * depth));
    }
}

fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => {
                // Writing into a string cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A number as Python prints it: floats by `repr`.
fn number(number: &serde_json::Number) -> String {
    match number.as_f64().filter(|_| number.is_f64()) {
        Some(value) => float_repr(value),
        None => number.to_string(),
    }
}

/// Shortest digits, with an exponent outside 1e-4 to 1e16 as Python has it.
fn float_repr(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if value != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{value}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_is_that_of_json_dumps() {
        let value = json!({"b": [1, 2.0, 1e16, 1.5e-7, -0.0], "a": {"é\u{1}": "x\n\"<&'"}, "e": [], "o": {}, "n": null, "t": true});
        let one_line = dumps(&value, None, (", ", ": "), KeyOrder::AsGiven);
        let expected = r#"{"b": [1, 2.0, 1e+16, 1.5e-07, -0.0], "a": {"é\u0001": "x\n\"<&'"}, "e": [], "o": {}, "n": null, "t": true}"#;
        assert_eq!(one_line, expected);
        let indented = dumps(&json!({"b": [1], "a": []}), Some(2), (",", ": "), KeyOrder::Sorted);
        assert_eq!(indented, "{\n  \"a\": [],\n  \"b\": [\n    1\n  ]\n}");
    }
}
