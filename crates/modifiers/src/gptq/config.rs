//! What a recipe may say about GPTQ: its own fields beside those of a scheme.

use compressed_tensors::args::{ActivationOrdering, QuantizationArgs};
use lifecycle::{
    Fields,
    recipe::{FieldKind, FieldSpec},
};
use serde::Deserialize;
use serde_json::Value;

use super::algorithm::{Damping, Escalation, Order};
use crate::{
    error::{ErrorKind, Result},
    quantization::config::{BASE_FIELDS, FIELDS as SCHEME_FIELDS, QuantizationFields, read_fields, refuse},
};

/// More rounds of refinement than this change nothing any more.
const MOST_ROUNDS: u32 = 100;

/// The fields of `GPTQModifier`.
#[derive(Clone, Debug, PartialEq)]
pub struct GptqFields {
    /// Those of the scheme.
    pub quantization: QuantizationFields,
    /// Columns that the reference updates at once. It says when a sum is formed, not what it is, and is not used.
    pub block_size: u32,
    /// Share of the mean diagonal that is added to it.
    pub dampening_frac: f32,
    /// How the scales come about that the columns are rounded by.
    pub scale_search: ScaleSearch,
    /// Times that codes and scales are moved after the sweep.
    pub refine_rounds: u32,
    /// Share of what earlier layers have done to the outputs that weights make up for, from 0 to 1.
    pub input_correction: f32,
    /// Order of columns; static where the recipe does not say, none where it says null.
    pub actorder: Option<ActivationOrdering>,
}

/// How the scales of a weight come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleSearch {
    /// From the observer, as in the reference.
    Observer,
    /// Of shrunk ranges the one whose rounding costs least, an error weighted by the second moment of its column.
    Moments,
}

/// The fields beside those of the scheme, as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    block_size: i64,
    dampening_frac: f64,
    actorder: Option<String>,
    scale_search: Option<String>,
    refine_rounds: Option<i64>,
    input_correction: Option<f64>,
    batched_quantization: Option<Value>,
}

impl Default for Written {
    fn default() -> Self {
        Self {
            block_size: 128,
            dampening_frac: 0.01,
            actorder: None,
            scale_search: None,
            refine_rounds: None,
            input_correction: None,
            batched_quantization: None,
        }
    }
}

