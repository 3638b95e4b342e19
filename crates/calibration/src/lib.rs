//! Calibration data: sources, chat templates, tokens, batches, intermediates cache.

#![forbid(unsafe_code)]

pub mod arguments;
pub mod batches;
pub mod chat;
pub mod datasets;
mod error;
pub mod intermediates;
pub mod loader;
mod note;
pub mod source;
mod token_rows;
mod tokenizer;

pub use error::{Error, ErrorKind, Place, Result};
pub use loader::{CalibrationData, DataSettings, ModelLimits};
pub use note::Note;
pub use token_rows::{TokenRowOptions, check_context, check_vocabulary, token_rows};
pub use tokenizer::{Encoded, PaddingSide, SpecialTokens, Tokenizer, TokenizerConfig, panic_is_guarded};
