//! CNN / Daily Mail: articles and their summaries.

use super::{Dataset, Prompt, text_row};
use crate::{Result, source::Row, token_rows::text_of};

pub(super) const CNN_DAILYMAIL: Dataset = Dataset {
    name: "cnn-dailymail",
    aliases: &[],
    hub_id: Some("cnn_dailymail"),
    config: Some("3.0.0"),
    text_column: "text",
    split_names: &[],
    prompt: Prompt::Fields(fields),
};

fn fields(row: &Row) -> Result<Row> {
    let (article, highlights) = (text_of(row, "article")?, text_of(row, "highlights")?);
    Ok(text_row(format!("Article:\n{article}\n\n### Summarization:\n{highlights}\n"), None))
}
