//! Perfect Blend: chats in the ShareGPT form.

use serde_json::{Map, Value};

use super::{Dataset, Prompt, messages};
use crate::{
    Result,
    source::Row,
    token_rows::{column_type, missing},
};

pub(super) const PERFECTBLEND: Dataset = Dataset {
    name: "perfectblend",
    aliases: &[],
    hub_id: Some("mlabonne/open-perfectblend"),
    config: None,
    text_column: "conversations",
    split_names: &[],
    prompt: Prompt::Chat(chat),
};

fn chat(row: &Row) -> Result<Vec<Value>> {
    messages(row, "conversations")?
        .iter()
        .map(|entry| entry.as_object().map_or_else(|| Ok(Value::Null), message))
        .collect()
}

fn message(entry: &Map<String, Value>) -> Result<Value> {
    let field = |name: &str| {
        let value = entry.get(name).ok_or_else(|| missing(entry, &format!("conversations[].{name}")))?;
        value.as_str().ok_or_else(|| column_type(&format!("conversations[].{name}"), value, "a string"))
    };
    let role = match field("from")? {
        "human" => "user",
        "gpt" => "assistant",
        other => other,
    };
    Ok(serde_json::json!({"role": role, "content": field("value")?}))
}
