//! One file per verb; each turns what was typed into options of the library and prints the result.

mod model_free_ptq;

use clap::Subcommand;
use llmcompressor::ExitCode;

use crate::args::{Arguments, Global};

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    ModelFreePtq(model_free_ptq::Options),
}

/// Runs the verb.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let global: &Global = &arguments.global;
    match arguments.command {
        Command::ModelFreePtq(options) => model_free_ptq::run(options, global),
    }
}
