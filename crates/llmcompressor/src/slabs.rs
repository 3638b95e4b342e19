//! Work on slabs of rows in parallel, under a ceiling of memory, with progress and a way to stop.

use std::{
    io,
    ops::Range,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use rayon::{ThreadPool, ThreadPoolBuilder, prelude::*};

use crate::{
    Interrupt, Progress,
    error::{ErrorKind, Result},
};

/// No slab gains from being larger than this; the caches are smaller.
const LARGEST_SLAB_BYTES: u64 = 8 << 20;
/// Below this a slab costs more calls than work.
const SMALLEST_SLAB_BYTES: u64 = 64 << 10;
/// Buffers that a worker holds at once, in slabs: what is read, and what is made of it.
const SLABS_PER_WORKER: u64 = 3;

/// Values lent to one worker at a time; a new one is made only while all others are lent.
#[derive(Debug, Default)]
pub(crate) struct Pool<T>(Mutex<Vec<T>>);

impl<T: Default> Pool<T> {
    /// Lends a value to `work` and takes it back, whatever `work` answers.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        let lent = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut value = lent.unwrap_or_default();
        let result = work(&mut value);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(value);
        result
    }
}

/// How a memory ceiling is divided among workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Worker threads.
    pub(crate) threads: usize,
    /// Bytes that a slab should have.
    pub(crate) slab_bytes: usize,
}

impl Budget {
    /// Divides `max_bytes` among `threads` workers (0: one per core), fewer where the needs are larger; `needs` are
    /// the least bytes of one worker by name.
    ///
    /// # Errors
    /// `Memory` where the ceiling is below the largest need.
    pub(crate) fn divide<'n>(
        needs: impl IntoIterator<Item = (&'n str, u64)>,
        threads: usize,
        max_bytes: u64,
    ) -> Result<Self> {
        let wanted = match threads {
            0 => thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let (module, largest) = needs.into_iter().max_by_key(|it| it.1).unwrap_or_default();
        let least = largest.max(SLABS_PER_WORKER * SMALLEST_SLAB_BYTES);
        if least > max_bytes {
            let kind = ErrorKind::Memory { module: module.to_owned(), needed_bytes: least, allowed_bytes: max_bytes };
            return Err(kind.into());
        }
        let threads = (max_bytes / least).min(wanted as u64).max(1);
        let slab = (max_bytes / threads / SLABS_PER_WORKER).clamp(SMALLEST_SLAB_BYTES, LARGEST_SLAB_BYTES);
        Ok(Self { threads: threads as usize, slab_bytes: slab as usize })
    }

    /// Bytes of a ceiling that the workers leave, given the least bytes of the largest need.
    pub(crate) fn spare_bytes(&self, largest_need: u64, max_bytes: u64) -> u64 {
        let worker = largest_need.max(SLABS_PER_WORKER * self.slab_bytes as u64);
        max_bytes.saturating_sub(worker.saturating_mul(self.threads as u64))
    }

    /// The worker threads.
    ///
    /// # Errors
    /// `File` where the system gives no threads.
    pub(crate) fn thread_pool(&self) -> Result<ThreadPool> {
        ThreadPoolBuilder::new().num_threads(self.threads).build().map_err(|source| {
            ErrorKind::File { path: PathBuf::from("worker threads"), source: io::Error::other(source) }.into()
        })
    }
}

/// Memory that the workers leave, for results that are otherwise computed again.
#[derive(Debug, Default)]
pub(crate) struct Spare(AtomicU64);

impl Spare {
    /// So many bytes.
    pub(crate) fn of(bytes: u64) -> Self {
        Self(AtomicU64::new(bytes))
    }

    /// Takes `bytes`, where there are as many.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    /// Gives back what was taken.
    pub(crate) fn give_back(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Cuts rows into slabs and runs work on them.
pub(crate) struct Slabs<'a> {
    /// Bytes that a slab should have.
    pub(crate) slab_bytes: usize,
    /// Hears of finished input.
    pub(crate) progress: &'a dyn Progress,
    /// Says when to stop.
    pub(crate) interrupt: &'a Interrupt,
    /// Read buffers.
    pub(crate) buffers: Pool<Vec<u8>>,
    /// What else may be held.
    pub(crate) spare: Spare,
}

impl<'a> Slabs<'a> {
    /// Slabs of the size that `budget` allows.
    pub(crate) fn new(budget: &Budget, progress: &'a dyn Progress, interrupt: &'a Interrupt) -> Self {
        let spare = Spare::default();
        Self { slab_bytes: budget.slab_bytes, progress, interrupt, buffers: Pool::default(), spare }
    }

