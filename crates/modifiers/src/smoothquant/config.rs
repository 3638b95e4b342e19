//! What a recipe may say about smoothing.

use lifecycle::{
    Fields, Settings,
    recipe::{FieldKind, FieldSpec},
};
use serde::Deserialize;
use serde_json::Value;

use super::{algorithm::Smoothing, mappings::Mapping};
use crate::{
    error::Result,
    quantization::config::{read_fields, refuse},
};

/// The fields of `SmoothQuantModifier`.
#[derive(Clone, Debug, PartialEq)]
pub struct SmoothQuantFields {
    /// How scales follow from ranges.
    pub smoothing: Smoothing,
    /// Mappings instead of those of the model's class.
    pub mappings: Option<Vec<Mapping>>,
    /// Patterns of modules; a mapping of which all modules are ignored is left out.
    pub ignore: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    smoothing_strength: f64,
    mappings: Option<Vec<Value>>,
    ignore: Vec<String>,
    num_calibration_steps: Option<i64>,
    calibration_function: Option<Value>,
    algorithm: String,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            smoothing_strength: 0.5,
            mappings: None,
            ignore: Vec::new(),
            num_calibration_steps: None,
            calibration_function: None,
            algorithm: "smoothquant".to_owned(),
        }
    }
}

impl SmoothQuantFields {
    /// From all fields of a recipe but those that every modifier has.
    ///
    /// # Errors
    /// Fields of another kind, a strength that is no finite number, an unknown algorithm.
    pub fn read(fields: Fields) -> Result<Self> {
        let written: Written = read_fields(fields)?;
        let strength = written.smoothing_strength;
        if !strength.is_finite() {
            return Err(refuse("smoothing_strength", &strength.to_string(), "a finite number"));
        }
        let smoothing = match written.algorithm.as_str() {
            "smoothquant" => Smoothing::SmoothQuant { strength: strength as f32 },
            "log_equalization" => Smoothing::LogEqualization,
            other => return Err(refuse("algorithm", other, "smoothquant or log_equalization")),
        };
        let mappings = written.mappings.map(|it| it.iter().map(mapping).collect::<Result<Vec<_>>>()).transpose()?;
        // Both are read, as the reference does, and say nothing.
        let _ = (written.num_calibration_steps, written.calibration_function);
        Ok(Self { smoothing, mappings, ignore: written.ignore })
    }
}

/// `[[balance, ...], smooth]`, or the same with names; a single balance pattern may stand without its list.
fn mapping(value: &Value) -> Result<Mapping> {
    let expected = "`[[balance patterns], smooth pattern]`";
    let parts = match value {
        Value::Array(pair) => match pair.as_slice() {
            [balance, smooth] => Some((balance, smooth)),
            _ => None,
        },
        Value::Object(map) => map.get("balance_layers").zip(map.get("smooth_layers")),
        _ => None,
    };
    let parsed = parts.and_then(|(balance, smooth)| {
        let balance: Vec<&str> = match balance {
            Value::String(one) => vec![one],
            Value::Array(many) => many.iter().map(Value::as_str).collect::<Option<_>>()?,
            _ => return None,
        };
        Some(Mapping::new(smooth.as_str()?, balance))
    });
    parsed.ok_or_else(|| refuse("mappings", &value.to_string(), expected))
}

/// Smoothing has no schedule: `start` and `end` are -1 or absent.
///
/// # Errors
/// Any other value.
pub(crate) fn refuse_schedule(settings: &Settings) -> Result<()> {
    for (field, value) in [("start", settings.start), ("end", settings.end)] {
        if let Some(value) = value.filter(|it| *it != -1.0) {
            return Err(refuse(field, &value.to_string(), "absent, for smoothing has no schedule"));
        }
    }
    Ok(())
}

const fn field(name: &'static str, kind: FieldKind, default: &'static str, doc: &'static str) -> FieldSpec {
    FieldSpec { name, kind, default: Some(default), doc }
}

/// What recipes may say.
pub const FIELDS: [FieldSpec; 7] = [
    field("requires_calibration_data", FieldKind::Bool, "true", "Whether the modifier needs calibration data."),
    field("smoothing_strength", FieldKind::Float, "0.5", "How much of the difficulty moves into the weights."),
    field("mappings", FieldKind::List(&FieldKind::Any), "null", "Pairs of balance patterns and a smooth pattern."),
    field("ignore", FieldKind::List(&FieldKind::Text), "null", "Patterns of modules that are not smoothed."),
    field("num_calibration_steps", FieldKind::Int, "null", "Read, and without effect."),
    field("calibration_function", FieldKind::Any, "null", "Read, and without effect."),
    field("algorithm", FieldKind::Text, "\"smoothquant\"", "smoothquant or log_equalization."),
];
