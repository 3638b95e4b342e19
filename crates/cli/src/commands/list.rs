//! `list`: the names that exist.

use clap::{Args, ValueEnum};
use llmcompressor::{
    ExitCode,
    explain::{Topic, list},
};

use crate::{
    args::{Format, Global},
    printer,
};

/// List the names of schemes, formats, converters, observers, modifiers and exit codes
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to list
    #[arg(value_enum)]
    what: What,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Preset schemes
    Schemes,
    /// On-disk formats
    Formats,
    /// Converters between formats
    Converters,
    /// Observers of weights and activations
    Observers,
    /// Modifiers that recipes name
    Modifiers,
    /// Exit codes of this command
    ExitCodes,
}

impl From<What> for Topic {
    fn from(what: What) -> Self {
        match what {
            What::Schemes => Self::Schemes,
            What::Formats => Self::Formats,
            What::Converters => Self::Converters,
            What::Observers => Self::Observers,
            What::Modifiers => Self::Modifiers,
            What::ExitCodes => Self::ExitCodes,
        }
    }
}

pub(crate) fn run(options: &Options, global: &Global) -> anyhow::Result<ExitCode> {
    let entries = list(options.what.into());
    match global.format {
        Format::Json => printer::json(&entries)?,
        Format::Human => {
            let width = entries.iter().map(|it| it.name.len()).max().unwrap_or(0);
            for entry in entries {
                printer::line(&format!("{:width$}  {}", entry.name, entry.summary))?;
            }
        }
    }
    Ok(ExitCode::Done)
}
