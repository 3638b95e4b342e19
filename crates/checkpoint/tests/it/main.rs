//! Integration tests of the checkpoint crate: good directories, every kind of bad one, and mutated headers.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod hub;
mod malformed;
mod model_dir;
mod mutated;
mod reading;
mod scheduling;
mod writing;
