//! Tensors with budgeted storage and the fused operations that models need.
//!
//! [`Tensor`] is a view (dtype, shape, strides) of shared storage; [`Budget`] accounts every large buffer; [`Op`] is an
//! operation as a value: it says which [`Spec`]s come out for which go in, with symbolic extents or known ones, and computes.
//! Every result is rounded to its declared dtype.
#![forbid(unsafe_code)]

mod budget;
mod buffer;
mod elements;
mod engine;
mod error;
mod growing;
mod laid_out;
mod op;
mod spec;
mod view;

pub use budget::{ACCOUNTED_BYTES, Budget, Lease};
pub use buffer::Scalar;
pub use compressed_tensors::DType;
pub use engine::{Engine, Routing};
pub use error::{Error, ErrorKind, Result};
pub use growing::Growing;
pub use kernels::Profile;
pub use kernels::activation::Activation;
pub use kernels::attention::Mask;
pub use kernels::elementary;
pub use kernels::gemm::int8::Scales;
pub use kernels::nll;
pub use kernels::rms_norm::Rounded;
pub use kernels::rope::{Pairing, inverse_frequencies};
pub use laid_out::LaidOut;
pub use op::{
    Attention, CodedLinear, GroupScore, Groups, LongFrequencies, Longer, Normalize, Op, Presence, Route, Scores,
    expert_rows, grouped_linear, indices,
};
pub use spec::{Dim, Spec, Symbol};
pub use view::Tensor;
