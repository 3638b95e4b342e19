//! The piece of work that is committed as one, and what a worker lends it.

use checkpoint::{Source, TensorSpec, Writer};

use crate::{error::Result, slabs::Slabs};

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
    ///
    /// # Errors
    /// Faults of reading, of the weights and of writing; `Interrupted`.
    fn run(&self, worker: &Worker<'_>) -> Result<()>;
}

/// What a unit works with.
pub(crate) struct Worker<'a> {
    /// Where it reads.
    pub(crate) source: &'a Source,
    /// Where it writes.
    pub(crate) writer: &'a Writer,
    /// How it cuts rows.
    pub(crate) slabs: Slabs<'a>,
}
