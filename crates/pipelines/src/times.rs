//! How long the parts of a run took, and how often it went over the data.

use std::{
    ops::AddAssign,
    time::{Duration, Instant},
};

/// Time by part, and the number of passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Passes that modifiers heard.
    pub listen: Duration,
    /// How many of these there were: over all batches, each through the modules of one wave.
    pub passes: usize,
    /// Changes by modifiers.
    pub change: Duration,
    /// Storing what is final, and replaying what was.
    pub commit: Duration,
    /// Passes for the next wave.
    pub propagate: Duration,
}

impl Times {
    /// The time since an earlier look.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            listen: self.listen.saturating_sub(earlier.listen),
            passes: self.passes.saturating_sub(earlier.passes),
            change: self.change.saturating_sub(earlier.change),
            commit: self.commit.saturating_sub(earlier.commit),
            propagate: self.propagate.saturating_sub(earlier.propagate),
        }
    }

    /// Seconds under the names of the parts.
    pub fn by_name(&self) -> [(&'static str, f64); 4] {
        [("listen", self.listen), ("change", self.change), ("commit", self.commit), ("propagate", self.propagate)]
            .map(|(name, it)| (name, it.as_secs_f64()))
    }
}

impl AddAssign for Times {
    fn add_assign(&mut self, other: Self) {
        self.listen += other.listen;
        self.passes += other.passes;
        self.change += other.change;
        self.commit += other.commit;
        self.propagate += other.propagate;
    }
}

/// Adds the time that `work` takes to a part.
pub(crate) fn timed<R>(part: &mut Duration, work: impl FnOnce() -> R) -> R {
    let begin = Instant::now();
    let result = work();
    *part += begin.elapsed();
    result
}
