//! `verify`: is a compressed checkpoint sound.

use std::path::PathBuf;

use clap::Args;
use llmcompressor::{
    ExitCode, Interrupt,
    verify::{VerifyOptions, verify},
};

use crate::{
    args::{Format, Global, byte_count},
    printer,
    progress::Terminal,
    signals,
};

/// Check that a compressed checkpoint is sound; with --source, how far it is from where it came
///
/// Exits with 3 when a fault is found and names each.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The compressed checkpoint
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// The checkpoint it was made from: compares every tensor, and the companion files
    #[arg(long, value_name = "SRC")]
    source: Option<String>,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Ceiling for buffers
    #[arg(long, value_name = "BYTES", value_parser = byte_count, default_value = "256MiB")]
    max_memory: u64,
    /// Print a line for every module, not only for the worst ten
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(options: Options, global: &Global) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::default();
    signals::connect(&interrupt)?;
    let job = VerifyOptions {
        output: options.output,
        source: options.source,
        threads: options.threads,
        max_memory_bytes: options.max_memory,
        interrupt,
    };
    let verdict = verify(&job, &Terminal::new(global.verbosity()))?;
    match global.format {
        Format::Json => printer::json(&verdict)?,
        Format::Human if options.all => printer::line(&verdict.details())?,
        Format::Human => printer::line(&verdict.summary())?,
    }
    Ok(if verdict.is_sound() { ExitCode::Done } else { ExitCode::VerificationFailed })
}
