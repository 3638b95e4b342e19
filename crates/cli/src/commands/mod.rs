//! One file per verb; each turns what was typed into options of the library and prints the result.

mod convert;
mod eval;
mod explain;
mod generate;
mod inspect;
mod list;
mod model_free_ptq;
mod oneshot;
mod recipe;
mod report;
mod trace;
mod verify;

use clap::Subcommand;
use llmcompressor::ExitCode;

use crate::args::{Arguments, Global};

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Oneshot(oneshot::Options),
    ModelFreePtq(model_free_ptq::Options),
    Convert(convert::Options),
    Eval(eval::Options),
    Generate(generate::Options),
    Inspect(inspect::Options),
    Trace(trace::Options),
    Verify(verify::Options),
    Report(report::Options),
    Recipe(recipe::Options),
    List(list::Options),
    Explain(explain::Options),
}

/// Runs the verb.
pub(crate) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let global: &Global = &arguments.global;
    match arguments.command {
        Command::Oneshot(options) => oneshot::run(options, global),
        Command::ModelFreePtq(options) => model_free_ptq::run(options, global),
        Command::Convert(options) => convert::run(options, global),
        Command::Eval(options) => eval::run(options, global),
        Command::Generate(options) => generate::run(options, global),
        Command::Inspect(options) => inspect::run(options, global),
        Command::Trace(options) => trace::run(options, global),
        Command::Verify(options) => verify::run(options, global),
        Command::Report(options) => report::run(&options, global),
        Command::Recipe(options) => recipe::run(options, global),
        Command::List(options) => list::run(&options, global),
        Command::Explain(options) => explain::run(&options, global),
    }
}
