//! Threads that run windows side by side, each a whole window by itself.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Mutex, PoisonError, mpsc},
};

use rayon::ThreadPool;

use crate::error::{ErrorKind, Result};

/// Windows that are begun for each thread and not ended, so that none is idle where windows differ in length.
const BEGUN: usize = 3;

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

    /// How many windows are begun and not ended at most.
    pub fn begun(&self) -> usize {
        if self.0.is_empty() { 1 } else { self.0.len() * BEGUN }
    }

    /// Runs what `begin` gives of each of `n` windows side by side, and hands what comes of it to `end`. Both are called by this
    /// thread, in order.
    ///
    /// The first window runs here by itself, since it brings the weights into memory.
    ///
    /// # Errors
    /// The first error in order; later windows may be left out.
    pub fn stream<I: Send, O: Send, F: Send, E: From<F>>(
        &self,
        n: usize,
        begin: impl FnMut(usize) -> Result<I, E>,
        run: impl Fn(I) -> Result<O, F> + Sync,
        end: impl FnMut(usize, O) -> Result<(), E>,
    ) -> Result<(), E> {
        self.stream_behind(1, n, begin, run, end)
    }

    /// As [`Lanes::stream`], where so many windows run by themselves before the others: none where the weights are in memory.
    ///
    /// # Errors
    /// As [`Lanes::stream`].
    pub fn stream_behind<I: Send, O: Send, F: Send, E: From<F>>(
        &self,
        n_alone: usize,
        n: usize,
        mut begin: impl FnMut(usize) -> Result<I, E>,
        run: impl Fn(I) -> Result<O, F> + Sync,
        mut end: impl FnMut(usize, O) -> Result<(), E>,
    ) -> Result<(), E> {
        let n_alone = if self.0.is_empty() { n } else { n.min(n_alone) };
        for idx in 0..n_alone {
            let item = begin(idx)?;
            end(idx, run(item)?)?;
        }
        let (jobs, waiting) = mpsc::channel::<(usize, I)>();
        let (results, made) = mpsc::channel();
        let waiting = Mutex::new(waiting);
        let work = |results: mpsc::Sender<_>| {
            let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
            while let Ok((idx, item)) = next() {
                let result = catch_unwind(AssertUnwindSafe(|| run(item)));
                if results.send((idx, result)).is_err() {
                    break;
                }
            }
        };
        std::thread::scope(|scope| {
            // What is dropped when this thread stops ends the others.
            let (jobs, made) = (jobs, made);
            for lane in self.0.iter().take(n - n_alone) {
                let (results, work) = (results.clone(), &work);
                scope.spawn(move || lane.install(|| work(results)));
            }
            let mut early = BTreeMap::new();
            let (mut n_begun, mut n_ended) = (n_alone, n_alone);
            while n_ended < n {
                while n_begun < n && n_begun - n_ended < self.begun() {
                    // A thread that is gone has left its panic among the results.
                    let _ = jobs.send((n_begun, begin(n_begun)?));
                    n_begun += 1;
                }
                let Ok((idx, result)) = made.recv() else { break };
                early.insert(idx, result.unwrap_or_else(|panic| resume_unwind(panic)));
                while let Some(result) = early.remove(&n_ended) {
                    end(n_ended, result?)?;
                    n_ended += 1;
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn windows_end_in_order_and_run_on_threads_of_their_own() {
        for n in [0, 1, 2, 5] {
            let lanes = Lanes::new(n).unwrap();
            let (mut begun, mut ended) = (0, Vec::new());
            let run = |it: usize| Ok::<_, ()>((it * it, rayon::current_num_threads()));
            let begin = |idx| {
                begun += 1;
                assert_eq!(begun, idx + 1);
                Ok::<_, ()>(idx)
            };
            let end = |idx, made| {
                ended.push((idx, made));
                Ok(())
            };
            lanes.stream(40, begin, run, end).unwrap();
            assert!(ended.iter().map(|it| (it.0, it.1.0)).eq((0..40).map(|it| (it, it * it))));
            assert!(n < 2 || ended[1..].iter().all(|it| it.1.1 == 1));
        }
    }

    #[test]
    fn no_more_are_begun_than_may_wait_and_an_error_ends_the_work() {
        let lanes = Lanes::new(2).unwrap();
        let n_open = AtomicUsize::new(0);
        let begin = |idx| {
            assert!(n_open.fetch_add(1, Ordering::SeqCst) < lanes.begun());
            Ok::<_, usize>(idx)
        };
        let end = |idx, _| {
            n_open.fetch_sub(1, Ordering::SeqCst);
            if idx == 100 { Err(idx) } else { Ok(()) }
        };
        assert_eq!(lanes.stream(10_000, begin, |it| if it == 40 { Err(it) } else { Ok(it) }, end), Err(40));
        assert!(n_open.into_inner() <= lanes.begun());
        assert_eq!(
            lanes.stream(10_000, Ok, Ok::<usize, usize>, |idx, _| if idx == 100 { Err(idx) } else { Ok(()) }),
            Err(100)
        );
    }

    #[test]
    fn a_panic_on_a_thread_is_one_here() {
        let run = |it: usize| if it == 7 { panic!("window {it}") } else { Ok::<_, ()>(it) };
        let all = || {
            let lanes = Lanes::new(2).unwrap();
            let over: Result<(), ()> = lanes.stream(20, Ok, run, |_, _| Ok(()));
            over
        };
        let panic = catch_unwind(all).unwrap_err();
        assert_eq!(panic.downcast_ref::<String>().map(String::as_str), Some("window 7"));
    }
}
