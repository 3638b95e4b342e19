//! The `llmcompressor` command: parses, dispatches, prints the error chain once, exits with a documented code.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod failure;
mod logging;
mod printer;
mod progress;
mod signals;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let arguments = match args::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return failure::usage(&error),
    };
    logging::init(arguments.global.verbosity());
    match commands::run(arguments) {
        Ok(code) => code.code().into(),
        Err(error) => failure::report(&error),
    }
}
