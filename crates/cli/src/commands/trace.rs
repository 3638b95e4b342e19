//! `trace`: how a model is cut into subgraphs.

use std::{num::NonZeroUsize, path::PathBuf};

use clap::{Args, ValueEnum};
use llmcompressor::{
    Error, ErrorKind, ExitCode,
    trace::{Picture, Policy, TraceOptions, trace},
};

use crate::{
    args::{Format, Global},
    printer,
};

/// Show the subgraphs that calibration runs one after the other, and what each costs
///
/// Reads config and headers only.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  llmcompressor trace ./Llama-3.2-1B --partition compat
  llmcompressor trace ./Llama-3.2-1B --targets Linear --picture waves.html")]
pub(crate) struct Options {
    /// A directory, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Modules to cut at: names, classes or `re:` patterns [default: the decoder layers]
    #[arg(long, value_name = "PATTERN", num_args = 1.., value_delimiter = ',')]
    targets: Vec<String>,
    /// Where subgraphs begin
    #[arg(long, value_enum, default_value_t = PartitionName::BeforeTargets)]
    partition: PartitionName,
    /// Targets that share a subgraph under `compat` [default: 1]
    #[arg(long, value_name = "N")]
    targets_per_subgraph: Option<NonZeroUsize>,
    /// Tokens of a row, which the cost of attention depends on
    #[arg(long, value_name = "N", default_value_t = 2048)]
    seq_len: usize,
    /// Draw the subgraphs into a file that ends in .svg or .html
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum PartitionName {
    /// Before targets that are equally deep
    BeforeTargets,
    /// Before each target in turn, as llm-compressor in Python
    Compat,
}

pub(crate) fn run(options: Options, global: &Global) -> anyhow::Result<ExitCode> {
    let policy = match (options.partition, options.targets_per_subgraph) {
        (PartitionName::Compat, n) => Policy::Compat { targets_per_subgraph: n.unwrap_or(NonZeroUsize::MIN) },
        (PartitionName::BeforeTargets, None) => Policy::BeforeTargets,
        (PartitionName::BeforeTargets, Some(n)) => {
            let kind = ErrorKind::Option {
                option: "--targets-per-subgraph",
                found: format!("{n} with --partition before_targets"),
                expected: "--partition compat, since equally deep targets share a subgraph otherwise".to_owned(),
            };
            return Err(Error::from(kind).into());
        }
    };
    let picture = options.picture.map(Picture::at).transpose()?;
    let traced = trace(&TraceOptions {
        targets: options.targets,
        policy,
        seq_len: options.seq_len,
        ..TraceOptions::new(options.model)
    })?;
    if let Some(picture) = picture {
        picture.draw(&traced)?;
    }
    match global.format {
        Format::Json => printer::json(&traced)?,
        Format::Human => printer::line(&traced.text())?,
    }
    Ok(ExitCode::Done)
}
