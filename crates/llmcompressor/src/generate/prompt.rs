//! What generation begins with and ends at: token ids of the prompt, positions of the model, ids that end a text.

use std::{collections::BTreeSet, path::Path};

use calibration::{
    SpecialTokens, Tokenizer,
    chat::{AddGenerationPrompt, TemplateInputs},
};
use serde_json::{Value, json};

use super::Prompt;
use crate::error::{ErrorKind, Result};

/// The option that a prompt was given by.
pub(super) fn option(prompt: &Prompt) -> &'static str {
    match prompt {
        Prompt::Text(_) | Prompt::Chat(_) => "--prompt",
        Prompt::TokenIds(_) => "--token-ids",
    }
}

/// Token ids of a prompt.
///
/// # Errors
/// Faults of the tokenizer and the template; `Option` for a prompt without tokens, a file that holds none, and a model
/// without a template.
pub(super) fn ids(prompt: &Prompt, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
    let ids = match (prompt, tokenizer) {
        (Prompt::TokenIds(path), _) => read(path)?,
        (Prompt::Text(text), Some(tokenizer)) => tokenizer.encode(text, SpecialTokens::Add)?,
        (Prompt::Chat(text), Some(tokenizer)) => {
            let Some(template) = tokenizer.chat_template(None)? else {
                let found = "asked of a model without a chat template".to_owned();
                let expected = "a model that has one".to_owned();
                return Err(ErrorKind::Option { option: "--chat", found, expected }.into());
            };
            let inputs = TemplateInputs {
                messages: vec![json!({"role": "user", "content": text})],
                add_generation_prompt: AddGenerationPrompt::Yes,
                ..TemplateInputs::default()
            };
            let rendered = template.render(&inputs, tokenizer.config())?;
            tokenizer.encode(&rendered.text, SpecialTokens::Skip)?
        }
        (Prompt::Text(_) | Prompt::Chat(_), None) => Vec::new(),
    };
    if ids.is_empty() {
        let (found, expected) = ("a prompt without tokens".to_owned(), "one token or more".to_owned());
        return Err(ErrorKind::Option { option: option(prompt), found, expected }.into());
    }
    Ok(ids)
}

fn read(path: &Path) -> Result<Vec<u32>> {
    let refuse = |found: String| {
        let expected = format!("a JSON list of token ids in {}", path.display());
        ErrorKind::Option { option: "--token-ids", found, expected }
    };
    let text = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    if let Ok([row]) = serde_json::from_slice::<[Vec<u32>; 1]>(&text) {
        return Ok(row);
    }
    Ok(serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?)
}

/// Positions that a model was made for, if its config says.
pub(super) fn context(config: &Value) -> Option<usize> {
    let inner = config.get("text_config").unwrap_or(config);
    let keys = ["max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"];
    let found = keys.iter().find_map(|key| inner.get(key).or_else(|| config.get(key))?.as_u64())?;
    usize::try_from(found).ok().filter(|it| *it > 0)
}

/// Ids that end a text: of `generation_config.json`, else of the config, else of the tokenizer.
///
/// # Errors
/// `Parse` for a `generation_config.json` that is no JSON.
pub(super) fn stops(dir: &Path, config: &Value, tokenizer: Option<&Tokenizer>) -> Result<BTreeSet<u32>> {
    let path = dir.join("generation_config.json");
    let generation: Option<Value> = match std::fs::read(&path) {
        Ok(text) => {
            let parsed = serde_json::from_slice(&text);
            Some(parsed.map_err(|error| ErrorKind::Parse { path, reason: error.to_string() })?)
        }
        Err(_) => None,
    };
    let inner = config.get("text_config");
    for place in generation.iter().chain([config]).chain(inner) {
        let ids = match place.get("eos_token_id") {
            Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
            Some(one) => id(one).into_iter().collect(),
            None => BTreeSet::new(),
        };
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    let named = tokenizer.and_then(|it| it.id(it.config().eos_token.as_deref()?));
    Ok(named.into_iter().collect())
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|it| u32::try_from(it).ok())
}
