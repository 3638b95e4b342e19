//! `convert`: from one checkpoint format to another.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use llmcompressor::{
    ExitCode, Interrupt,
    convert::{ConvertOptions, Target, convert},
    model_free::Existing,
};

use crate::{
    args::{Format, Global, byte_count},
    printer,
    progress::Terminal,
    signals,
};

/// Convert a checkpoint between formats, module by module
///
/// Reads compressed-tensors, FP8 with block scales, AutoAWQ, AutoGPTQ and ModelOpt NVFP4.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Source: a directory, or a hub id
    #[arg(value_name = "SRC")]
    source: String,
    /// Output directory
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// The format to write
    #[arg(long, value_enum)]
    to: To,
    /// Element type of dense weights [default: as stored in the source's scales, else bfloat16]
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<String>,
    /// Modules to leave as they are
    #[arg(long, value_name = "PAT")]
    ignore: Vec<String>,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Ceiling for buffers; packed formats take twelve times the packed bytes of the largest module
    #[arg(long, value_name = "BYTES", value_parser = byte_count, default_value = "2GiB")]
    max_memory: u64,
    /// Cut output shards at this size [default: the source's shards]
    #[arg(long, value_name = "BYTES", value_parser = byte_count)]
    max_shard_size: Option<u64>,
    /// Replace an output that exists
    #[arg(long)]
    overwrite: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum To {
    /// Plain weights
    Dense,
    /// compressed-tensors, codes and scales unchanged
    CompressedTensors,
    /// AutoAWQ's gemm layout, int4
    AutoAwq,
    /// AutoGPTQ's layout, int4
    AutoGptq,
}

pub(crate) fn run(options: Options, global: &Global) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::default();
    signals::connect(&interrupt)?;
    let job = ConvertOptions {
        model: options.source,
        output: options.output,
        target: match options.to {
            To::Dense => Target::Dense,
            To::CompressedTensors => Target::CompressedTensors,
            To::AutoAwq => Target::AutoAwq,
            To::AutoGptq => Target::AutoGptq,
        },
        dtype: options.dtype,
        ignore: options.ignore,
        threads: options.threads,
        max_memory_bytes: options.max_memory,
        max_shard_bytes: options.max_shard_size,
        existing: if options.overwrite { Existing::Overwrite } else { Existing::Resume },
        interrupt,
    };
    let report = convert(&job, &Terminal::new(global.verbosity()))?;
    match global.format {
        Format::Json => printer::json(&report)?,
        Format::Human => printer::line(&report.summary())?,
    }
    Ok(ExitCode::Done)
}
