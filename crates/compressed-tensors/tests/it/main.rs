//! Checks of this crate against the golden vectors and against its own properties.

mod casts;
mod compressor;
mod golden;
mod logic;
mod packing;
mod sparse;
mod transforms;
mod weight_maps;
mod weights;
