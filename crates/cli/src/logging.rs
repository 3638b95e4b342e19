//! Logs to stderr; `RUST_LOG` rules, the reference's `LLM_COMPRESSOR_*` names are read as aliases.

use std::{
    env,
    io::{self, IsTerminal, Write},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use crate::args::Verbosity;

/// Starts logging to stderr at the level that the environment or `verbosity` asks for.
pub(crate) fn init(verbosity: Verbosity) {
    let level = match verbosity {
        Verbosity::Quiet | Verbosity::Normal => "warn",
        Verbosity::Verbose => "debug",
    };
    let wanted = env::var("RUST_LOG").ok().or_else(reference_level).unwrap_or_else(|| level.to_owned());
    let filter = EnvFilter::try_new(&wanted).unwrap_or_else(|_| EnvFilter::new(level));
    let color = io::stderr().is_terminal() && env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
    // A second subscriber can only exist where tests share a process; keeping the first is right.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(color)
        .with_writer(Forgiving)
        .without_time()
        .with_target(false)
        .try_init();
}

/// `LLM_COMPRESSOR_LOG_DISABLED` and `LLM_COMPRESSOR_LOG_LEVEL`.
fn reference_level() -> Option<String> {
    let truthy = |value: String| matches!(value.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
    if env::var("LLM_COMPRESSOR_LOG_DISABLED").ok().is_some_and(truthy) {
        return Some("off".to_owned());
    }
    let level = env::var("LLM_COMPRESSOR_LOG_LEVEL").ok()?.to_ascii_lowercase();
    Some(if level == "warning" { "warn".to_owned() } else { level })
}

/// Writes to stderr and ignores that it is full or closed: a log line must not end a job.
struct Forgiving;

impl Write for Forgiving {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Forgiving {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}
