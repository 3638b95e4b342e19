//! The framework against its golden cases, one module a golden file.
#![allow(clippy::unwrap_used, reason = "tests say what they expect")]

mod distillation;
mod events;
mod frequency;
mod hooks;
mod legacy;
mod lifecycle;
mod loggers;
mod modifier_traces;
mod names;
mod old_event_lifecycles;
mod recipes;
mod round_trip;
mod schema;
mod small_helpers;
mod specs;
mod taps;
mod toys;
