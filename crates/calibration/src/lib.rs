//! Calibration data: sources, chat templates, tokens, batches, intermediates cache.

#![forbid(unsafe_code)]

mod error;
pub mod source;
mod token_rows;
mod tokenizer;

pub use error::{Error, ErrorKind, Place, Result};
pub use token_rows::{TokenRowOptions, check_context, check_vocabulary, token_rows};
pub use tokenizer::{SpecialTokens, Tokenizer, TokenizerConfig, panic_is_guarded};
