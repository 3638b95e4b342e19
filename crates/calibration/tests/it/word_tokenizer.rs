//! The word-level tokenizer of the goldens, built from its vocabulary.

use std::sync::Arc;

use calibration::{Tokenizer, TokenizerConfig};
use serde_json::{Value, json};
use testkit::Goldens;

/// The vocabulary that the goldens were made with.
pub(crate) fn vocabulary() -> Value {
    let cases = Goldens::open("core").json("datasets.json");
    let vocabulary = cases["cases"].as_array().unwrap().iter().find(|case| case["op"] == "vocab").unwrap();
    vocabulary["vocab"].clone()
}

/// Whether the tokenizer puts `<s>` in front.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bos {
    Added,
    Absent,
}

pub(crate) fn word_tokenizer(vocabulary: &Value, bos: Bos, chat_template: Option<&str>) -> Arc<Tokenizer> {
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let post_processor = match bos {
        Bos::Absent => Value::Null,
        Bos::Added => json!({"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}),
    };
    let file = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": post_processor, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}});
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 16,
        "chat_template": chat_template});
    let config = TokenizerConfig::from_json(config.to_string().as_bytes()).unwrap();
    Arc::new(Tokenizer::from_bytes(file.to_string().as_bytes(), config).unwrap())
}
