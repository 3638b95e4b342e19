//! Streams a checkpoint into another one: units of work through worker threads, committed in batches, resumable.

mod copy;
mod densify;
mod run;
mod shards;
mod split;
mod unit;

pub(crate) use copy::CopyTensor;
pub(crate) use densify::DensifyModule;
pub(crate) use run::{Facts, Rewrite, Rewritten, Settings};
pub(crate) use split::SplitTensor;
pub(crate) use unit::{PlannedTensor, Unit, Worker};