impl GptqFields {
    /// From all fields of a recipe but those that every modifier has.
    ///
    /// # Errors
    /// Fields of another kind or range, and as [`QuantizationFields::resolve`].
    pub fn read(mut fields: Fields) -> Result<Self> {
        let quantization = QuantizationFields::take(&mut fields)?;
        let ordering_is_null = fields.get("actorder").is_some_and(Value::is_null);
        if let Some(Value::Bool(flag)) = fields.get("actorder") {
            return Err(refuse("actorder", &flag.to_string(), "static, weight or null"));
        }
        let written: Written = read_fields(fields)?;
        let block_size = u32::try_from(written.block_size).ok().filter(|it| *it > 0);
        let block_size =
            block_size.ok_or_else(|| refuse("block_size", &written.block_size.to_string(), "a positive number"))?;
        let frac = written.dampening_frac;
        if !(frac.is_finite() && frac >= 0.0) {
            return Err(refuse("dampening_frac", &frac.to_string(), "a finite number of at least 0"));
        }
        match &written.batched_quantization {
            None => {}
            Some(Value::String(text)) if text == "auto" => {}
            Some(Value::Number(number)) if number.as_u64().is_some_and(|it| it > 0) => {}
            Some(other) => {
                return Err(refuse("batched_quantization", &other.to_string(), "auto, null or a positive number"));
            }
        }
        let actorder = match written.actorder.as_deref() {
            None if ordering_is_null => None,
            None | Some("static") => Some(ActivationOrdering::Static),
            Some("weight") => Some(ActivationOrdering::Weight),
            Some(other) => return Err(refuse("actorder", other, "static, weight or null")),
        };
        let scale_search = match written.scale_search.as_deref() {
            None => ScaleSearch::Observer,
            Some("moments") => ScaleSearch::Moments,
            Some(other) => return Err(refuse("scale_search", other, "moments or null")),
        };
        let rounds = written.refine_rounds.unwrap_or(0);
        let refine_rounds = u32::try_from(rounds).ok().filter(|it| *it <= MOST_ROUNDS);
        let refine_rounds = refine_rounds
            .ok_or_else(|| refuse("refine_rounds", &rounds.to_string(), "a number from 0 to 100, or null"))?;
        let input_correction = written.input_correction.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&input_correction) {
            return Err(refuse("input_correction", &input_correction.to_string(), "a number from 0 to 1, or null"));
        }
        quantization.resolve()?;
        let (dampening_frac, input_correction) = (frac as f32, input_correction as f32);
        Ok(Self { quantization, scale_search, refine_rounds, input_correction, block_size, dampening_frac, actorder })
    }

    /// The order of a weight's columns. `static` and `weight` are one and the same.
    ///
    /// # Errors
    /// A scheme whose own order differs from the one that the recipe names.
    pub fn order(&self, args: &QuantizationArgs) -> Result<Order> {
        match (self.actorder, args.actorder) {
            (Some(_), _) => Ok(Order::Diagonal),
            (None, None) => Ok(Order::Stored),
            (None, Some(own)) => {
                let expected = format!("`{}`, which the scheme has, or null in both", own.name());
                Err(ErrorKind::InvalidField { field: "actorder", found: "null".to_owned(), expected }.into())
            }
        }
    }

    /// The damping, and what follows where it is not enough.
    pub fn damping(&self) -> Damping {
        Damping { frac: self.dampening_frac, escalation: Escalation::DEFAULT, ..Damping::default() }
    }
}

const fn all() -> [FieldSpec; 23] {
    let mut fields = [BASE_FIELDS[0]; 23];
    let mut at = 0;
    while at < 16 {
        fields[at] = if at < 10 { SCHEME_FIELDS[at] } else { BASE_FIELDS[at - 10] };
        at += 1;
    }
    fields[10].default = Some("true");
    fields[16] = FieldSpec {
        name: "block_size",
        kind: FieldKind::Int,
        default: Some("128"),
        doc: "Columns that are updated at once; read, and without effect on the result.",
    };
    fields[17] = FieldSpec {
        name: "dampening_frac",
        kind: FieldKind::Float,
        default: Some("0.01"),
        doc: "Share of the mean diagonal of the second moments that is added to it.",
    };
    fields[18] = FieldSpec {
        name: "actorder",
        kind: FieldKind::Any,
        default: Some("\"static\""),
        doc: "Order of columns: static, weight or null.",
    };
    fields[19] = FieldSpec {
        name: "batched_quantization",
        kind: FieldKind::Any,
        default: Some("\"auto\""),
        doc: "Modules that are quantized at once; read, and without effect on the result.",
    };
    fields[20] = FieldSpec {
        name: "scale_search",
        kind: FieldKind::Text,
        default: Some("null"),
        doc: "Not in llm-compressor. `moments`: of shrunk ranges the one whose rounding costs least, weighted by second moments.",
    };
    fields[21] = FieldSpec {
        name: "refine_rounds",
        kind: FieldKind::Int,
        default: Some("null"),
        doc: "Not in llm-compressor. Times that codes and scales are moved to where the outputs' error is least.",
    };
    fields[22] = FieldSpec {
        name: "input_correction",
        kind: FieldKind::Float,
        default: Some("null"),
        doc: "Not in llm-compressor. Share of what earlier layers have done to the outputs that weights make up for, from 0 to 1.",
    };
    fields
}

/// What recipes may say.
pub const FIELDS: [FieldSpec; 23] = all();
