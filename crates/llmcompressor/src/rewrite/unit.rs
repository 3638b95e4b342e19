//! The piece of work that is committed as one, and what a worker lends it.

use std::ops::Range;

use checkpoint::{Source, TensorSpec, Writer};
use rayon::prelude::*;

use super::Pool;
use crate::{
    Interrupt, Progress,
    error::{ErrorKind, Result},
};

/// A tensor of the output and the source shard whose place it takes.
#[derive(Clone, Debug)]
pub(crate) struct PlannedTensor {
    /// Name, dtype and shape.
    pub(crate) spec: TensorSpec,
    /// Index of the source shard that it mirrors.
    pub(crate) shard_idx: usize,
}

/// A piece of work whose outputs are committed together.
///
/// `run` may be called from any thread and spreads its slabs over the pool it runs in; the bytes it writes depend on
/// neither.
pub(crate) trait Unit: Sync + Send {
    /// Name in the journal, unique in the output.
    fn name(&self) -> &str;
    /// Everything that it writes.
    fn outputs(&self) -> &[PlannedTensor];
    /// Dense bytes that it reads, for progress and batching.
    fn input_bytes(&self) -> u64;
    /// Least bytes of buffers that one worker needs for it.
    fn least_bytes(&self) -> u64;
    /// Writes every output.
    fn run(&self, worker: &Worker<'_>) -> Result<()>;
}

/// What a unit works with.
pub(crate) struct Worker<'a> {
    /// Where it reads.
    pub(crate) source: &'a Source,
    /// Where it writes.
    pub(crate) writer: &'a Writer,
    /// Bytes that a slab should have.
    pub(crate) slab_bytes: usize,
    /// Hears of finished input.
    pub(crate) progress: &'a dyn Progress,
    /// Says when to stop.
    pub(crate) interrupt: &'a Interrupt,
    /// Read buffers.
    pub(crate) buffers: &'a Pool<Vec<u8>>,
}

impl Worker<'_> {
    /// Runs `work` on slabs of rows in parallel; slabs begin at multiples of `quantum` rows.
    ///
    /// # Errors
    /// The error of the first slab in order that failed; `Interrupted` where a stop is asked for.
    pub(crate) fn for_each_slab(
        &self,
        rows: usize,
        row_bytes: usize,
        quantum: usize,
        work: impl Fn(Range<usize>) -> Result<()> + Sync,
    ) -> Result<()> {
        slabs(rows, row_bytes, quantum, self.slab_bytes).into_par_iter().with_max_len(1).try_for_each(|slab| {
            self.check_interrupt()?;
            work(slab)
        })
    }

    /// Fails where a stop is asked for.
    pub(crate) fn check_interrupt(&self) -> Result<()> {
        match self.interrupt.signal() {
            Some(signal) => Err(ErrorKind::Interrupted { signal }.into()),
            None => Ok(()),
        }
    }
}

/// Ranges of rows of about `slab_bytes` bytes that cover `0..rows` and begin at multiples of `quantum`.
fn slabs(rows: usize, row_bytes: usize, quantum: usize, slab_bytes: usize) -> Vec<Range<usize>> {
    let quantum = quantum.max(1);
    let fitting = slab_bytes / row_bytes.max(1);
    let step = (fitting / quantum).max(1) * quantum;
    (0..rows).step_by(step).map(|first| first..(first + step).min(rows)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_cover_all_rows_and_begin_at_multiples_of_the_quantum() {
        assert_eq!(slabs(10, 4, 1, 16), [0..4, 4..8, 8..10]);
        assert_eq!(slabs(300, 10, 128, 1500), [0..128, 128..256, 256..300]);
        assert_eq!(slabs(3, 1000, 1, 1), [0..1, 1..2, 2..3]);
        assert_eq!(slabs(5, 0, 1, 100).len(), 1);
        assert!(slabs(0, 4, 1, 16).is_empty());
    }
}
