//! A model directory that is written: laid out up front, filled in any order, committed unit by unit.
//!
//! All work happens in `OUT/.llmc/`: the lock, `plan.json` with the fingerprints, `journal.jsonl`, and the shards
//! at their planned sizes. Finishing renames the shards, then writes side files, the index, and `config.json`
//! last; until that exists no loader accepts the directory.

mod clearing;
mod disk;
mod finish;
mod guard;
mod journal;
mod layout;
mod lock;
mod progress;
mod record;
mod shard_files;
mod unit_files;
mod writer;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use indexmap::IndexMap;

pub use finish::{Finish, Finished, Generated, IndexRule, replace_generated};
pub use journal::{DoneUnit, UnitCommit};
pub use layout::{ShardPlan, TensorSpec};
pub use writer::{Opened, Resumed, Writer};

/// Folder of everything that a finished output does not have.
pub const WORK_DIR: &str = ".llmc";

/// What a run is going to write, and what it is made from.
#[derive(Clone, Debug, Default)]
pub struct OutputPlan {
    /// The output directory; created where it is absent.
    pub dir: PathBuf,
    /// The shards with every tensor whose size is known.
    pub shards: Vec<ShardPlan>,
    /// Hashes of what determines the bytes, by name: source, recipe, settings, numerics profile, tool version.
    /// The layout joins them by itself under `layout`.
    pub fingerprints: IndexMap<String, String>,
    /// Directories and files that are read ([`Source::paths`](crate::Source::paths)); the output must be apart.
    pub inputs: Vec<PathBuf>,
    /// What to do with an output that exists.
    pub existing: Existing,
    /// Bytes beside the shards: side files, files of units, scratch.
    pub extra_bytes: u64,
}

/// What to do with an output that exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// Resume what the same plan began; refuse everything else.
    #[default]
    Resume,
    /// Remove the outputs of an earlier run and start afresh.
    Overwrite,
}
