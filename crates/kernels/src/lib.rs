//! CPU kernels on slices, each with its plain reference loop.
//!
//! Every operation is a folder: `mod.rs` states the contract and picks a path, `reference.rs` defines the numbers in plain
//! loops, the other files are fast twins that are compared with it.
//!
//! # Which bits depend on what
//!
//! A result depends on the inputs and on the [`Profile`] alone, never on the number of threads, on how rows are split into
//! calls, or on cache sizes.
//! Work is spread over the rayon pool that is current where the function is called.
//! Multiply-accumulate kernels ([`gemm`], [`syrk`], [`moments`], [`cholesky`], [`gptq_sweep`],
//! [`descent`], [`attention`]) fuse the multiplication with the addition under every profile but the portable one; the AVX2
//! and AVX-512 profiles give the same bits.
//! All other kernels give the same bits under every profile.

pub mod activation;
pub mod attention;
pub mod cast;
pub mod cholesky;
pub mod descent;
pub mod distance;
mod element;
pub mod elementary;
pub mod embedding;
mod error;
pub mod gemm;
pub mod gptq_sweep;
pub mod hadamard;
pub mod layer_norm;
mod matrix;
pub mod moments;
pub mod nll;
mod profile;
pub mod recurrence;
pub mod rms_norm;
pub mod rope;
mod rows;
pub mod softmax;
pub mod syrk;

pub use element::Element;
pub use error::{Error, ErrorKind, Result};
pub use half::{bf16, f16};
pub use matrix::{Mat, MatMut};
pub use profile::{Isa, Profile};
