//! The tokenizer of a model directory, guarded against files made to crash it.

use std::{
    cell::Cell,
    fs::File,
    io::Read,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{Error, ErrorKind, Result};

/// The largest `tokenizer.json` that is read.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
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
        let config = match read_limited(&config_path, MAX_SIDE_FILE_BYTES) {
            Ok(bytes) => TokenizerConfig::from_json(&bytes).map_err(|e| e.in_file(&config_path))?,
            Err(e) if matches!(e.kind(), ErrorKind::Absent) => TokenizerConfig::default(),
            Err(e) => return Err(e),
        };
        Self::from_bytes(&bytes, config)
            .map(|tokenizer| Self { path: path.clone(), ..tokenizer })
            .map_err(|e| e.in_file(&path))
    }

    /// Reads the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] or [`ErrorKind::Tokenizer`] for content that cannot be used.
    pub fn from_bytes(json: &[u8], config: TokenizerConfig) -> Result<Self> {
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(json))?;
        // Truncation and padding stored in the file are settings of whoever saved it; ours are arguments.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(refused)?;
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
        let encoding =
            guarded(|| self.inner.encode(text, special == SpecialTokens::Add)).map_err(|e| e.in_file(&self.path))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids, special tokens included.
    ///
    /// # Errors
    /// [`ErrorKind::Tokenizer`] if the library refuses the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, false)).map_err(|e| e.in_file(&self.path))
    }

    /// Text of one token, if the vocabulary has that id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Id of a token, if the vocabulary has it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
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
        Ok(Self {
            bos_token: token("bos_token"),
            eos_token: token("eos_token"),
            pad_token: token("pad_token"),
            unk_token: token("unk_token"),
            model_max_length: limit.map(|limit| limit as usize),
        })
    }
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

/// Runs library code that may panic on crafted input, and makes a panic an error.
pub(crate) fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let outer = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(run));
    GUARDED.set(outer);
    match outcome {
        Ok(result) => result.map_err(refused),
        Err(payload) => {
            let said = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let said = said.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(ErrorKind::Tokenizer {
                reason: format!("the content breaks the tokenizer library: {}", said.escape_debug()),
            }
            .into())
        }
    }
}

fn refused(error: tokenizers::Error) -> Error {
    ErrorKind::Tokenizer { reason: error.to_string() }.into()
}

pub(crate) fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| Error::io("opening", path, e))?;
    let metadata = file.metadata().map_err(|e| Error::io("reading", path, e))?;
    if !metadata.is_file() {
        let reason = "it is not a regular file".to_owned();
        return Err(Error::from(ErrorKind::Malformed { format: "file", reason }).in_file(path));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io("reading", path, e))?;
    if bytes.len() as u64 > limit {
        let kind = ErrorKind::TooLarge {
            what: "file",
            found: format!("{} bytes", metadata.len()),
            limit: format!("{limit} bytes"),
        };
        return Err(Error::from(kind).in_file(path));
    }
    Ok(bytes)
}
