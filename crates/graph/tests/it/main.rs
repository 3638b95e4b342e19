//! Graph functions against the reference's results, and properties of partitions.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

mod goldens;
mod properties;
