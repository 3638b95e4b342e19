//! `inspect`: what a checkpoint holds.

use clap::Args;
use llmcompressor::{ExitCode, inspect::inspect};

use crate::{
    args::{Format, Global},
    printer,
};

/// Show the modules of a checkpoint: shapes, dtypes, schemes, bits per parameter, sizes
///
/// Reads headers only. Layers that look alike are folded into one line; --all prints each.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A directory, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Print every layer instead of folding those that look alike
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(options: Options, global: &Global) -> anyhow::Result<ExitCode> {
    let inspection = inspect(&options.model)?;
    match global.format {
        Format::Json => printer::json(&inspection)?,
        Format::Human if options.all => printer::line(&inspection.tree())?,
        Format::Human => printer::line(&inspection.folded_tree())?,
    }
    Ok(ExitCode::Done)
}
