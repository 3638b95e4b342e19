//! Checks of this crate against the golden vectors and against its own properties.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod args;
mod casts;
mod codecs;
mod compressor;
mod converters;
mod dynamic;
mod golden;
mod logic;
mod matching;
mod models;
mod observers;
mod packing;
mod sparse;
mod totals;
mod transforms;
mod weight_maps;
mod weights;
