//! Tests of the crate from outside: goldens, fixtures, malformed inputs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may stop")]

mod chat;
mod goldens;
mod intermediates;
mod malformed;
#[cfg(feature = "parquet")]
mod parquet;
mod processing;
mod tokens;
mod word_tokenizer;
