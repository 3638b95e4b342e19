//! The intermediates cache: what flows from one subgraph to the next, batch by batch.

mod cache;
mod entry;
mod prefetch;
mod slot;

pub use cache::{CacheSize, IntermediatesCache, SpillSettings};
pub use entry::{CachedValue, Entry};
pub use prefetch::Prefetch;
