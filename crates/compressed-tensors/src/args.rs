//! How one tensor is quantized: `QuantizationArgs`, its fields, defaults, validation and JSON form.

use std::hash::{Hash, Hasher};

use serde_json::{Map, Value, json};

use crate::{
    DType, ErrorKind, Result,
    wire::{self, Reader, refuse},
};

/// Field names in the order in which they are written.
const FIELDS: &[&str] = &[
    "num_bits",
    "type",
    "symmetric",
    "group_size",
    "strategy",
    "block_structure",
    "dynamic",
    "actorder",
    "scale_dtype",
    "zp_dtype",
    "observer",
    "observer_kwargs",
];

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

    /// Reads with the given leniency.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn read(value: &Value, reader: Reader) -> Result<Self> {
        let map = wire::object("quantization args", value)?;
        let mut draft = ArgsBuilder::default();
        let set = |key: &'static str| map.get(key).map(|value| (key, value));
        if let Some((field, value)) = set("num_bits") {
            draft.num_bits = wire::integer(field, value)?;
        }
        if let Some((field, value)) = set("type") {
            draft.r#type = read_type(field, value)?;
        }
        if let Some((field, value)) = set("symmetric") {
            draft.symmetric = wire::boolean(field, value)?;
        }
        if let Some(value) = wire::given(map, "group_size") {
            draft.group_size = Some(read_group_size(value)?);
        }
        if let Some(value) = wire::given(map, "strategy") {
            draft.strategy = Some(read_strategy(value)?);
        }
        if let Some(value) = wire::given(map, "block_structure") {
            draft.block_structure = Some(read_block_structure(value)?);
        }
        if let Some((field, value)) = set("dynamic") {
            draft.dynamic = read_dynamic(field, value)?;
        }
        if let Some(value) = wire::given(map, "actorder") {
            draft.actorder = read_actorder(value, reader)?;
        }
        if let Some(value) = wire::given(map, "scale_dtype") {
            draft.scale_dtype = Some(read_dtype("scale_dtype", value)?);
        }
        if let Some(value) = wire::given(map, "zp_dtype") {
            draft.zp_dtype = Some(read_dtype("zp_dtype", value)?);
        }
        if let Some(value) = wire::given(map, "observer") {
            draft.observer = Some(wire::string("observer", value)?);
        }
        if let Some((field, value)) = set("observer_kwargs") {
            draft.observer_kwargs = wire::object(field, value)?.clone();
        }
        wire::only_known(map, FIELDS)?;
        draft.build()
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

/// Collects fields in code and validates them at the end.
#[derive(Clone, Debug)]
pub struct ArgsBuilder {
    num_bits: i64,
    r#type: QuantizationType,
    symmetric: bool,
    group_size: Option<i64>,
    strategy: Option<QuantizationStrategy>,
    block_structure: Option<[usize; 2]>,
    dynamic: Dynamic,
    actorder: Option<ActivationOrdering>,
    scale_dtype: Option<DType>,
    zp_dtype: Option<DType>,
    observer: Option<String>,
    observer_kwargs: Map<String, Value>,
}

impl Default for ArgsBuilder {
    fn default() -> Self {
        Self {
            num_bits: 8,
            r#type: QuantizationType::Int,
            symmetric: true,
            group_size: None,
            strategy: None,
            block_structure: None,
            dynamic: Dynamic::No,
            actorder: None,
            scale_dtype: None,
            zp_dtype: None,
            observer: None,
            observer_kwargs: Map::new(),
        }
    }
}

impl ArgsBuilder {
    /// Integer codes of `num_bits`.
    pub fn int(num_bits: i64) -> Self {
        Self { num_bits, ..Self::default() }
    }

