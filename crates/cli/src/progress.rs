//! Progress on stderr: a bar with rate and ETA on a terminal, plain lines otherwise, warnings alone when quiet.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use llmcompressor::{Counted, Progress};

use crate::args::Verbosity;

/// Where there is no bar, a line now and then says that the job is alive.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// What a person sees of a running job.
pub(crate) struct Terminal {
    style: Style,
    phase: Mutex<Option<Phase>>,
}

enum Style {
    Bar,
    Lines,
    /// Only warnings.
    Nothing,
}

struct Phase {
    name: String,
    unit: Counted,
    total: u64,
    done: AtomicU64,
    began: Instant,
    said: Instant,
    bar: Option<ProgressBar>,
}

impl Terminal {
    /// Chooses the form by `verbosity` and by whether stderr is a terminal.
    pub(crate) fn new(verbosity: Verbosity) -> Self {
        let style = match verbosity {
            Verbosity::Quiet => Style::Nothing,
            _ if io::stderr().is_terminal() => Style::Bar,
            _ => Style::Lines,
        };
        Self { style, phase: Mutex::new(None) }
    }

    /// Says a line about what was done.
    pub(crate) fn tell(&self, text: &str) {
        if !matches!(self.style, Style::Nothing) {
            say(text);
        }
    }

    fn with_phase(&self, act: impl FnOnce(&mut Option<Phase>)) {
        act(&mut self.phase.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Progress for Terminal {
    fn begin(&self, name: &str, total: u64, unit: Counted) {
        let bar = matches!(self.style, Style::Bar).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template = match unit {
                Counted::Bytes => {
                    "{msg:<12} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} eta {eta}"
                }
                Counted::Tokens => "{msg:<12} {wide_bar} {human_pos}/{human_len} tokens {per_sec} eta {eta}",
            };
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(name.to_owned());
            bar
        });
        self.with_phase(|phase| {
            *phase = Some(Phase {
                name: name.to_owned(),
                unit,
                total,
                done: AtomicU64::new(0),
                began: Instant::now(),
                said: Instant::now(),
                bar,
            });
        });
    }

    fn advance(&self, amount: u64) {
        self.with_phase(|phase| {
            let Some(phase) = phase else { return };
            let done = phase.done.fetch_add(amount, Ordering::Relaxed) + amount;
            if let Some(bar) = &phase.bar {
                bar.set_position(done);
            }
            if matches!(self.style, Style::Lines) && phase.said.elapsed() >= BETWEEN_LINES {
                phase.said = Instant::now();
                say(&format!("{}: {} of {}", phase.name, shown(done, phase.unit), shown(phase.total, phase.unit)));
            }
        });
    }

    fn end(&self) {
        self.with_phase(|phase| {
            let Some(phase) = phase.take() else { return };
            if let Some(bar) = &phase.bar {
                bar.finish_and_clear();
            }
            if !matches!(self.style, Style::Nothing) {
                let seconds = phase.began.elapsed().as_secs_f64();
                let rate = phase.done.load(Ordering::Relaxed) as f64 / seconds.max(1e-9);
                let rate = match phase.unit {
                    Counted::Bytes => format!("{:.2} GB/s", rate / 1e9),
                    Counted::Tokens => format!("{rate:.0} tokens/s"),
                };
                say(&format!("{}: {} in {seconds:.1} s, {rate}", phase.name, shown(phase.total, phase.unit)));
            }
        });
    }

    fn warn(&self, text: &str) {
        self.with_phase(|phase| {
            let print = || say(&format!("warning: {text}"));
            match phase.as_ref().and_then(|it| it.bar.as_ref()) {
                Some(bar) => bar.suspend(print),
                None => print(),
            }
        });
    }
}

fn shown(amount: u64, unit: Counted) -> String {
    match unit {
        Counted::Bytes => ByteSize(amount).to_string(),
        Counted::Tokens => format!("{amount} tokens"),
    }
}

/// A line on stderr; that stderr is closed must not end a job.
fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
