//! What a model goes on with: token by token, over kept keys and values.

mod prompt;
mod sampling;
mod stream;

use std::{path::PathBuf, time::Instant};

use calibration::{Tokenizer, check_vocabulary};
use models::{KvCache, Run};
use serde::Serialize;

use crate::{
    Interrupt, Progress, ceiling,
    error::{ErrorKind, Result},
    eval::{Compute, Product, Subject, threads},
    slabs::Budget,
};
use sampling::Sampler;
pub use sampling::Sampling;
use stream::Stream;

/// What a model goes on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A text, with special tokens as the tokenizer adds them.
    Text(String),
    /// What a user says, in the model's chat template.
    Chat(String),
    /// A JSON file that is a list of token ids.
    TokenIds(PathBuf),
}

/// What `generate` is asked to do.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// The model: a directory or a hub id.
    pub model: String,
    /// What it goes on from.
    pub prompt: Prompt,
    /// Most tokens to add.
    pub max_new_tokens: usize,
    /// How each is chosen.
    pub sampling: Sampling,
    /// The type to compute in.
    pub compute: Compute,
    /// What linear layers multiply.
    pub product: Product,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
    /// Whether keys and values are kept.
    pub cache: Caching,
    /// A request to stop.
    pub interrupt: Interrupt,
}

/// Whether keys and values of tokens are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Caching {
    /// Where the architecture allows it.
    #[default]
    Kept,
    /// Every token is computed from all tokens before it.
    Recomputed,
}

impl GenerateOptions {
    /// Options that take the likeliest of 64 tokens each, everything else by default.
    pub fn new(model: impl Into<String>, prompt: Prompt) -> Self {
        Self {
            model: model.into(),
            prompt,
            max_new_tokens: 64,
            sampling: Sampling::default(),
            compute: Compute::Auto,
            product: Product::Numbers,
            threads: 0,
            cache: Caching::Kept,
            interrupt: Interrupt::default(),
        }
    }
}

/// Why no further token was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended the text.
    Stop,
    /// There are as many tokens as were asked for.
    Length,
    /// The model has no further position.
    Context,
}

/// What `generate` did.
#[derive(Clone, Debug, Serialize)]
pub struct Generation {
    /// The model as given.
    pub model: String,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Ids of the tokens that were added; one that ends the text is the last of them.
    pub token_ids: Vec<u32>,
    /// Their text, without what ends it; empty for a model without a tokenizer.
    pub text: String,
    /// Why there are not more.
    pub finish: Finish,
    /// The type computed in.
    pub dtype: &'static str,
    /// Whether keys and values were kept, or every token was computed from all tokens before it.
    pub cached: bool,
    /// Seconds until the first token.
    pub prompt_seconds: f64,
    /// Seconds from the first token to the last.
    pub seconds: f64,
    /// Tokens of the prompt a second.
    pub prompt_tokens_per_second: f64,
    /// Tokens after the first a second; none where there is only one.
    pub tokens_per_second: Option<f64>,
}

impl Generation {
    /// A line for a person.
    pub fn summary(&self) -> String {
        let rate = self.tokens_per_second.map_or(String::new(), |it| format!(", {it:.1} tokens/s"));
        format!(
            "{} tokens{rate} after a prompt of {} at {:.0} tokens/s, {}{}",
            self.token_ids.len(),
            self.prompt_tokens,
            self.prompt_tokens_per_second,
            self.dtype,
            if self.cached { "" } else { ", all tokens computed again for each" },
        )
    }
}