    /// Float codes of `num_bits`.
    pub fn float(num_bits: i64) -> Self {
        Self { num_bits, r#type: QuantizationType::Float, ..Self::default() }
    }

    /// Lets the zero point move.
    #[must_use]
    pub fn asymmetric(mut self) -> Self {
        self.symmetric = false;
        self
    }

    /// Columns that share a scale; without a strategy it also sets that.
    #[must_use]
    pub fn group_size(mut self, columns: i64) -> Self {
        self.group_size = Some(columns);
        self
    }

    /// Which elements share a scale.
    #[must_use]
    pub fn strategy(mut self, strategy: QuantizationStrategy) -> Self {
        self.strategy = Some(strategy);
        self
    }

    /// Tiles of `rows` by `columns` share a scale.
    #[must_use]
    pub fn block(mut self, rows: usize, columns: usize) -> Self {
        self.strategy = Some(QuantizationStrategy::Block);
        self.block_structure = Some([rows, columns]);
        self
    }

    /// When scales are found.
    #[must_use]
    pub fn dynamic(mut self, dynamic: Dynamic) -> Self {
        self.dynamic = dynamic;
        self
    }

    /// GPTQ's column order.
    #[must_use]
    pub fn actorder(mut self, actorder: ActivationOrdering) -> Self {
        self.actorder = Some(actorder);
        self
    }

    /// Type of the scale on disk.
    #[must_use]
    pub fn scale_dtype(mut self, dtype: DType) -> Self {
        self.scale_dtype = Some(dtype);
        self
    }

    /// Type of the zero point.
    #[must_use]
    pub fn zp_dtype(mut self, dtype: DType) -> Self {
        self.zp_dtype = Some(dtype);
        self
    }

    /// Name of the observer.
    #[must_use]
    pub fn observer(mut self, name: impl Into<String>) -> Self {
        self.observer = Some(name.into());
        self
    }

    /// The observer's arguments.
    #[must_use]
    pub fn observer_kwargs(mut self, kwargs: Map<String, Value>) -> Self {
        self.observer_kwargs = kwargs;
        self
    }

    /// Applies the cross-field rules in the reference's order.
    ///
    /// # Errors
    /// `InvalidField` for the first broken rule; `Unsupported` where no zero-point type follows.
    pub fn build(self) -> Result<QuantizationArgs> {
        let strategy = self.inferred_strategy()?;
        self.check_strategy(strategy)?;
        let zp_dtype = match self.zp_dtype {
            Some(dtype) => dtype,
            None if (self.r#type, self.num_bits) == (QuantizationType::Float, 4) => DType::F8E4M3,
            None => storage_dtype(self.r#type, self.num_bits)?,
        };
        Ok(QuantizationArgs {
            num_bits: self.num_bits,
            r#type: self.r#type,
            symmetric: self.symmetric,
            group_size: self.group_size,
            strategy,
            block_structure: self.block_structure,
            dynamic: self.dynamic,
            actorder: self.actorder,
            scale_dtype: self.scale_dtype,
            zp_dtype: Some(zp_dtype),
            observer: self.observer,
            observer_kwargs: self.observer_kwargs,
        })
    }

    fn inferred_strategy(&self) -> Result<QuantizationStrategy> {
        match (self.strategy, self.group_size) {
            (Some(strategy), _) => Ok(strategy),
            (None, None) => Ok(QuantizationStrategy::Tensor),
            (None, Some(1..)) => Ok(QuantizationStrategy::Group),
            (None, Some(-1)) => Ok(QuantizationStrategy::Channel),
            (None, Some(_)) => Err(refuse("group_size", &json!(self.group_size), "-1 or at least 1")),
        }
    }

    fn check_strategy(&self, strategy: QuantizationStrategy) -> Result<()> {
        use QuantizationStrategy as S;
        let named = json!(strategy.name());
        let grouped = matches!(strategy, S::Group | S::TensorGroup);
        if strategy == S::Token && self.dynamic == Dynamic::No {
            return Err(refuse("strategy", &named, "`dynamic` true with it, as token scales cannot be calibrated"));
        }
        if grouped && self.group_size.is_none_or(|size| size <= 0) {
            let expected = format!("at least 1 with strategy `{}`", strategy.name());
            return Err(refuse("group_size", &json!(self.group_size), expected));
        }
        if !grouped && self.group_size.is_some_and(|size| size > 0) {
            let expected = format!("`group` or `tensor_group` with group_size {}", self.group_size.unwrap_or(0));
            return Err(refuse("strategy", &named, expected));
        }
        if (strategy == S::Block) != self.block_structure.is_some() {
            let expected = if strategy == S::Block { "two positive integers" } else { "null without strategy `block`" };
            return Err(refuse("block_structure", &json!(self.block_structure), expected));
        }
        if self.block_structure.is_some_and(|tile| tile.contains(&0)) {
            return Err(refuse("block_structure", &json!(self.block_structure), "two positive integers"));
        }
        if self.group_size.is_some_and(|size| size < -1) {
            return Err(refuse("group_size", &json!(self.group_size), "-1 or at least 1"));
        }
        let dynamic = self.dynamic.to_json();
        match (self.dynamic, strategy) {
            (Dynamic::No, _) | (_, S::TensorGroup) | (Dynamic::Yes, S::Token | S::Tensor | S::Group) => Ok(()),
            (Dynamic::Local, _) => Err(refuse("dynamic", &dynamic, "`local` only with strategy `tensor_group`")),
            (Dynamic::Yes, _) => Err(refuse("dynamic", &dynamic, format!("false with strategy `{}`", strategy.name()))),
        }
    }
}

fn storage_dtype(kind: QuantizationType, num_bits: i64) -> Result<DType> {
    match (kind, num_bits) {
        (QuantizationType::Float, 8) => Ok(DType::F8E4M3),
        (QuantizationType::Float, bits) => {
            Err(ErrorKind::Unsupported { what: format!("a storage type for {bits}-bit float codes") }.into())
        }
        (QuantizationType::Int, ..=8) => Ok(DType::I8),
        (QuantizationType::Int, ..=16) => Ok(DType::I16),
        (QuantizationType::Int, _) => Ok(DType::I32),
    }
}

/// `torch.int8` for `I8`; the two packed types that torch lacks keep their own name.
pub(crate) fn torch_path(dtype: DType) -> String {
    match dtype.torch_name() {
        Some(name) => format!("torch.{name}"),
        None => dtype.safetensors_name().to_owned(),
    }
}

/// Reads a torch dtype name.
pub(crate) fn read_dtype(field: &str, value: &Value) -> Result<DType> {
    value
        .as_str()
        .and_then(DType::from_torch_name)
        .ok_or_else(|| refuse(field, value, "the name of a torch dtype, as `torch.int8` or `int8`"))
}

fn read_type(field: &str, value: &Value) -> Result<QuantizationType> {
    match value.as_str().map(str::to_lowercase).as_deref() {
        Some("int") => Ok(QuantizationType::Int),
        Some("float") => Ok(QuantizationType::Float),
        _ => Err(refuse(field, value, "`int` or `float`")),
    }
}

fn read_group_size(value: &Value) -> Result<i64> {
    let size = match value {
        Value::String(_) => None,
        other => wire::integer("group_size", other).ok(),
    };
    size.filter(|&size| size >= -1).ok_or_else(|| refuse("group_size", value, "an integer, -1 or at least 1"))
}

fn read_strategy(value: &Value) -> Result<QuantizationStrategy> {
    let wanted = value.as_str().map(str::to_lowercase);
    QuantizationStrategy::ALL
        .into_iter()
        .find(|it| Some(it.name()) == wanted.as_deref())
        .ok_or_else(|| refuse("strategy", value, QuantizationStrategy::ALL.map(QuantizationStrategy::name).join(", ")))
}

fn read_block_structure(value: &Value) -> Result<[usize; 2]> {
    let sides: Option<Vec<usize>> = match value {
        Value::String(text) => text.split('x').map(|side| side.trim().parse().ok()).collect(),
        Value::Array(list) => list.iter().map(|side| side.as_u64().and_then(|it| usize::try_from(it).ok())).collect(),
        _ => None,
    };
    match sides.as_deref() {
        Some(&[rows, columns]) if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => Err(refuse("block_structure", value, "two positive integers")),
    }
}

fn read_dynamic(field: &str, value: &Value) -> Result<Dynamic> {
    match value {
        Value::String(text) if text.eq_ignore_ascii_case("local") => Ok(Dynamic::Local),
        Value::String(_) => Err(refuse(field, value, "true, false or `local`")),
        other => match wire::boolean(field, other) {
            Ok(true) => Ok(Dynamic::Yes),
            Ok(false) => Ok(Dynamic::No),
            Err(_) => Err(refuse(field, value, "true, false or `local`")),
        },
    }
}

fn read_actorder(value: &Value, reader: Reader) -> Result<Option<ActivationOrdering>> {
    use ActivationOrdering as A;
    let lower = value.as_str().map(str::to_lowercase);
    match (value, lower.as_deref(), reader) {
        (Value::Bool(false), ..) => Ok(None),
        (Value::Bool(true), _, Reader::Checkpoint) | (_, Some("group" | "dynamic"), Reader::Checkpoint) => {
            Ok(Some(A::Group))
        }
        (_, Some("weight"), Reader::Checkpoint) => Ok(Some(A::Weight)),
        (_, Some("static"), Reader::Checkpoint) => Ok(Some(A::Static)),
        (Value::String(exact), ..) if exact == "weight" => Ok(Some(A::Weight)),
        (Value::String(exact), ..) if exact == "static" => Ok(Some(A::Static)),
        (_, Some("group" | "dynamic"), _) => {
            Err(refuse("actorder", value, "`weight` or `static`, as the group order was removed from the format"))
        }
        _ => Err(refuse("actorder", value, "`weight`, `static` or null")),
    }
}
