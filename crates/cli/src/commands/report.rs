//! `report`: the page of a finished run, made anew.

use std::path::PathBuf;

use clap::Args;
use llmcompressor::{
    ExitCode,
    oneshot::{OneshotReport, write_page},
};

use crate::{
    args::{Format, Global},
    printer,
};

/// Write report.html of a finished `oneshot` run anew from its report.json
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The output of the run
    #[arg(value_name = "OUT")]
    output: PathBuf,
}

pub(crate) fn run(options: &Options, global: &Global) -> anyhow::Result<ExitCode> {
    let page = write_page(&options.output)?;
    match global.format {
        Format::Json => printer::json(&OneshotReport::of(&options.output)?)?,
        Format::Human => printer::line(&page.display().to_string())?,
    }
    Ok(ExitCode::Done)
}
