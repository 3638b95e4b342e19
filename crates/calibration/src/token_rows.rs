//! From a text column to rows of token ids.

use serde_json::Value;

use crate::{
    Error, ErrorKind, Result, SpecialTokens, Tokenizer,
    source::{Row, Source},
};

/// How text becomes token rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRowOptions {
    /// The column that holds the text.
    pub text_column: String,
    /// Rows are cut to this many tokens; `None` keeps them whole.
    pub max_seq_length: Option<usize>,
    /// Rows to return, from the front of the data; `None` means all.
    pub num_samples: Option<usize>,
}

impl Default for TokenRowOptions {
    fn default() -> Self {
        Self { text_column: "text".to_owned(), max_seq_length: None, num_samples: None }
    }
}

/// Token rows in file order: each text alone, special tokens as the tokenizer adds them, cut at `max_seq_length`.
///
/// Rows whose text has no tokens are left out and do not count.
/// No more of the file is read than needed.
///
/// # Errors
/// [`ErrorKind::MissingColumn`] and [`ErrorKind::ColumnType`] with file and line, [`ErrorKind::Empty`] if no row has
/// tokens, and what the source and the tokenizer refuse.
pub fn token_rows(source: &mut dyn Source, tokenizer: &Tokenizer, options: &TokenRowOptions) -> Result<Vec<Vec<u32>>> {
    let wanted = options.num_samples.unwrap_or(usize::MAX);
    let mut rows = Vec::new();
    let mut index = 0;
    while rows.len() < wanted
        && let Some(row) = source.row(index)?
    {
        let place = |e: Error| e.at(source.place(index));
        let text = text_of(&row, &options.text_column).map_err(place)?;
        let ids = tokenizer.encode_cut(text, SpecialTokens::Add, options.max_seq_length.unwrap_or(usize::MAX))?.ids;
        if !ids.is_empty() {
            rows.push(ids);
        }
        index += 1;
    }
    if rows.is_empty() {
        let reason =
            if index == 0 { "there are no rows".to_owned() } else { format!("none of {index} rows has tokens") };
        return Err(Error::from(ErrorKind::Empty { reason }).in_file(source.path()));
    }
    Ok(rows)
}

/// Refuses ids that an embedding table of `vocabulary_rows` rows cannot look up.
///
/// # Errors
/// [`ErrorKind::BeyondVocabulary`] with the first such id.
pub fn check_vocabulary(rows: &[Vec<u32>], vocabulary_rows: usize, tokenizer: Option<&Tokenizer>) -> Result<()> {
    for (sample, row) in rows.iter().enumerate() {
        if let Some(&id) = row.iter().find(|&&id| id as usize >= vocabulary_rows) {
            let token = tokenizer.and_then(|tokenizer| tokenizer.token(id));
            return Err(ErrorKind::BeyondVocabulary { id: id.into(), token, sample, rows: vocabulary_rows }.into());
        }
    }
    Ok(())
}

/// Refuses rows longer than a model has positions.
///
/// # Errors
/// [`ErrorKind::BeyondContext`] with the first such row.
pub fn check_context(rows: &[Vec<u32>], max_positions: usize) -> Result<()> {
    match rows.iter().position(|row| row.len() > max_positions) {
        Some(sample) => {
            Err(ErrorKind::BeyondContext { sample, tokens: rows[sample].len(), limit: max_positions }.into())
        }
        None => Ok(()),
    }
}

pub(crate) fn text_of<'a>(row: &'a Row, column: &str) -> Result<&'a str> {
    match row.get(column) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(column_type(column, other, "a string")),
        None => Err(missing(row, column)),
    }
}

pub(crate) fn missing(row: &Row, column: &str) -> Error {
    ErrorKind::MissingColumn { column: column.to_owned(), found: row.keys().cloned().collect() }.into()
}

pub(crate) fn column_type(column: &str, found: &Value, expected: &str) -> Error {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    let (column, expected) = (column.to_owned(), expected.to_owned());
    ErrorKind::ColumnType { column, found: found.to_owned(), expected }.into()
}
