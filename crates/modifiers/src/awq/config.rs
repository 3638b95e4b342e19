//! What a recipe may say about AWQ.

use lifecycle::{
    Fields,
    recipe::{FieldKind, FieldSpec},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::algorithm::{Candidate, DuoScaling, grid};
use crate::{
    error::Result,
    quantization::config::{FIELD_NAMES, read_fields, refuse},
    smoothquant::mappings::Mapping,
};

/// The fields of `AWQModifier`.
#[derive(Clone, Debug, PartialEq)]
pub struct AwqFields {
    /// Mappings instead of those of the model's class.
    pub mappings: Option<Vec<Mapping>>,
    /// The candidates.
    pub grid: Vec<Candidate>,
    /// Whether weights have a say in the scales.
    pub duo_scaling: DuoScaling,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    mappings: Option<Vec<WrittenMapping>>,
    offload_device: Option<String>,
    duo_scaling: Value,
    n_grid: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenMapping {
    smooth_layer: String,
    balance_layers: Vec<String>,
    #[serde(default)]
    activation_hook_target: Option<String>,
}

impl Default for Written {
    fn default() -> Self {
        Self { mappings: None, offload_device: None, duo_scaling: json!(true), n_grid: 20 }
    }
}

impl AwqFields {
    /// From all fields of a recipe but those that every modifier has.
    ///
    /// # Errors
    /// Fields of another kind, and a grid that is too small.
    pub fn read(fields: Fields) -> Result<Self> {
        let written: Written = read_fields(fields)?;
        let duo_scaling = match &written.duo_scaling {
            Value::Bool(true) => DuoScaling::On,
            Value::Bool(false) => DuoScaling::Off,
            Value::Number(number) if number.as_f64() == Some(1.0) => DuoScaling::On,
            Value::Number(number) if number.as_f64() == Some(0.0) => DuoScaling::Off,
            Value::String(text) if text == "both" => DuoScaling::Both,
            other => return Err(refuse("duo_scaling", &other.to_string(), "true, false or both")),
        };
        let n_grid = usize::try_from(written.n_grid).unwrap_or(0);
        let mappings = written.mappings.map(|it| it.into_iter().map(Mapping::from).collect());
        // Where tensors lie is up to the run, so that the field says nothing here.
        let _ = written.offload_device;
        Ok(Self { mappings, grid: grid(duo_scaling, n_grid)?, duo_scaling })
    }

    /// Splits the older form of the modifier, which had a scheme of its own, into the fields of `AWQModifier` and those of
    /// the `QuantizationModifier` that follows it; `None` where no scheme is given.
    pub fn split_legacy(fields: &Fields) -> Option<(Fields, Fields)> {
        let is_scheme = |name: &String| FIELD_NAMES.contains(&name.as_str());
        let has_scheme = ["scheme", "config_groups"].iter().any(|it| fields.get(*it).is_some_and(|it| !it.is_null()));
        let part = |wanted: bool| {
            let own = fields.iter().filter(|(name, _)| is_scheme(name) == wanted);
            own.map(|(name, value)| (name.clone(), value.clone())).collect::<Fields>()
        };
        has_scheme.then(|| (part(false), part(true)))
    }
}

impl From<WrittenMapping> for Mapping {
    fn from(written: WrittenMapping) -> Self {
        Self {
            smooth: written.smooth_layer,
            balance: written.balance_layers,
            activation_hook_target: written.activation_hook_target,
        }
    }
}

const fn field(name: &'static str, kind: FieldKind, default: &'static str, doc: &'static str) -> FieldSpec {
    FieldSpec { name, kind, default: Some(default), doc }
}

/// What recipes may say.
pub const FIELDS: [FieldSpec; 5] = [
    field("requires_calibration_data", FieldKind::Bool, "true", "Whether the modifier needs calibration data."),
    field(
        "mappings",
        FieldKind::List(&FieldKind::Object(&[
            FieldSpec {
                name: "smooth_layer",
                kind: FieldKind::Text,
                default: None,
                doc: "Pattern of the smoothed layer.",
            },
            FieldSpec {
                name: "balance_layers",
                kind: FieldKind::TextList,
                default: None,
                doc: "Patterns of its readers.",
            },
            field("activation_hook_target", FieldKind::Text, "null", "Path below the parent where inputs are taken."),
        ])),
        "null",
        "Mappings instead of those of the model's class.",
    ),
    field("offload_device", FieldKind::Text, "null", "Read, and without effect."),
    field("duo_scaling", FieldKind::Any, "true", "true, false or both: whether weights have a say in the scales."),
    field("n_grid", FieldKind::Int, "20", "Candidates."),
];
