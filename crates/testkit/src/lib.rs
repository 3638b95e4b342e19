//! Test support: golden vectors and fixtures, read through one loader.

mod goldens;

pub use goldens::{GoldenTensor, Goldens, fixture, goldens_dir};
