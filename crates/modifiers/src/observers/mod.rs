//! Observers: they watch weights, activations and attention states and find the scales to quantize them with.
//!
//! [`OBSERVERS`] lists them all; [`weight_observer`] and [`activation_observer`] say which one a tensor gets.
//! [`Observer`] watches values in memory, batch by batch. [`WeightSearch`] is the streaming form for weights: row slabs in,
//! scales out, with the same results.

mod exact_sum;
mod fused;
mod importance;
mod improvements;
mod observer;
pub mod power;
pub mod reference;
mod registry;
mod search;
mod searched;
mod settings;
mod survey;
mod tensor_observer;
mod weight_search;

pub use fused::{FUSED_LINEARS, fused_groups, fused_modules, fused_qparams};
pub use importance::Importance;
pub use observer::{Observed, Observer, Partial, Reduction, Role};
pub use registry::{
    Choice, Memory, OBSERVERS, Observation, ObserverEntry, activation_observer, find_observer, weight_observer,
};
pub use searched::{SearchResult, SearchedRanges};
pub use settings::{ObserverSettings, SearchKind, SearchSettings};
pub use survey::{Outcome, Survey};
pub use tensor_observer::TensorObserver;
pub use weight_search::{SlabSearch, WeightSearch};
