//! Open Platypus: instructions, with or without an input, and their answers.

use super::{Dataset, Prompt, optional_text, text_row};
use crate::{Result, source::Row, token_rows::text_of};

pub(super) const OPEN_PLATYPUS: Dataset = Dataset {
    name: "open-platypus",
    aliases: &[],
    hub_id: Some("garage-bAInd/Open-Platypus"),
    config: None,
    text_column: "text",
    split_names: &[],
    prompt: Prompt::Fields(fields),
};

fn fields(row: &Row) -> Result<Row> {
    let instruction = text_of(row, "instruction")?;
    let prompt = match optional_text(row, "input")? {
        "" => format!(
            "Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
        ),
        input => format!(
            "Below is an instruction that describes a task, paired with an input that provides further context. \
             Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n\
             ### Input:\n{input}\n\n### Response:\n"
        ),
    };
    let text = format!("{prompt}{}", optional_text(row, "output")?);
    Ok(text_row(text, Some(prompt)))
}
