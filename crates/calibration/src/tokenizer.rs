//! The tokenizer of a model directory, guarded against files made to crash it.

use std::{
    cell::Cell,
    io::Read,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use indexmap::IndexMap;
use serde_json::Value;
use tokenizers::{NormalizerWrapper, PostProcessor, TruncationDirection, pre_tokenizers::byte_level::ByteLevel};

use crate::{Error, ErrorKind, Result, chat::ChatTemplate, source::open_regular};

/// The largest `tokenizer.json` that is read.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// Name of the template that is used where nothing else is asked for.
const DEFAULT_TEMPLATE: &str = "default";
/// The largest side file that is read.
const MAX_SIDE_FILE_BYTES: u64 = 16 << 20;

/// Turns text into token ids as the files of a model directory say.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    config: TokenizerConfig,
}

/// What `tokenizer_config.json` says beside the tokenizer itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenizerConfig {
    /// Text of the beginning-of-sequence token.
    pub bos_token: Option<String>,
    /// Text of the end-of-sequence token.
    pub eos_token: Option<String>,
    /// Text of the padding token.
    pub pad_token: Option<String>,
    /// Text of the token for unknown words.
    pub unk_token: Option<String>,
    /// The most tokens the model was made for; `None` if no limit is given.
    pub model_max_length: Option<usize>,
    /// The end of a row that is filled.
    pub padding_side: PaddingSide,
    /// Chat templates by name; the usual one is `default`.
    pub chat_templates: IndexMap<String, String>,
    /// How words are cut, where the class of the tokenizer decides and not the file.
    pub cut: Option<ClassCut>,
}

/// Cutting into words that a tokenizer class brings along.
///
/// transformers 5 builds a `GPT2Tokenizer` from the vocabulary and the merges alone, so that other steps in
/// `tokenizer.json` (single digits, in SmolLM2's) take no effect there, nor in an engine that serves with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassCut {
    /// Whether a text begins with a space, whatever its first letter is.
    pub add_prefix_space: bool,
}

/// The end of a row that is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PaddingSide {
    /// Before the first token.
    Left,
    /// After the last token.
    #[default]
    Right,
}

/// Token ids of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The ids.
    pub ids: Vec<u32>,
    /// Bytes of the text that each id stands for; empty for special tokens that were added.
    pub offsets: Vec<(usize, usize)>,
    /// Tokens before any cut.
    pub n_tokens: usize,
}

impl Encoded {
    fn new(encoding: &tokenizers::Encoding, n_tokens: usize, max_tokens: usize) -> Self {
        let n = encoding.len().min(max_tokens);
        let (ids, offsets) = (encoding.get_ids()[..n].to_vec(), encoding.get_offsets()[..n].to_vec());
        Self { ids, offsets, n_tokens }
    }
}

