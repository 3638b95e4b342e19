//! What the user typed.

use bytesize::ByteSize;
use clap::{ArgAction, Args, Parser, ValueEnum};
use llmcompressor::eval::{Compute, Product};

use crate::commands::Command;

/// Compress Hugging Face checkpoints for serving with vLLM: quantization, pruning and transforms, saved in the
/// compressed-tensors format.
#[derive(Debug, Parser)]
#[command(name = "llmcompressor", version, propagate_version = true, max_term_width = 120)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Global {
    /// Say nothing but errors and warnings
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Log more (RUST_LOG, if set, decides)
    #[arg(long, short, global = true, action = ArgAction::SetTrue)]
    verbose: bool,
    /// Form of the result on stdout
    #[arg(long, global = true, value_enum, default_value_t = Format::Human)]
    pub(crate) format: Format,
}

/// How much is said on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verbosity {
    Quiet,
    Normal,
    Verbose,
}

/// Form of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Human,
    /// For programs
    Json,
}

impl Global {
    pub(crate) fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose) {
            (true, _) => Verbosity::Quiet,
            (_, true) => Verbosity::Verbose,
            _ => Verbosity::Normal,
        }
    }
}

/// Reads `268435456`, `256MiB`, `5GB`.
pub(crate) fn byte_count(text: &str) -> Result<u64, String> {
    text.parse::<ByteSize>().map(|it| it.0).map_err(|_| format!("`{text}` is no size (examples: 512MiB, 5GB, 1000000)"))
}

/// The type that a model computes in.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Dtype {
    /// What the config says
    Auto,
    F32,
    Bf16,
    F16,
}

/// What linear layers multiply.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ProductOf {
    /// Numbers of the type computed in
    Numbers,
    /// The same, those of bf16 in blocks of 128 with codes of 12 bits and a sign where the processor is faster by it
    Blocks,
    /// Codes, where weights and activations have 8-bit integers: exact sums, scaled at the end
    Int8,
}

impl From<ProductOf> for Product {
    fn from(product: ProductOf) -> Self {
        match product {
            ProductOf::Numbers => Self::Numbers,
            ProductOf::Blocks => Self::Blocks,
            ProductOf::Int8 => Self::Int8,
        }
    }
}

impl From<Dtype> for Compute {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Auto => Self::Auto,
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
            Dtype::F16 => Self::F16,
        }
    }
}
