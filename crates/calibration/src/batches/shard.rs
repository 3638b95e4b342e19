//! Which part of the samples belongs to which rank.

use std::ops::Range;

use crate::{Result, arguments::invalid};

/// The samples of `rank` out of `world` ranks; sizes differ by one at most and every sample is in one part.
///
/// A `rank` outside `world` has no samples.
pub fn shard(n: usize, rank: usize, world: usize) -> Range<usize> {
    let bound = |r: usize| match world {
        0 => 0,
        // The product of two 64-bit counts fits 128 bits, and the quotient is at most `n`.
        _ => usize::try_from(n as u128 * r.min(world) as u128 / world as u128).unwrap_or(n),
    };
    bound(rank)..bound(rank.saturating_add(1))
}

/// The split expression of `rank` for `n` samples of a split: `train` becomes `train[3:6]`.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) if the split already has boundaries.
pub fn rank_partition(split: &str, n: usize, rank: usize, world: usize) -> Result<String> {
    if split.contains('[') {
        return Err(invalid("splits", &format!("`{split}`"), "a split without boundaries"));
    }
    let Range { start, end } = shard(n, rank, world);
    Ok(format!("{split}[{start}:{end}]"))
}
