//! Pipelines against their golden cases.
#![allow(clippy::unwrap_used, reason = "tests say what they expect")]

mod choice;
