//! Evol Code Alpaca: programming tasks and their answers.

use super::{Dataset, Prompt, optional_text, text_row};
use crate::{Result, source::Row, token_rows::text_of};

pub(super) const EVOLCODEALPACA: Dataset = Dataset {
    name: "evolcodealpaca",
    aliases: &[],
    hub_id: Some("theblackcat102/evol-codealpaca-v1"),
    config: None,
    text_column: "text",
    split_names: &[],
    prompt: Prompt::Fields(fields),
};

/// The reference adds the answer only where the prompt itself says `output`; the same text calibrates the same.
fn fields(row: &Row) -> Result<Row> {
    let instruction = text_of(row, "instruction")?;
    let prompt = format!(
        "Below is an instruction that describes a programming task. Write a program that appropriately completes the \
         request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
    );
    let answer = if prompt.contains("output") { optional_text(row, "output")? } else { "" };
    Ok(text_row(format!("{prompt}{answer}"), Some(prompt)))
}