    /// Runs `work` on slabs of rows in parallel, in the pool that the caller runs in, and returns the answers in
    /// the order of rows; slabs begin at multiples of `quantum` rows.
    ///
    /// # Errors
    /// The error of a slab that failed; `Interrupted` where a stop is asked for.
    pub(crate) fn map<R: Send>(
        &self,
        rows: usize,
        row_bytes: usize,
        quantum: usize,
        work: impl Fn(Range<usize>) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let slabs = cut(rows, row_bytes, quantum, self.slab_bytes);
        let work = |slab| {
            self.check_interrupt()?;
            work(slab)
        };
        slabs.into_par_iter().with_max_len(1).map(work).collect()
    }

    /// As [`map`](Self::map), without answers.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub(crate) fn for_each(
        &self,
        rows: usize,
        row_bytes: usize,
        quantum: usize,
        work: impl Fn(Range<usize>) -> Result<()> + Sync,
    ) -> Result<()> {
        self.map(rows, row_bytes, quantum, work).map(drop)
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
fn cut(rows: usize, row_bytes: usize, quantum: usize, slab_bytes: usize) -> Vec<Range<usize>> {
    let quantum = quantum.max(1);
    let fitting = slab_bytes / row_bytes.max(1);
    let step = (fitting / quantum).max(1).saturating_mul(quantum);
    (0..rows).step_by(step).map(|first| first..first.saturating_add(step).min(rows)).collect()
}

/// The least number of rows that both agree to cut at.
pub(crate) fn least_common_multiple(a: usize, b: usize) -> usize {
    let (a, b) = (a.max(1), b.max(1));
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x).saturating_mul(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slabs_cover_all_rows_and_begin_at_multiples_of_the_quantum() {
        assert_eq!(cut(10, 4, 1, 16), [0..4, 4..8, 8..10]);
        assert_eq!(cut(300, 10, 128, 1500), [0..128, 128..256, 256..300]);
        assert_eq!(cut(3, 1000, 1, 1), [0..1, 1..2, 2..3]);
        assert_eq!(cut(5, 0, 1, 100).len(), 1);
        assert!(cut(0, 4, 1, 16).is_empty());
    }

    #[test]
    fn a_returned_value_is_lent_again() {
        let pool = Pool::<Vec<u8>>::default();
        pool.with(|it| it.resize(10, 1));
        pool.with(|it| assert_eq!(it.len(), 10));
        pool.with(|_| pool.with(|inner| assert!(inner.is_empty())));
    }

    #[test]
    fn a_ceiling_below_the_largest_need_is_refused_with_the_number() {
        let error = Budget::divide([("small", 1), ("large", 10 << 20)], 2, 4 << 20).unwrap_err();
        let ErrorKind::Memory { module, needed_bytes, .. } = error.kind() else { panic!("{error}") };
        assert_eq!((module.as_str(), *needed_bytes), ("large", 10 << 20));
    }

    #[test]
    fn few_large_needs_take_fewer_threads() {
        assert_eq!(Budget::divide([("m", 100 << 20)], 8, 256 << 20).unwrap().threads, 2);
        assert_eq!(Budget::divide([("m", 1)], 8, 256 << 20).unwrap().slab_bytes, 8 << 20);
    }

    #[test]
    fn what_the_workers_leave_is_lent_once() {
        let budget = Budget::divide([("m", 1)], 2, 64 << 20).unwrap();
        assert_eq!((budget.slab_bytes, budget.spare_bytes(1, 64 << 20)), (8 << 20, 16 << 20));
        let large = Budget::divide([("m", 32 << 20)], 8, 64 << 20).unwrap();
        assert_eq!((large.threads, large.spare_bytes(32 << 20, 64 << 20)), (2, 0));
        let spare = Spare::of(10);
        assert!(spare.take(7) && !spare.take(4) && spare.take(3));
        spare.give_back(7);
        assert!(spare.take(7));
    }

    #[test]
    fn multiples_are_least() {
        assert_eq!(least_common_multiple(128, 32), 128);
        assert_eq!(least_common_multiple(6, 4), 12);
        assert_eq!(least_common_multiple(0, 5), 5);
    }
}
