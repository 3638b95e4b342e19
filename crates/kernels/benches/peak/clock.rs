//! Time that a run took: by the wall, or by the processor where other work disturbs the machine.

use std::time::Instant;

/// A running clock.
#[derive(Clone, Copy)]
pub(crate) enum Clock {
    /// Started at.
    Wall(Instant),
    /// Seconds of all threads so far.
    Processor(f64),
}

impl Clock {
    /// Starts a clock; `LLMC_CLOCK=cpu` asks for processor time per thread of the pool (Linux).
    pub(crate) fn start() -> Self {
        if std::env::var_os("LLMC_CLOCK").is_some_and(|value| value == "cpu") {
            Self::Processor(processor_seconds())
        } else {
            Self::Wall(Instant::now())
        }
    }

    /// Seconds since the start.
    pub(crate) fn seconds(self) -> f64 {
        match self {
            Self::Wall(start) => start.elapsed().as_secs_f64(),
            Self::Processor(start) => (processor_seconds() - start) / rayon::current_num_threads() as f64,
        }
    }
}

/// What the scheduler gave to all threads of this process, in seconds.
fn processor_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanoseconds = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    nanoseconds.sum::<f64>() * 1e-9
}
