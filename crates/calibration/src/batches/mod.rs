//! From token samples to batches: cutting, filling, joining, labels, order.

mod batch;
mod collate;
mod concatenate;
mod labels;
mod order;
mod sample;
mod shard;

pub use batch::{Batch, BatchColumn, BatchData};
pub(crate) use collate::fill_row;
pub use collate::{Collator, collate};
pub use concatenate::{Remainder, concatenate};
pub use labels::{IGNORED_LABEL, add_labels};
pub use order::{Sampler, by_descending_length, shuffled, torch_random_sampler};
pub use sample::{Column, Sample, sample_from_row};
pub use shard::{rank_partition, shard};
