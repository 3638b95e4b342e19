//! Checks of this crate against the golden vectors and against its own properties.

mod logic;
mod transforms;
