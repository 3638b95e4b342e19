//! `explain`: what one name means.

use clap::Args;
use llmcompressor::{ExitCode, explain::explain};

use crate::{
    args::{Format, Global},
    printer,
};

/// Explain a scheme, format, converter, observer or modifier by name
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The name, as `list` prints it
    #[arg(value_name = "NAME")]
    name: String,
}

pub(crate) fn run(options: &Options, global: &Global) -> anyhow::Result<ExitCode> {
    let page = explain(&options.name)?;
    match global.format {
        Format::Json => printer::json(&page)?,
        Format::Human => printer::line(&page.text())?,
    }
    Ok(ExitCode::Done)
}
