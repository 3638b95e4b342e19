//! How one tensor is quantized: `QuantizationArgs`, its fields, defaults and validation.

use serde_json::{Map, Value};

use crate::DType;

/// Integer or floating-point codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantizationType {
    /// Two's complement integers.
    Int,
    /// e4m3 (8 bits) or e2m1 (4 bits).
    Float,
}

/// Which elements share one scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantizationStrategy {
    /// All of them.
    Tensor,
    /// A row.
    Channel,
    /// A run of `group_size` columns in a row.
    Group,
    /// A tile of `block_structure`.
    Block,
    /// A token of an activation.
    Token,
    /// As group, with a second, global scale.
    TensorGroup,
    /// An attention head.
    AttnHead,
}

/// When activation scales are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dynamic {
    /// During calibration.
    No,
    /// On every call.
    Yes,
    /// Group scales on every call, the global scale during calibration.
    Local,
}

/// Order in which GPTQ visits columns; `static` is kept as written and equals `weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActivationOrdering {
    /// By activation magnitude, groups stay contiguous.
    Weight,
    /// The other spelling of `weight`.
    Static,
}

/// How one tensor is quantized (spec formats.md section 2).
///
/// Built only through validation: `strategy` and `zp_dtype` are filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizationArgs {
    /// Width of a code; not range-checked, as in the reference.
    pub num_bits: i64,
    /// Kind of code.
    pub r#type: QuantizationType,
    /// Whether the zero point is fixed at 0.
    pub symmetric: bool,
    /// Columns that share a scale; -1 is kept as written.
    pub group_size: Option<i64>,
    /// Which elements share a scale.
    pub strategy: QuantizationStrategy,
    /// Tile of the block strategy, rows then columns.
    pub block_structure: Option<[usize; 2]>,
    /// When scales are found.
    pub dynamic: Dynamic,
    /// GPTQ's column order.
    pub actorder: Option<ActivationOrdering>,
    /// Type of the scale on disk where it differs from the weight's.
    pub scale_dtype: Option<DType>,
    /// Type of the zero point.
    pub zp_dtype: Option<DType>,
    /// Name of the observer.
    pub observer: Option<String>,
    /// The observer's arguments.
    pub observer_kwargs: Map<String, Value>,
}