/// Whether the tokenizer's post-processor may add its special tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    /// As the tokenizer adds them to a lone text.
    Add,
    /// None: the text already holds them, as a rendered chat template does.
    Skip,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and `tokenizer_config.json` of a model directory.
    ///
    /// # Errors
    /// [`ErrorKind::Absent`] without `tokenizer.json`, [`ErrorKind::Malformed`] or [`ErrorKind::Tokenizer`] for files
    /// that cannot be used.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let bytes = read_limited(&path, MAX_TOKENIZER_BYTES)?;
        let config_path = dir.join("tokenizer_config.json");
        let mut config = match read_limited(&config_path, MAX_SIDE_FILE_BYTES) {
            Ok(bytes) => TokenizerConfig::from_json(&bytes).map_err(|e| e.in_file(&config_path))?,
            Err(e) if matches!(e.kind(), ErrorKind::Absent) => TokenizerConfig::default(),
            Err(e) => return Err(e),
        };
        read_template_files(dir, &mut config.chat_templates)?;
        Self::from_bytes(&bytes, config)
            .map(|tokenizer| Self { path: path.clone(), ..tokenizer })
            .map_err(|e| e.in_file(&path))
    }

    /// Reads the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] or [`ErrorKind::Tokenizer`] for content that cannot be used.
    pub fn from_bytes(json: &[u8], config: TokenizerConfig) -> Result<Self> {
        let mut inner = library(|| tokenizers::Tokenizer::from_bytes(json))?;
        // Truncation and padding stored in the file are settings of whoever saved it; ours are arguments.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(refused)?;
        if let Some(ClassCut { add_prefix_space }) = config.cut {
            inner.with_normalizer(None::<NormalizerWrapper>).map_err(refused)?;
            inner.with_pre_tokenizer(Some(ByteLevel::new(add_prefix_space, true, true)));
        }
        Ok(Self { inner, path: PathBuf::from("tokenizer.json"), config })
    }

    /// The file the tokenizer came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Special tokens and limits.
    pub fn config(&self) -> &TokenizerConfig {
        &self.config
    }

    /// Token ids of a text.
    ///
    /// # Errors
    /// [`ErrorKind::Tokenizer`] if the library refuses the text.
    pub fn encode(&self, text: &str, special: SpecialTokens) -> Result<Vec<u32>> {
        Ok(self.encode_cut(text, special, usize::MAX)?.ids)
    }

    /// Token ids of a text, cut to `max_tokens` so that the special tokens around it stay.
    ///
    /// # Errors
    /// [`ErrorKind::Tokenizer`] if the library refuses the text.
    pub fn encode_cut(&self, text: &str, special: SpecialTokens, max_tokens: usize) -> Result<Encoded> {
        let add = special == SpecialTokens::Add;
        let in_file = |e: Error| e.in_file(&self.path);
        let whole = library(|| self.inner.encode(text, add)).map_err(in_file)?;
        let n_tokens = whole.len();
        if n_tokens <= max_tokens {
            return Ok(Encoded::new(&whole, n_tokens, max_tokens));
        }
        let n_added =
            if add { self.inner.get_post_processor().map_or(0, |added| added.added_tokens(false)) } else { 0 };
        if n_added == 0 || n_added >= max_tokens {
            return Ok(Encoded::new(&whole, n_tokens, max_tokens));
        }
        let cut = library(|| {
            let mut content = self.inner.encode(text, false)?;
            content.truncate(max_tokens - n_added, 0, TruncationDirection::Right);
            self.inner.post_process(content, None, true)
        });
        Ok(Encoded::new(&cut.map_err(in_file)?, n_tokens, max_tokens))
    }

    /// Text of token ids, special tokens included.
    ///
    /// # Errors
    /// [`ErrorKind::Tokenizer`] if the library refuses the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        library(|| self.inner.decode(ids, false)).map_err(|e| e.in_file(&self.path))
    }

    /// Text of one token, if the vocabulary has that id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Id of a token, if the vocabulary has it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The chat template, compiled: `tool_use` where there are tools and such a template, else `default`.
    ///
    /// # Errors
    /// What [`ChatTemplate::compile`] refuses, placed in the tokenizer's folder.
    pub fn chat_template(&self, tools: Option<&[Value]>) -> Result<Option<ChatTemplate>> {
        let named = |name: &str| self.config.chat_templates.get(name);
        let template = match tools {
            Some(_) => named("tool_use").or_else(|| named(DEFAULT_TEMPLATE)),
            None => named(DEFAULT_TEMPLATE),
        };
        let compiled = template.map(|template| ChatTemplate::compile(template)).transpose();
        compiled.map_err(|e| e.in_file(self.path.parent().unwrap_or(&self.path)))
    }

    /// Id that fills short rows: the padding token's, else the end-of-sequence token's.
    pub fn pad_id(&self) -> Option<u32> {
        self.config.pad_token.as_deref().or(self.config.eos_token.as_deref()).and_then(|token| self.id(token))
    }
}

