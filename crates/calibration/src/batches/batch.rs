//! Samples stacked into arrays.

use indexmap::IndexMap;

use super::{Column, Sample};
use crate::{ErrorKind, Result};

/// Arrays of one batch, by column name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The columns, in the order of the first sample.
    pub columns: IndexMap<String, BatchColumn>,
}

/// One array of a batch, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchColumn {
    /// `(B, T)` for lists, `(B,)` for single values.
    pub shape: Vec<usize>,
    /// The values.
    pub data: BatchData,
}

/// The values of an array.
#[derive(Clone, Debug, PartialEq)]
pub enum BatchData {
    /// Integers.
    I64(Vec<i64>),
    /// Floats.
    F32(Vec<f32>),
}

impl Batch {
    /// Token ids `(B, T)`, row-major, with B and T.
    pub fn input_ids(&self) -> Option<(&[i64], usize, usize)> {
        self.matrix("input_ids")
    }

    /// An integer column `(B, T)`, row-major, with B and T.
    pub fn matrix(&self, name: &str) -> Option<(&[i64], usize, usize)> {
        match self.columns.get(name)? {
            BatchColumn { shape, data: BatchData::I64(values) } if shape.len() == 2 => {
                Some((values, shape[0], shape[1]))
            }
            _ => None,
        }
    }

    /// Token ids as rows.
    pub fn token_rows(&self) -> Vec<Vec<u32>> {
        let Some((ids, n_rows, n_tokens)) = self.input_ids() else { return Vec::new() };
        // Ids are checked to fit when a sample is made; one that a caller put in past it becomes the id of no token.
        let id = |&id: &i64| u32::try_from(id).unwrap_or(u32::MAX);
        (0..n_rows).map(|row| ids[row * n_tokens..(row + 1) * n_tokens].iter().map(id).collect()).collect()
    }

    /// Stacks samples whose columns have equal lengths; integers win over floats only where all are integers.
    ///
    /// The single value `label` becomes the column `labels`, as the reference's default collator names it.
    pub(super) fn stack(samples: &[Sample]) -> Result<Self> {
        let mut columns = IndexMap::new();
        let Some(first) = samples.first() else { return Ok(Self { columns }) };
        let label = first.get("label").filter(|label| label.n_entries().is_none());
        if label.is_some() {
            columns.insert("labels".to_owned(), stack_column("label", samples)?);
        }
        for name in first.keys().filter(|name| *name != "label" || label.is_none()) {
            columns.insert(name.clone(), stack_column(name, samples)?);
        }
        Ok(Self { columns })
    }
}

fn stack_column(name: &str, samples: &[Sample]) -> Result<BatchColumn> {
    let mut values = Vec::with_capacity(samples.len());
    for (i, sample) in samples.iter().enumerate() {
        values.push(sample.get(name).ok_or_else(|| ErrorKind::ColumnType {
            column: name.to_owned(),
            found: format!("no value in row {i} of the batch"),
            expected: "a value in each row".to_owned(),
        })?);
    }
    let length = values.first().and_then(|value| value.n_entries());
    for value in &values {
        if value.n_entries() != length {
            let [first, other] = [length, value.n_entries()].map(|length| length.unwrap_or(1));
            return Err(ErrorKind::Ragged { column: name.to_owned(), first, other }.into());
        }
    }
    let mut shape = vec![values.len()];
    shape.extend(length);
    let is_integer = values.iter().all(|value| matches!(value, Column::Ints(_) | Column::Int(_)));
    let data = if is_integer {
        BatchData::I64(values.iter().flat_map(|value| integers(value)).collect())
    } else {
        BatchData::F32(values.iter().flat_map(|value| floats(value)).collect())
    };
    Ok(BatchColumn { shape, data })
}

fn integers(column: &Column) -> Vec<i64> {
    match column {
        Column::Ints(values) => values.clone(),
        Column::Int(value) => vec![*value],
        Column::Floats(_) | Column::Float(_) => Vec::new(),
    }
}

fn floats(column: &Column) -> Vec<f32> {
    match column {
        Column::Ints(values) => values.iter().map(|&value| value as f32).collect(),
        Column::Int(value) => vec![*value as f32],
        Column::Floats(values) => values.clone(),
        Column::Float(value) => vec![*value],
    }
}
