//! One sample: named columns of numbers.

use indexmap::IndexMap;
use serde_json::Value;

use crate::{ErrorKind, Result, source::Row, token_rows::column_type};

/// Columns of one sample, by name.
pub type Sample = IndexMap<String, Column>;

/// The values of one column of one sample.
#[derive(Clone, Debug, PartialEq)]
pub enum Column {
    /// A list of integers, e.g. token ids.
    Ints(Vec<i64>),
    /// A list of floats.
    Floats(Vec<f32>),
    /// One integer.
    Int(i64),
    /// One float.
    Float(f32),
}

impl Column {
    /// Entries of a list; `None` for a single value.
    pub fn n_entries(&self) -> Option<usize> {
        match self {
            Self::Ints(values) => Some(values.len()),
            Self::Floats(values) => Some(values.len()),
            Self::Int(_) | Self::Float(_) => None,
        }
    }

    pub(super) fn truncate(&mut self, length: usize) {
        match self {
            Self::Ints(values) => values.truncate(length),
            Self::Floats(values) => values.truncate(length),
            Self::Int(_) | Self::Float(_) => {}
        }
    }

    /// The integers of a list of integers.
    pub fn ints(&self) -> Option<&[i64]> {
        match self {
            Self::Ints(values) => Some(values),
            _ => None,
        }
    }
}

/// The numeric columns of a row that holds token ids already; text and nested columns are left out.
///
/// # Errors
/// [`ErrorKind::ColumnType`] if `input_ids` is no list of integers or a mask has another length, and
/// [`ErrorKind::BeyondVocabulary`] for an id that no vocabulary has.
pub fn sample_from_row(row: &Row) -> Result<Sample> {
    let mut sample = Sample::new();
    for (name, value) in row {
        let column = match value {
            Value::Number(number) => match number.as_i64() {
                Some(integer) => Column::Int(integer),
                None => Column::Float(number.as_f64().unwrap_or(f64::NAN) as f32),
            },
            Value::Array(items) => match numbers(items) {
                Some(column) => column,
                None if name == "input_ids" => return Err(column_type(name, value, "a list of integers")),
                None => continue,
            },
            _ if name == "input_ids" => return Err(column_type(name, value, "a list of integers")),
            _ => continue,
        };
        sample.insert(name.clone(), column);
    }
    let ids = match sample.get("input_ids") {
        Some(Column::Ints(ids)) => ids,
        _ => {
            let found = row.get("input_ids").cloned().unwrap_or(Value::Null);
            return Err(column_type("input_ids", &found, "a list of integers"));
        }
    };
    if let Some(&id) = ids.iter().find(|&&id| u32::try_from(id).is_err()) {
        let (found, expected) = (format!("the id {id}"), "ids from 0 to 4294967295".to_owned());
        return Err(ErrorKind::ColumnType { column: "input_ids".to_owned(), found, expected }.into());
    }
    let n_tokens = ids.len();
    for name in ["attention_mask", "loss_mask", "labels"] {
        if let Some(n) = sample.get(name).and_then(Column::n_entries).filter(|&n| n != n_tokens) {
            let (found, expected) = (format!("{n} entries"), format!("{n_tokens}, one for each of `input_ids`"));
            return Err(ErrorKind::ColumnType { column: name.to_owned(), found, expected }.into());
        }
    }
    Ok(sample)
}

fn numbers(items: &[Value]) -> Option<Column> {
    let integers: Option<Vec<i64>> = items
        .iter()
        .map(|item| match item {
            Value::Bool(value) => Some(i64::from(*value)),
            item => item.as_i64(),
        })
        .collect();
    match integers {
        Some(integers) => Some(Column::Ints(integers)),
        None => {
            items.iter().map(|item| item.as_f64().map(|value| value as f32)).collect::<Option<_>>().map(Column::Floats)
        }
    }
}
