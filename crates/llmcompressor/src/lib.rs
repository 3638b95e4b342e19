//! Compress Hugging Face checkpoints for serving: quantization, pruning, transforms.
//!
//! A checkpoint is read in slabs of rows and written in slabs of rows; it is never wholly in memory.
//!
//! ```no_run
//! use llmcompressor::{Silent, model_free::{ModelFreeOptions, model_free_ptq}};
//!
//! let options = ModelFreeOptions::preset("./Llama-3.1-8B", "./Llama-3.1-8B-FP8", "FP8_DYNAMIC");
//! let report = model_free_ptq(&options, &Silent)?;
//! assert_eq!(report.warnings.len(), 0);
//! # Ok::<(), llmcompressor::Error>(())
//! ```
//!
//! Reading order: [`model_free`].
#![forbid(unsafe_code)]

mod activations;
mod catalog;
mod ceiling;
pub mod convert;
mod error;
pub mod eval;
mod exit;
pub mod explain;
pub mod generate;
pub mod inspect;
mod model_config;
pub mod model_free;
mod names;
pub mod oneshot;
mod progress;
pub mod recipes;
mod rewrite;
mod slabs;
mod source;
mod tied;
pub mod trace;
pub mod verify;

pub use error::{Columns, Error, ErrorKind, Result};
pub use exit::ExitCode;
pub use kernels::Isa;
pub use progress::{Counted, Interrupt, Progress, Silent};
