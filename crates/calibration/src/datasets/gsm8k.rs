//! GSM8K: school mathematics.

use super::{Dataset, Prompt, optional_text, text_row};
use crate::{Result, source::Row, token_rows::text_of};

pub(super) const GSM8K: Dataset = Dataset {
    name: "gsm8k",
    aliases: &[],
    hub_id: Some("openai/gsm8k"),
    config: None,
    text_column: "text",
    split_names: &[],
    prompt: Prompt::Fields(fields),
};

fn fields(row: &Row) -> Result<Row> {
    let prompt = format!("Question: {}\nAnswer:", text_of(row, "question")?);
    let text =
        if row.contains_key("answer") { format!("{prompt} {}", optional_text(row, "answer")?) } else { prompt.clone() };
    Ok(text_row(text, Some(prompt)))
}
