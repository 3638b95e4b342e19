//! People's Speech: audio with transcripts.

use super::{Dataset, Prompt};

pub(super) const PEOPLES_SPEECH: Dataset = Dataset {
    name: "peoples-speech",
    aliases: &[],
    hub_id: Some("MLCommons/peoples_speech"),
    config: Some("test"),
    text_column: "text",
    split_names: &[],
    prompt: Prompt::Other("an audio processor"),
};