impl TokenizerConfig {
    /// Reads the content of a `tokenizer_config.json`; keys it does not know are left alone.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] if it is no JSON object.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let config: serde_json::Map<String, Value> = serde_json::from_slice(json)
            .map_err(|e| ErrorKind::Malformed { format: "tokenizer_config.json", reason: e.to_string() })?;
        let token = |name: &str| match config.get(name) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Object(added)) => added.get("content").and_then(Value::as_str).map(str::to_owned),
            _ => None,
        };
        // A tokenizer without a limit is saved with 1e30.
        let limit = config.get("model_max_length").and_then(Value::as_f64).filter(|limit| (1.0..1e15).contains(limit));
        let class = config.get("tokenizer_class").and_then(Value::as_str);
        let add_prefix_space = config.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
        Ok(Self {
            bos_token: token("bos_token"),
            eos_token: token("eos_token"),
            pad_token: token("pad_token"),
            unk_token: token("unk_token"),
            model_max_length: limit.map(|limit| limit as usize),
            padding_side: match config.get("padding_side").and_then(Value::as_str) {
                Some("left") => PaddingSide::Left,
                _ => PaddingSide::Right,
            },
            chat_templates: chat_templates(config.get("chat_template"))?,
            cut: matches!(class, Some("GPT2Tokenizer" | "GPT2TokenizerFast")).then_some(ClassCut { add_prefix_space }),
        })
    }
}

/// The template under the name `default`, or a list of named ones.
fn chat_templates(value: Option<&Value>) -> Result<IndexMap<String, String>> {
    let wrong = || {
        let reason = "`chat_template` is neither a text nor a list of {name, template}".to_owned();
        Error::from(ErrorKind::Malformed { format: "tokenizer_config.json", reason })
    };
    match value {
        None | Some(Value::Null) => Ok(IndexMap::new()),
        Some(Value::String(template)) => Ok(IndexMap::from([(DEFAULT_TEMPLATE.to_owned(), template.clone())])),
        Some(Value::Array(named)) => {
            let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
            let pair = |entry| text(entry, "name").zip(text(entry, "template")).ok_or_else(wrong);
            named.iter().map(pair).collect()
        }
        Some(_) => Err(wrong()),
    }
}

/// `chat_template.jinja` and `additional_chat_templates/*.jinja`, which go before `tokenizer_config.json`.
fn read_template_files(dir: &Path, templates: &mut IndexMap<String, String>) -> Result<()> {
    let mut files = vec![(DEFAULT_TEMPLATE.to_owned(), dir.join("chat_template.jinja"))];
    let additional = dir.join("additional_chat_templates");
    if let Ok(entries) = std::fs::read_dir(&additional) {
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "jinja"));
        paths.sort();
        let name = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        files.extend(paths.into_iter().filter_map(|path| Some((name(&path)?, path))));
    }
    for (name, path) in files {
        match read_limited(&path, MAX_SIDE_FILE_BYTES) {
            Ok(bytes) => {
                let text = String::from_utf8(bytes).map_err(|_| {
                    Error::from(ErrorKind::Template { line: None, reason: "it is not UTF-8".to_owned() }).in_file(&path)
                })?;
                templates.insert(name, text);
            }
            Err(e) if matches!(e.kind(), ErrorKind::Absent) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread runs library code whose panics are caught and reported as errors.
///
/// A program's panic hook asks this, so that such a panic leaves no text on stderr.
pub fn panic_is_guarded() -> bool {
    GUARDED.get()
}

/// Runs library code that may panic on crafted input, and makes a panic an error of its text.
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> std::result::Result<T, String> {
    let outer = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    GUARDED.set(outer);
    outcome.map_err(|payload| {
        let said = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        said.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default().escape_debug().to_string()
    })
}

fn library<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match guarded(run) {
        Ok(result) => result.map_err(refused),
        Err(said) => {
            Err(ErrorKind::Tokenizer { reason: format!("the content breaks the tokenizer library: {said}") }.into())
        }
    }
}

fn refused(error: tokenizers::Error) -> Error {
    ErrorKind::Tokenizer { reason: error.to_string() }.into()
}

pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open_regular(path)?;
    let size = file.metadata().map_err(|e| Error::io("reading", path, e))?.len();
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io("reading", path, e))?;
    if bytes.len() as u64 > limit {
        let kind =
            ErrorKind::TooLarge { what: "file", found: format!("{} bytes", size), limit: format!("{limit} bytes") };
        return Err(Error::from(kind).in_file(path));
    }
    Ok(bytes)
}
