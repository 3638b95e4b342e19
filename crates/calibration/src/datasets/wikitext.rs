//! WikiText: articles, one paragraph a row.

use super::{Dataset, Prompt};

pub(super) const WIKITEXT: Dataset = Dataset {
    name: "wikitext",
    aliases: &[],
    hub_id: Some("Salesforce/wikitext"),
    config: None,
    text_column: "text",
    split_names: &[],
    prompt: Prompt::Column,
};
