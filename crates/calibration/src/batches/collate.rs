//! Making the rows of a batch equally long.

use super::{Batch, Column, IGNORED_LABEL, Sample};
use crate::{ErrorKind, PaddingSide, Result};

/// The columns that have one entry per token.
const TOKEN_COLUMNS: [&str; 4] = ["input_ids", "labels", "attention_mask", "loss_mask"];

/// How rows are made equally long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Collator {
    /// Cut to the shortest row, and to `max_seq_length` where it is set.
    Truncation {
        /// Tokens at most.
        max_seq_length: Option<usize>,
    },
    /// Fill to the longest row.
    Padding {
        /// Id that fills `input_ids`.
        pad_id: u32,
        /// The end that is filled.
        side: PaddingSide,
    },
}

impl Collator {
    /// The collator of a name, as `data_collator` has it.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownName`], and [`ErrorKind::InvalidArgument`] for padding without a token to pad with.
    pub fn named(name: &str, max_seq_length: Option<usize>, pad_id: Option<u32>, side: PaddingSide) -> Result<Self> {
        match (name, pad_id) {
            ("truncation", _) => Ok(Self::Truncation { max_seq_length }),
            ("padding", Some(pad_id)) => Ok(Self::Padding { pad_id, side }),
            ("padding", None) => {
                Err(crate::arguments::invalid("data_collator", "`padding`", "a tokenizer with a padding or end token"))
            }
            _ => {
                let known = ["truncation", "padding"].map(str::to_owned).to_vec();
                Err(ErrorKind::UnknownName { what: "data collator", name: name.to_owned(), known }.into())
            }
        }
    }
}

/// Stacks samples into a batch.
///
/// # Errors
/// [`ErrorKind::Ragged`] for a column without one entry per token whose rows differ in length, and
/// [`ErrorKind::ColumnType`] for one that a row lacks.
pub fn collate(mut samples: Vec<Sample>, collator: &Collator) -> Result<Batch> {
    match collator {
        Collator::Truncation { max_seq_length } => truncate(&mut samples, *max_seq_length),
        Collator::Padding { pad_id, side } => pad(&mut samples, *pad_id, *side),
    }
    Batch::stack(&samples)
}

fn truncate(samples: &mut [Sample], max_seq_length: Option<usize>) {
    for name in TOKEN_COLUMNS {
        let lengths: Option<Vec<usize>> = samples.iter().map(|sample| sample.get(name)?.n_entries()).collect();
        let Some(shortest) = lengths.and_then(|lengths| lengths.into_iter().min()) else { continue };
        let length = shortest.min(max_seq_length.unwrap_or(usize::MAX));
        for column in samples.iter_mut().filter_map(|sample| sample.get_mut(name)) {
            column.truncate(length);
        }
    }
}

fn pad(samples: &mut [Sample], pad_id: u32, side: PaddingSide) {
    let n_tokens = |sample: &Sample| sample.get("input_ids").and_then(Column::n_entries).unwrap_or(0);
    let longest = samples.iter().map(n_tokens).max().unwrap_or(0);
    for sample in samples {
        let n = n_tokens(sample);
        if !sample.contains_key("attention_mask") {
            sample.insert("attention_mask".to_owned(), Column::Ints(vec![1; n]));
        }
        for name in TOKEN_COLUMNS {
            let fill = match name {
                "input_ids" => i64::from(pad_id),
                "labels" => IGNORED_LABEL,
                _ => 0,
            };
            if let Some(Column::Ints(values)) = sample.get_mut(name)
                && values.len() == n
            {
                fill_row(values, longest, fill, side);
            }
        }
    }
}

/// Fills a row to `length`.
pub(crate) fn fill_row(values: &mut Vec<i64>, length: usize, fill: i64, side: PaddingSide) {
    let missing = length.saturating_sub(values.len());
    let at = match side {
        PaddingSide::Left => 0,
        PaddingSide::Right => values.len(),
    };
    values.splice(at..at, std::iter::repeat_n(fill, missing));
}
