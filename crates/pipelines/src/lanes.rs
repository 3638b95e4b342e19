//! Threads that run windows side by side, each a whole window by itself.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use rayon::ThreadPool;

use crate::error::{ErrorKind, Result};

/// Windows that wait for each thread, so that none is idle long where windows differ in length.
const WAITING: usize = 4;

/// One thread, or several of which each computes alone: nothing is handed from core to core within a window.
///
/// What is computed does not depend on how many there are.
#[derive(Debug, Default)]
pub struct Lanes(Vec<ThreadPool>);

impl Lanes {
    /// `n` threads; up to one leaves the work to the current rayon pool.
    ///
    /// # Errors
    /// A system that gives no threads.
    pub fn new(n: usize) -> Result<Self> {
        if n < 2 {
            return Ok(Self::default());
        }
        let alone = |idx| {
            let name = move |_| format!("lane-{idx}");
            rayon::ThreadPoolBuilder::new().num_threads(1).thread_name(name).build()
        };
        let lanes: Result<_, _> = (0..n).map(alone).collect();
        Ok(Self(lanes.map_err(ErrorKind::Threads)?))
    }

    /// How many windows are worth handing over at a time.
    pub fn group(&self) -> usize {
        self.0.len().max(1) * if self.0.is_empty() { 1 } else { WAITING }
    }

    /// What `run` makes of each item, in order.
    ///
    /// # Errors
    /// The first error in the order of items that were begun; others may be left out.
    pub fn each<I: Send, O: Send, E: Send>(
        &self,
        items: Vec<I>,
        run: impl Fn(I) -> Result<O, E> + Sync,
    ) -> Result<Vec<O>, E> {
        if self.0.is_empty() || items.len() < 2 {
            return items.into_iter().map(run).collect();
        }
        let (next, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let waiting: Vec<_> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
        let made: Vec<Mutex<Option<Result<O, E>>>> = waiting.iter().map(|_| Mutex::default()).collect();
        let work = || {
            while !is_over.load(Ordering::Relaxed) {
                let idx = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = waiting.get(idx).and_then(take) else { break };
                let result = run(item);
                is_over.fetch_or(result.is_err(), Ordering::Relaxed);
                *made[idx].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            }
        };
        std::thread::scope(|scope| {
            self.0.iter().for_each(|lane| {
                scope.spawn(|| lane.install(work));
            });
        });
        made.iter().filter_map(take).collect()
    }
}

fn take<T>(slot: &Mutex<Option<T>>) -> Option<T> {
    slot.lock().unwrap_or_else(PoisonError::into_inner).take()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn results_come_in_the_order_of_items_from_threads_of_their_own() {
        for n in [0, 1, 2, 5] {
            let lanes = Lanes::new(n).unwrap();
            let made = lanes.each((0..40).collect(), |it: i32| Ok::<_, ()>((it * it, rayon::current_num_threads())));
            let made = made.unwrap();
            assert!(made.iter().map(|it| it.0).eq((0..40).map(|it| it * it)));
            assert!(n < 2 || made.iter().all(|it| it.1 == 1));
        }
    }

    #[test]
    fn an_error_ends_the_work() {
        let (lanes, begun) = (Lanes::new(2).unwrap(), AtomicUsize::new(0));
        let run = |it: usize| {
            begun.fetch_add(1, Ordering::Relaxed);
            if it == 3 { Err(it) } else { Ok(()) }
        };
        assert_eq!(lanes.each((0..10_000).collect(), run), Err(3));
        assert!(begun.into_inner() < 10_000);
    }
}
