//! Checks against the golden vectors.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod observers;
