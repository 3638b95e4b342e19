//! `model-free-ptq`: quantize a checkpoint without running it.

use std::path::PathBuf;

use clap::Args;
use llmcompressor::{
    ExitCode, Interrupt,
    model_free::{DefaultIgnores, Existing, ModelFreeOptions, SchemeSource, Tolerance, model_free_ptq, read_config},
};

use crate::{
    args::{Format, Global, byte_count},
    printer,
    progress::Terminal,
    signals,
};

/// Quantize a checkpoint without calibration data and without running the model
///
/// Works on any architecture: modules are found by the names of their tensors. Weights stream through bounded memory in
/// slabs of rows; a stopped run goes on where it was when the same command is given again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  llmcompressor model-free-ptq ./Llama-3.1-8B ./Llama-3.1-8B-FP8 --scheme FP8_DYNAMIC
  llmcompressor model-free-ptq ./SmolLM2 ./SmolLM2-W4 --scheme W4A16 --group-size 64
  llmcompressor verify ./SmolLM2-W4 --source ./SmolLM2")]
pub(crate) struct Options {
    /// Source: a directory, or a hub id
    #[arg(value_name = "SRC")]
    source: String,
    /// Output directory
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Preset scheme (`llmcompressor list schemes`)
    #[arg(long, value_name = "NAME", required_unless_present = "config", conflicts_with = "config")]
    scheme: Option<String>,
    /// JSON file with a quantization_config: several groups, kv_cache_scheme
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Search scales with this weight observer (`llmcompressor list observers`) [default: min-max]
    #[arg(long, value_name = "NAME")]
    observer: Option<String>,
    /// Columns that share a scale, in place of the scheme's
    #[arg(long, value_name = "N")]
    group_size: Option<usize>,
    /// Modules to quantize: exact names, or regular expressions after `re:` [default: every matrix]
    #[arg(long, value_name = "PAT", conflicts_with = "config")]
    targets: Vec<String>,
    /// Modules to leave as they are, beside those ignored by default
    #[arg(long, value_name = "PAT")]
    ignore: Vec<String>,
    /// Modules to quantize although they are ignored by default
    #[arg(long, value_name = "PAT")]
    include: Vec<String>,
    /// Ignore nothing but what --ignore names: embeddings, output head, routers and towers are quantized too
    #[arg(long)]
    no_default_ignore: bool,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Ceiling for buffers, e.g. 256MiB
    #[arg(long, value_name = "BYTES", value_parser = byte_count, default_value = "256MiB")]
    max_memory: u64,
    /// Cut output shards at this size, e.g. 5GB [default: the source's shards]
    #[arg(long, value_name = "BYTES", value_parser = byte_count)]
    max_shard_size: Option<u64>,
    /// Replace an output that exists
    #[arg(long)]
    overwrite: bool,
    /// Make an error of what is otherwise warned about: ignore patterns that match nothing
    #[arg(long)]
    strict: bool,
    /// Quantize weights that are NaN or infinite
    #[arg(long)]
    allow_non_finite: bool,
    /// Write a checkpoint that no engine can run on these shapes
    #[arg(long)]
    allow_unservable: bool,
    /// Leave the source's .py files out
    #[arg(long)]
    no_remote_code: bool,
}

pub(crate) fn run(options: Options, global: &Global) -> anyhow::Result<ExitCode> {
    let scheme = match (&options.scheme, &options.config) {
        (_, Some(file)) => SchemeSource::Config(Box::new(read_config(file)?)),
        (Some(name), None) => SchemeSource::Preset(name.clone()),
        (None, None) => anyhow::bail!("one of --scheme and --config is required"),
    };
    let interrupt = Interrupt::default();
    signals::connect(&interrupt)?;
    let allow_if = |yes: bool| if yes { Tolerance::Allow } else { Tolerance::Refuse };
    let job = ModelFreeOptions {
        targets: options.targets,
        ignore: options.ignore,
        include: options.include,
        default_ignores: if options.no_default_ignore { DefaultIgnores::Off } else { DefaultIgnores::On },
        observer: options.observer,
        group_size: options.group_size,
        threads: options.threads,
        max_memory_bytes: options.max_memory,
        max_shard_bytes: options.max_shard_size,
        existing: if options.overwrite { Existing::Overwrite } else { Existing::Resume },
        non_finite: allow_if(options.allow_non_finite),
        unservable: allow_if(options.allow_unservable),
        unmatched_ignore: allow_if(!options.strict),
        remote_code: allow_if(!options.no_remote_code),
        interrupt,
        ..ModelFreeOptions::new(options.source, options.output, scheme)
    };
    let report = model_free_ptq(&job, &Terminal::new(global.verbosity()))?;
    match global.format {
        Format::Json => printer::json(&report)?,
        Format::Human => printer::line(&report.summary())?,
    }
    Ok(ExitCode::Done)
}
