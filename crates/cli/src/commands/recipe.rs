//! `recipe`: what a recipe means, and what recipes may say.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use llmcompressor::{
    ExitCode,
    model_free::Tolerance,
    recipes::{CheckOptions, check_recipe, field_tables, schema},
};

use crate::{
    args::{Format, Global},
    printer,
    progress::Terminal,
};

/// Check a recipe, or print what recipes may say
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Check(Check),
    /// Print the JSON schema of recipes, for editors
    Schema,
    /// Print the fields of all modifiers as Markdown tables
    Fields,
}

/// Resolve a recipe and print its modifiers in the order in which they run
///
/// Fields are printed with their defaults. Faults are named with line, modifier and field, and with the nearest known
/// names.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  llmcompressor recipe check recipe.yaml
  llmcompressor recipe check recipe.yaml --model ./SmolLM2")]
struct Check {
    /// The recipe: YAML, JSON, or the front matter of a Markdown file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Match targets, ignores and mappings in this model: a directory, or a hub id; only headers are read
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Keep the stages whose name starts with this
    #[arg(long, value_name = "NAME")]
    stage: Option<String>,
    /// Make an error of what is otherwise warned about: ignore patterns that match nothing
    #[arg(long, requires = "model")]
    strict: bool,
}

pub(crate) fn run(options: Options, global: &Global) -> anyhow::Result<ExitCode> {
    let check = match options.what {
        What::Check(check) => check,
        What::Schema => {
            printer::json(&schema())?;
            return Ok(ExitCode::Done);
        }
        What::Fields => {
            printer::line(field_tables().trim_end())?;
            return Ok(ExitCode::Done);
        }
    };
    let job = CheckOptions {
        stage: check.stage,
        model: check.model,
        unmatched_ignore: if check.strict { Tolerance::Refuse } else { Tolerance::Allow },
        ..CheckOptions::new(check.file)
    };
    let checked = check_recipe(&job, &Terminal::new(global.verbosity()))?;
    match global.format {
        Format::Json => printer::json(&checked)?,
        Format::Human => printer::line(&checked.summary())?,
    }
    Ok(ExitCode::Done)
}
