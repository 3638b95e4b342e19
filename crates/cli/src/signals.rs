//! SIGINT, SIGTERM and SIGHUP ask the running job to stop at its next safe point; the same signal again ends it at once.

use std::sync::{Arc, atomic::AtomicBool};

use llmcompressor::Interrupt;
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    flag,
};

/// Connects the signals with `interrupt`.
pub(crate) fn connect(interrupt: &Interrupt) -> anyhow::Result<()> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // The conditional default is registered first, so it acts only on a signal that finds the flag already set.
        let seen = Arc::new(AtomicBool::new(false));
        flag::register_conditional_default(signal, Arc::clone(&seen))?;
        flag::register(signal, seen)?;
        flag::register_usize(signal, interrupt.cell(), signal.unsigned_abs() as usize)?;
    }
    Ok(())
}
