//! Checkpoints whose output head has no weight of its own, and takes the input embedding's.

use checkpoint::Source;
use serde_json::Value;

use crate::catalog::{Catalog, StoredModule};

/// Last names of input embeddings.
const EMBEDDINGS: &[&str] = &["embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "embeddings"];

/// Last names of output heads.
const HEADS: &[&str] = &["lm_head", "embed_out"];

/// The embedding that an engine takes for the output head too; none where the head is stored, or there is none.
pub(crate) fn shared_embedding<'a>(source: &Source, catalog: &'a Catalog) -> Option<&'a StoredModule> {
    if !is_tied(source.config().ok()?) || source.tensors().any(|it| is_in(parent(&it.name), HEADS)) {
        return None;
    }
    catalog.modules.iter().find(|it| is_in(&it.name, EMBEDDINGS))
}

/// The output heads of a checkpoint.
pub(crate) fn heads(catalog: &Catalog) -> impl Iterator<Item = &StoredModule> {
    catalog.modules.iter().filter(|it| is_in(&it.name, HEADS))
}

/// What the config says, or what Hugging Face takes for granted in a model with a head.
fn is_tied(config: &Value) -> bool {
    const KEY: &str = "tie_word_embeddings";
    let flag = config.get(KEY).or_else(|| config.get("text_config")?.get(KEY)).and_then(Value::as_bool);
    let class = config.get("architectures").and_then(|it| it.get(0)).and_then(Value::as_str).unwrap_or_default();
    let has_head = ["ForCausalLM", "ForConditionalGeneration", "LMHeadModel"].iter().any(|it| class.ends_with(it));
    flag.unwrap_or(has_head)
}

fn parent(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or("", |it| it.0)
}

fn is_in(module: &str, names: &[&str]) -> bool {
    names.contains(&module.rsplit('.').next().unwrap_or_default())
}
