//! Turns an error into its message and its exit code.

use std::{
    io::{self, Write},
    process,
};

use llmcompressor::ExitCode;

/// Prints what clap has to say; help and version are no faults.
pub(crate) fn usage(error: &clap::Error) -> process::ExitCode {
    let _ = error.print();
    let code = if error.use_stderr() { ExitCode::Usage } else { ExitCode::Done };
    code.code().into()
}

/// Prints the chain of causes once and names the exit code.
pub(crate) fn report(error: &anyhow::Error) -> process::ExitCode {
    let mut text = format!("error: {error}");
    for cause in error.chain().skip(1) {
        text.push_str(&format!("\n  caused by: {cause}"));
    }
    let own = error.downcast_ref::<llmcompressor::Error>();
    if let Some(hint) = own.and_then(llmcompressor::Error::hint) {
        text.push_str(&format!("\n  hint: {hint}"));
    }
    let _ = writeln!(io::stderr().lock(), "{}", visible(&text));
    own.map_or(ExitCode::Unexpected, llmcompressor::Error::exit_code).code().into()
}

/// Names from files may hold control characters; they are shown escaped.
fn visible(text: &str) -> String {
    let plain =
        |c: char| c == '\n' || !(c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'));
    text.chars().map(|c| if plain(c) { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}
