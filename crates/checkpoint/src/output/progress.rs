//! How far the tensors of an output are written and hashed.

use std::ops::Range;

/// How far one tensor is.
#[derive(Debug, Default)]
pub(super) enum TensorState {
    #[default]
    Untouched,
    Written(Box<Progress>),
    Committed,
}

/// What of a tensor is written, and the hash over its first bytes.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) hasher: blake3::Hasher,
    pub(super) hashed_bytes: u64,
    /// Written ranges, sorted, apart from one another.
    ranges: Vec<Range<u64>>,
}

impl Progress {
    /// Whether every one of the first `n_bytes` bytes is written.
    pub(super) fn covers(&self, n_bytes: u64) -> bool {
        matches!(&self.ranges[..], [all] if *all == (0..n_bytes))
    }

    /// Notes that these bytes were written from `offset` on.
    pub(super) fn record(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        if offset == self.hashed_bytes && !self.ranges.iter().any(|it| it.start < end && offset < it.end) {
            self.hasher.update(bytes);
            self.hashed_bytes = end;
        } else if offset < self.hashed_bytes {
            // Bytes that are hashed already were written again: the hash is taken from the file instead.
            self.hasher.reset();
            self.hashed_bytes = 0;
        }
        self.ranges.push(offset..end);
        self.ranges.sort_by_key(|it| it.start);
        self.ranges.dedup_by(|next, before| {
            let touch = next.start <= before.end;
            if touch {
                before.end = before.end.max(next.end);
            }
            touch
        });
    }
}
