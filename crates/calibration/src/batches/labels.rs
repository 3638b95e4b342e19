//! Labels of a sample: its own tokens, without prompt and padding.

use super::{Column, Sample};
use crate::{ErrorKind, Result};

/// The label that a loss leaves out.
pub const IGNORED_LABEL: i64 = -100;

/// Adds the column `labels`: the token ids, with [`IGNORED_LABEL`] for the first `len(prompt)` tokens and for padding.
///
/// Padding is what `attention_mask` has as zero, at either end; the prompt starts at the first token that is none.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a sample with pixels, [`ErrorKind::MissingColumn`] without token ids.
pub fn add_labels(sample: &mut Sample) -> Result<()> {
    if sample.contains_key("pixel_values") {
        let (what, hint) = ("labels of samples with images", "give text samples");
        return Err(ErrorKind::Unsupported { what: what.to_owned(), hint: hint.to_owned() }.into());
    }
    let ints = |name: &str| sample.get(name).and_then(Column::ints);
    let Some(ids) = ints("input_ids") else {
        let found = sample.keys().cloned().collect();
        return Err(ErrorKind::MissingColumn { column: "input_ids".to_owned(), found }.into());
    };
    let mask = ints("attention_mask");
    let is_padding = |i: usize| mask.and_then(|mask| mask.get(i)).is_some_and(|&attended| attended == 0);
    let mut prompt_left = ints("prompt").map_or(0, <[i64]>::len);
    let mut labels = Vec::with_capacity(ids.len());
    for (i, &id) in ids.iter().enumerate() {
        let is_prompt = !is_padding(i) && prompt_left > 0;
        prompt_left -= usize::from(is_prompt);
        labels.push(if is_prompt || is_padding(i) { IGNORED_LABEL } else { id });
    }
    sample.insert("labels".to_owned(), Column::Ints(labels));
    Ok(())
}