/// Adds tokens to a prompt; `said` hears text as soon as it is whole.
///
/// Compressed weights are made dense when they are read, activations are quantized as the config says, and so are the keys
/// and values that are kept, where there is a `kv_cache_scheme` or a scheme of attention.
///
/// # Errors
/// Faults of the checkpoint, of the tokenizer, of the prompt; an architecture that is not supported; `Option` for numbers
/// that make no choice and a prompt beyond the context; `NotANumber` where the model gives no finite scores; what `said`
/// refuses.
pub fn generate(
    options: &GenerateOptions,
    progress: &dyn Progress,
    said: &mut dyn FnMut(&str) -> std::io::Result<()>,
) -> Result<Generation> {
    let mut sampler = Sampler::new(options.sampling)?;
    let subject = Subject::open(&options.model, options.compute, options.product, &ceiling::budget(None))?;
    let tokenizer = match &options.prompt {
        // A model without a tokenizer can be asked by ids.
        Prompt::TokenIds(_) => Tokenizer::from_dir(subject.dir()).ok(),
        Prompt::Text(_) | Prompt::Chat(_) => Some(Tokenizer::from_dir(subject.dir())?),
    };
    let mut ids = prompt::ids(&options.prompt, tokenizer.as_ref())?;
    let prompt_tokens = ids.len();
    if let Some(vocabulary) = subject.vocabulary() {
        check_vocabulary(std::slice::from_ref(&ids), vocabulary, tokenizer.as_ref())?;
    }
    let context = prompt::context(subject.config()?);
    if let Some(context) = context.filter(|it| prompt_tokens >= *it) {
        let (found, expected) =
            (format!("{prompt_tokens} tokens"), format!("less than the model's {context} positions"));
        return Err(ErrorKind::Option { option: prompt::option(&options.prompt), found, expected }.into());
    }
    let stops = prompt::stops(subject.dir(), subject.config()?, tokenizer.as_ref())?;
    let end = prompt_tokens.saturating_add(options.max_new_tokens).min(context.unwrap_or(usize::MAX));
    let _held = subject.hold();
    let cache = match options.cache {
        Caching::Recomputed => None,
        Caching::Kept => {
            let opened = KvCache::open(subject.model(), subject.hooks(), &subject.engine().budget, end)?;
            opened.map_err(|why| progress.warn(&format!("every token is computed from all before it: {why}"))).ok()
        }
    };
    let pool = Budget { threads: threads(options.threads), slab_bytes: 0 }.thread_pool()?;
    let mut stream = tokenizer.as_ref().map(|it| Stream::new(it, &ids));
    let mut text = String::new();
    let mut finish = if context == Some(end) { Finish::Context } else { Finish::Length };
    let begin = Instant::now();
    let mut first = None;
    while ids.len() < end {
        if let Some(signal) = options.interrupt.signal() {
            return Err(ErrorKind::Interrupted { signal }.into());
        }
        let chosen = pool.install(|| next(&subject.run(), &subject, cache.as_ref(), &ids, &mut sampler))?;
        first.get_or_insert_with(Instant::now);
        ids.push(chosen);
        if stops.contains(&chosen) {
            finish = Finish::Stop;
            break;
        }
        if let Some(stream) = &mut stream {
            say(said, &mut text, stream.push(chosen)?)?;
        }
    }
    let last = Instant::now();
    if let Some(stream) = stream {
        say(said, &mut text, stream.rest()?)?;
    }
    let first = first.unwrap_or(last);
    let (prompt_seconds, seconds) = ((first - begin).as_secs_f64(), (last - first).as_secs_f64());
    let token_ids = ids.split_off(prompt_tokens);
    Ok(Generation {
        model: options.model.clone(),
        prompt_tokens,
        text,
        finish,
        dtype: subject.model().store().dtype().torch_name().unwrap_or("unknown"),
        cached: cache.is_some(),
        prompt_seconds,
        seconds,
        prompt_tokens_per_second: prompt_tokens as f64 / prompt_seconds.max(1e-9),
        tokens_per_second: (token_ids.len() > 1).then(|| (token_ids.len() - 1) as f64 / seconds.max(1e-9)),
        token_ids,
    })
}

/// The token after `ids`.
fn next(run: &Run<'_>, subject: &Subject, cache: Option<&KvCache>, ids: &[u32], sampler: &mut Sampler) -> Result<u32> {
    let known = cache.map_or(0, KvCache::len);
    let logits = subject.model().next_logits(*run, cache, &ids[known..])?;
    let scores = logits.to_f32().map_err(models::Error::from)?;
    if scores.iter().any(|it| it.is_nan()) || scores.iter().all(|it| *it == f32::NEG_INFINITY) {
        let module = subject.first_non_finite(ids)?;
        return Err(ErrorKind::NotANumber { row: 0, token: ids.len(), module }.into());
    }
    Ok(sampler.choose(&scores))
}

fn say(said: &mut dyn FnMut(&str) -> std::io::Result<()>, text: &mut String, new: String) -> Result<()> {
    if !new.is_empty() {
        said(&new).map_err(|source| ErrorKind::File { path: PathBuf::from("the generated text"), source })?;
        text.push_str(&new);
    }
    Ok(())
}
