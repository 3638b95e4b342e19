//! The built command on small checkpoints: results, exit codes, messages, and what it leaves behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot set its scene has failed")]

mod architectures;

mod bad_input;
mod checkpoints;
mod command;
mod eval;
mod examples;
mod experts;
mod generate;
mod golden_model;
mod interruption;
mod kv_cache;
mod memory;
mod model_dirs;
mod observers;
mod oneshot;
mod page;
mod presets;
mod profile;
mod recipe;
mod redo;
mod reports;
mod same_bytes;
mod sources;
mod sparse;
mod surface;
mod trace;
mod unfit;
mod verdicts;
