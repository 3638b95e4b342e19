//! Flickr30k: images with captions.

use super::{Dataset, Prompt};

pub(super) const FLICKR: Dataset = Dataset {
    name: "flickr",
    aliases: &["flickr30k"],
    hub_id: Some("lmms-lab/flickr30k"),
    config: None,
    text_column: "text",
    split_names: &[],
    prompt: Prompt::Other("an image processor"),
};
