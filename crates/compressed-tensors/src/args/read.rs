//! Quantization args from JSON, field by field.

use serde_json::Value;

use super::{ActivationOrdering, ArgsBuilder, Dynamic, QuantizationArgs, QuantizationStrategy, QuantizationType};
use crate::{
    DType, Reader, Result,
    wire::{self, refuse},
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

impl QuantizationArgs {
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
