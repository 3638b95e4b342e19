//! JSON files of a model directory, read with caps and without silent choices.

use std::{cell::RefCell, fmt, path::Path};

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::{
    error::{ErrorKind, Result},
    regular,
};

/// Longest `config.json` that is read.
pub const MAX_CONFIG_BYTES: u64 = 16 << 20;
/// Longest index that is read.
pub const MAX_INDEX_BYTES: u64 = 256 << 20;
/// Deepest nesting that is read.
pub const MAX_DEPTH: usize = 100;

/// Reads a JSON file; the order of keys is kept, a key that occurs twice is refused.
///
/// # Errors
/// `Absent`, `TooLarge` (longer than `max_bytes` or deeper than [`MAX_DEPTH`]), `DuplicateKey`, and `Syntax`
/// with line and column.
pub fn read_json(path: &Path, what: &'static str, max_bytes: u64) -> Result<Value> {
    parse_json(&regular::read_whole(path, what, max_bytes)?, what).map_err(|e| e.at(path))
}

/// Parses a JSON text under the rules of [`read_json`].
///
/// # Errors
/// As [`read_json`].
pub fn parse_json(text: &[u8], what: &'static str) -> Result<Value> {
    let fault = RefCell::new(None);
    let mut json = serde_json::Deserializer::from_slice(text);
    let seed = Strict { what, depth: 0, fault: &fault };
    let parsed = seed.deserialize(&mut json).and_then(|it| json.end().map(|()| it));
    parsed.map_err(|e| {
        let kind = fault.take().unwrap_or_else(|| ErrorKind::Syntax { what, reason: e.to_string() });
        crate::Error::from(kind).line_column(e.line(), e.column())
    })
}

/// A JSON text as the reference writes it: two spaces a level, a newline at the end.
pub fn pretty_json(value: &Value) -> Vec<u8> {
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    what: &'static str,
    depth: usize,
    fault: &'a RefCell<Option<ErrorKind>>,
}

impl Strict<'_> {
    fn raise<E: de::Error>(self, kind: ErrorKind) -> E {
        let text = kind.to_string();
        *self.fault.borrow_mut() = Some(kind);
        E::custom(text)
    }

    fn inner<E: de::Error>(self) -> Result<Self, E> {
        if self.depth == MAX_DEPTH {
            let (found, limit) = (MAX_DEPTH as u64 + 1, MAX_DEPTH as u64);
            return Err(self.raise(ErrorKind::TooLarge { what: "the nesting depth", found, limit }));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, it: bool) -> Result<Value, E> {
        Ok(Value::Bool(it))
    }

    fn visit_u64<E>(self, it: u64) -> Result<Value, E> {
        Ok(Value::Number(it.into()))
    }

    fn visit_i64<E>(self, it: i64) -> Result<Value, E> {
        Ok(Value::Number(it.into()))
    }

    fn visit_f64<E: de::Error>(self, it: f64) -> Result<Value, E> {
        Number::from_f64(it).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, it: &str) -> Result<Value, E> {
        Ok(Value::String(it.to_owned()))
    }

    fn visit_string<E>(self, it: String) -> Result<Value, E> {
        Ok(Value::String(it))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut out = Vec::new();
        while let Some(it) = seq.next_element_seed(inner)? {
            out.push(it);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if out.contains_key(&key) {
                return Err(self.raise(ErrorKind::DuplicateKey { what: self.what, key }));
            }
            let value = map.next_value_seed(inner)?;
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> crate::Error {
        parse_json(text.as_bytes(), "the text").unwrap_err()
    }

    #[test]
    fn a_duplicate_key_is_refused_with_its_line() {
        let error = fault("{\"a\": 1,\n \"b\": {\"c\": 1, \"c\": 2}}");
        assert!(matches!(error.kind(), ErrorKind::DuplicateKey { key, .. } if key == "c"));
        assert_eq!(error.place().line_column.unwrap().0, 2);
    }

    #[test]
    fn nesting_below_the_cap_is_read_and_above_it_refused() {
        let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(parse_json(nested(MAX_DEPTH).as_bytes(), "the text").is_ok());
        assert!(matches!(fault(&nested(MAX_DEPTH + 1)).kind(), ErrorKind::TooLarge { found: 101, .. }));
        assert!(matches!(fault(&nested(100_000)).kind(), ErrorKind::TooLarge { .. }));
    }

    #[test]
    fn a_number_out_of_range_and_a_cut_text_are_syntax_faults() {
        assert!(matches!(fault("{\"a\": 1e999}").kind(), ErrorKind::Syntax { .. }));
        let cut = fault("{\"a\":\n [1, 2");
        assert!(matches!(cut.kind(), ErrorKind::Syntax { .. }));
        assert_eq!(cut.place().line_column, Some((2, 6)));
    }

    #[test]
    fn order_and_numbers_survive() {
        let text = "{\n  \"z\": 0.1,\n  \"a\": [\n    -1,\n    18446744073709551615\n  ],\n  \"e\": {}\n}\n";
        let value = parse_json(text.as_bytes(), "the text").unwrap();
        assert_eq!(String::from_utf8(pretty_json(&value)).unwrap(), text);
    }
}
