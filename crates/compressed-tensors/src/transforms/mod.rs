//! Transforms: rotations of weights and activations that quantize better and leave the model's function.

mod apply;
mod config;
mod factory;
mod hadamard;
mod matrix;
mod mersenne_twister;
mod precision;

pub use apply::{WeightKind, apply_to_activation, apply_to_weight};
pub use config::{TransformArgs, TransformConfig, TransformLocation, TransformScheme, TransformType};
pub use factory::{TransformFactory, saved_tensors};
pub use hadamard::{KnownHadamard, known_sizes};
pub use matrix::TransformMatrix;
pub use mersenne_twister::{DEFAULT_SEED, MersenneTwister};
pub use precision::Precision;
