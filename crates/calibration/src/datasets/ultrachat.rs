//! UltraChat 200k: chats.

use serde_json::{Value, json};

use super::{Dataset, Prompt, messages};
use crate::{Result, source::Row};

pub(super) const ULTRACHAT_200K: Dataset = Dataset {
    name: "ultrachat-200k",
    aliases: &["ultrachat"],
    hub_id: Some("HuggingFaceH4/ultrachat_200k"),
    config: None,
    text_column: "messages",
    split_names: &[("train", "train_sft"), ("test", "test_sft")],
    prompt: Prompt::Chat(chat),
};

/// Chats without a system message get an empty one in front.
fn chat(row: &Row) -> Result<Vec<Value>> {
    let mut messages = messages(row, "messages")?;
    let has_system = messages.first().and_then(|message| message.get("role")).is_some_and(|role| role == "system");
    if !has_system {
        messages.insert(0, json!({"role": "system", "content": ""}));
    }
    Ok(messages)
}
