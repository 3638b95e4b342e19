//! Texts and token ids, cut into the windows that a model sees.

use std::path::Path;

use calibration::{TokenRowOptions, Tokenizer, source as data, token_rows};

use super::{EvalOptions, Judge, Windows};
use crate::error::{ErrorKind, Result};

/// Tokens that are seen together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// The ids.
    pub(super) ids: Vec<u32>,
    /// The first one that is judged here; those before it are context.
    pub(super) first_judged: usize,
}

impl Window {
    fn new(ids: &[u32]) -> Self {
        Self { ids: ids.to_vec(), first_judged: 1 }
    }
}

/// The windows of the data, in order; rows of one token have nothing to judge and are left out.
///
/// # Errors
/// Faults of the data or the tokenizer; `Option` for a window or stride that cannot be used.
pub(super) fn windows(options: &EvalOptions, model: &Path) -> Result<Vec<Window>> {
    let seq_len = options.seq_len;
    if seq_len < 2 {
        let (found, expected) = (seq_len.to_string(), "2 tokens or more".to_owned());
        return Err(ErrorKind::Option { option: "--seq-len", found, expected }.into());
    }
    if let Windows::Stride(stride) = options.windows
        && !(1..seq_len).contains(&stride)
    {
        let (found, expected) = (stride.to_string(), format!("1 to {} tokens", seq_len - 1));
        return Err(ErrorKind::Option { option: "--stride", found, expected }.into());
    }
    let rows = rows(options, model)?;
    let mut windows = Vec::new();
    match options.windows {
        Windows::Cut => windows.extend(rows.iter().map(|row| Window::new(&row[..row.len().min(seq_len)]))),
        Windows::Concat => windows.extend(rows.concat().chunks(seq_len).map(Window::new)),
        Windows::Stride(stride) => rows.iter().for_each(|row| windows.extend(strided(row, seq_len, stride))),
    }
    windows.retain(|it| it.ids.len() > 1);
    if windows.is_empty() {
        let path = options.data.path().display();
        let reason = format!("{path} has no row of two tokens or more");
        return Err(calibration::Error::from(calibration::ErrorKind::Empty { reason }).into());
    }
    Ok(windows)
}

fn strided(row: &[u32], seq_len: usize, stride: usize) -> Vec<Window> {
    let mut windows: Vec<Window> = Vec::new();
    let (mut start, mut judged) = (0, 1);
    while judged < row.len() {
        let end = (start + seq_len).min(row.len());
        windows.push(Window { ids: row[start..end].to_vec(), first_judged: judged - start });
        (start, judged) = (start + stride, end);
    }
    windows
}

fn rows(options: &EvalOptions, model: &Path) -> Result<Vec<Vec<u32>>> {
    match &options.data {
        Judge::Text { path, column } => {
            let tokenizer = Tokenizer::from_dir(model)?;
            let mut source = data::open(path)?;
            let wanted = TokenRowOptions {
                text_column: column.clone(),
                max_seq_length: (options.windows == Windows::Cut).then_some(options.seq_len),
                num_samples: options.max_samples,
            };
            Ok(token_rows(&mut *source, &tokenizer, &wanted)?)
        }
        Judge::TokenIds(path) => {
            let refuse = |found: String| {
                let expected = format!("a JSON list of rows of token ids in {}", path.display());
                ErrorKind::Option { option: "--token-ids", found, expected }
            };
            let text = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
            let mut rows: Vec<Vec<u32>> = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
            rows.truncate(options.max_samples.unwrap_or(usize::MAX));
            Ok(rows)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_judged_once_with_a_stride() {
        let row: Vec<u32> = (0..23).collect();
        let mut judged = Vec::new();
        for window in strided(&row, 8, 3) {
            assert!(window.ids.len() <= 8);
            judged.extend_from_slice(&window.ids[window.first_judged..]);
        }
        assert_eq!(judged, row[1..]);
    }
}
