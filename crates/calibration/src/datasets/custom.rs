//! Data of the user's own, in files that need no preprocessing.

use super::{Dataset, Prompt};

pub(super) const CUSTOM: Dataset = Dataset {
    name: "custom",
    aliases: &["json", "csv"],
    hub_id: None,
    config: None,
    text_column: "text",
    split_names: &[],
    prompt: Prompt::Column,
};
