//! C4: web text.

use super::{Dataset, Prompt};

pub(super) const C4: Dataset = Dataset {
    name: "c4",
    aliases: &[],
    hub_id: Some("allenai/c4"),
    config: None,
    text_column: "text",
    split_names: &[],
    prompt: Prompt::Column,
};
