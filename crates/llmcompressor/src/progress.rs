//! How a long job tells what it does and hears that it should stop.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// What the input of a phase is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Bytes of tensors.
    Bytes,
    /// Tokens of a text.
    Tokens,
}

/// Receives the progress of a job; every method may be called from any thread.
pub trait Progress: Sync {
    /// A phase begins that will process `total` of input, counted in `unit`.
    fn begin(&self, phase: &str, total: u64, unit: Counted);
    /// `amount` more of the phase's input is done.
    fn advance(&self, amount: u64);
    /// The phase is over.
    fn end(&self);
    /// Something a person should know, said once.
    fn warn(&self, text: &str);
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _phase: &str, _total: u64, _unit: Counted) {}
    fn advance(&self, _amount: u64) {}
    fn end(&self) {}
    fn warn(&self, _text: &str) {}
}

/// A request to stop at the next safe point, shared between a signal handler and a job.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicUsize>);

impl Interrupt {
    /// The cell a signal handler stores the signal's number into.
    pub fn cell(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.0)
    }

    /// The signal that asked to stop, if one did.
    pub fn signal(&self) -> Option<i32> {
        let value = self.0.load(Ordering::Relaxed);
        (value != 0).then_some(value as i32)
    }

    /// Asks to stop, as signal number `signal` would.
    pub fn raise(&self, signal: i32) {
        self.0.store(signal as usize, Ordering::Relaxed);
    }
}
