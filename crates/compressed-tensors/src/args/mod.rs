//! How one tensor is quantized: `QuantizationArgs`, its fields, defaults, validation and JSON form.

mod builder;
mod read;

use std::hash::{Hash, Hasher};

use serde_json::{Map, Value, json};

pub use builder::ArgsBuilder;

use builder::storage_dtype;

use crate::{DType, Reader, Result};

/// Integer or floating-point codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantizationType {
    /// Two's complement integers.
    Int,
    /// e4m3 (8 bits) or e2m1 (4 bits).
    Float,
}

impl QuantizationType {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int => "int",
            Self::Float => "float",
        }
    }
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

impl QuantizationStrategy {
    /// Every strategy, in the reference's order.
    pub const ALL: [Self; 7] =
        [Self::Tensor, Self::Channel, Self::Group, Self::Block, Self::Token, Self::TensorGroup, Self::AttnHead];

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tensor => "tensor",
            Self::Channel => "channel",
            Self::Group => "group",
            Self::Block => "block",
            Self::Token => "token",
            Self::TensorGroup => "tensor_group",
            Self::AttnHead => "attn_head",
        }
    }
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

impl Dynamic {
    /// The form in JSON.
    pub fn to_json(self) -> Value {
        match self {
            Self::No => json!(false),
            Self::Yes => json!(true),
            Self::Local => json!("local"),
        }
    }
}

/// Order in which GPTQ visits columns; `static` is kept as written and equals `weight`.
#[derive(Clone, Copy, Debug, Eq)]
pub enum ActivationOrdering {
    /// By activation magnitude, groups stay contiguous.
    Weight,
    /// The other spelling of `weight`.
    Static,
    /// By activation magnitude, groups follow the order and `weight_g_idx` says which column is in
    /// which group. Only read from checkpoints that hold it; refused everywhere else.
    Group,
}

impl ActivationOrdering {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Static => "static",
            Self::Group => "group",
        }
    }

    fn is_group(self) -> bool {
        self == Self::Group
    }
}

impl PartialEq for ActivationOrdering {
    fn eq(&self, other: &Self) -> bool {
        matches!(self, Self::Group) == matches!(other, Self::Group)
    }
}

impl Hash for ActivationOrdering {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.is_group().hash(state);
    }
}

/// How one tensor is quantized (spec formats.md section 2).
///
/// Built only through validation ([`QuantizationArgs::from_json`], [`ArgsBuilder::build`]): `strategy`
/// and `zp_dtype` are filled in there.
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

impl QuantizationArgs {
    /// Reads and validates a JSON object as the reference's current schema does.
    ///
    /// # Errors
    /// `InvalidField`, `UnknownField`, and `Unsupported` for a float width without a storage type.
    pub fn from_json(value: &Value) -> Result<Self> {
        Self::read(value, Reader::Strict)
    }

    /// As [`from_json`](Self::from_json), and takes the group order of old checkpoints as well.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn from_checkpoint_json(value: &Value) -> Result<Self> {
        Self::read(value, Reader::Checkpoint)
    }

    /// The twelve keys of the reference, nulls included; `zp_dtype` is null where `symmetric`.
    pub fn to_json(&self) -> Value {
        let dtype = |it: Option<DType>| it.map(torch_path);
        json!({
            "num_bits": self.num_bits,
            "type": self.r#type.name(),
            "symmetric": self.symmetric,
            "group_size": self.group_size,
            "strategy": self.strategy.name(),
            "block_structure": self.block_structure,
            "dynamic": self.dynamic.to_json(),
            "actorder": self.actorder.map(ActivationOrdering::name),
            "scale_dtype": dtype(self.scale_dtype),
            "zp_dtype": dtype(self.zp_dtype.filter(|_| !self.symmetric)),
            "observer": self.observer,
            "observer_kwargs": self.observer_kwargs,
        })
    }

    /// Type that holds one code in memory: 8-bit floats as e4m3, integers in the narrowest width.
    ///
    /// # Errors
    /// `Unsupported` for other float widths.
    pub fn storage_dtype(&self) -> Result<DType> {
        storage_dtype(self.r#type, self.num_bits)
    }
}

impl Default for QuantizationArgs {
    fn default() -> Self {
        ArgsBuilder::default().build().expect("the defaults (int, 8 bits, per tensor) break no rule")
    }
}

/// `torch.int8` for `I8`; the two packed types that torch lacks keep their own name.
pub(crate) fn torch_path(dtype: DType) -> String {
    match dtype.torch_name() {
        Some(name) => format!("torch.{name}"),
        None => dtype.safetensors_name().to_owned(),
    }
}
