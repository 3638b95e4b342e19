//! Which modules are quantized, and how: `QuantizationScheme`.

use serde_json::{Value, json};

use crate::{
    ErrorKind, Result,
    args::{QuantizationArgs, QuantizationStrategy},
    format::CompressionFormat,
    wire::{self, Reader, refuse},
};

const FIELDS: &[&str] = &["targets", "weights", "input_activations", "output_activations", "format"];

/// How the modules that `targets` name are quantized (spec formats.md section 3).
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizationScheme {
    /// Exact module names, class names, or `re:` patterns.
    pub targets: Vec<String>,
    /// For the weight.
    pub weights: Option<QuantizationArgs>,
    /// For what enters the module.
    pub input_activations: Option<QuantizationArgs>,
    /// For what leaves it.
    pub output_activations: Option<QuantizationArgs>,
    /// The on-disk format, where chosen.
    pub format: Option<CompressionFormat>,
}

/// What is allowed and yet likely a mistake.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemeWarning {
    /// Weights and inputs are grouped differently.
    #[error("weights have group_size {weights} and inputs {inputs}: no known kernel runs that")]
    GroupSizesDiffer {
        /// Columns that share a weight scale.
        weights: i64,
        /// Columns that share an input scale.
        inputs: i64,
    },
}

impl QuantizationScheme {
    /// A scheme without any arguments.
    pub fn unquantized(targets: Vec<String>) -> Self {
        Self { targets, weights: None, input_activations: None, output_activations: None, format: None }
    }

    /// Reads and validates a JSON object as the reference's current schema does.
    ///
    /// # Errors
    /// As [`QuantizationArgs::from_json`], with the field as the place; `UnknownName` for the format;
    /// `Unsupported` for inputs per channel or block.
    pub fn from_json(value: &Value) -> Result<Self> {
        Self::read(value, Reader::Strict)
    }

    /// As [`from_json`](Self::from_json), and takes what older versions wrote.
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
        let map = wire::object("quantization scheme", value)?;
        let args = |field: &str| {
            wire::given(map, field).map(|it| QuantizationArgs::read(it, reader).map_err(|e| e.at(field))).transpose()
        };
        let format = wire::given(map, "format")
            .map(|it| wire::string("format", it).and_then(|name| CompressionFormat::from_name(&name)))
            .transpose()
            .map_err(|e| e.at("format"))?;
        let scheme = Self {
            targets: wire::strings("targets", map.get("targets").unwrap_or(&Value::Null))?,
            weights: args("weights")?,
            input_activations: args("input_activations")?,
            output_activations: args("output_activations")?,
            format,
        };
        wire::only_known(map, FIELDS)?;
        scheme.validate()?;
        Ok(scheme)
    }

    /// Applies the rules between the fields; call it on a scheme built in code.
    ///
    /// # Errors
    /// `Unsupported` for inputs per channel or block, `InvalidField` for an activation with a column
    /// order and for `mixed-precision`, which only a model can have.
    pub fn validate(&self) -> Result<()> {
        use QuantizationStrategy as S;
        if let Some(inputs) = &self.input_activations
            && matches!(inputs.strategy, S::Channel | S::Block)
        {
            let what = format!("strategy `{}` of input activations", inputs.strategy.name());
            return Err(crate::Error::from(ErrorKind::Unsupported { what }).at("input_activations"));
        }
        let activations =
            [("input_activations", &self.input_activations), ("output_activations", &self.output_activations)];
        for (field, args) in activations {
            if let Some(order) = args.as_ref().and_then(|it| it.actorder) {
                return Err(refuse("actorder", &json!(order.name()), "null, as only weights have an order").at(field));
            }
        }
        if self.format == Some(CompressionFormat::MixedPrecision) {
            return Err(refuse("format", &json!("mixed-precision"), "the format of one module"));
        }
        Ok(())
    }

    /// What is likely a mistake.
    pub fn warnings(&self) -> Vec<SchemeWarning> {
        let group = |args: &Option<QuantizationArgs>| {
            args.as_ref().filter(|it| it.strategy == QuantizationStrategy::Group).and_then(|it| it.group_size)
        };
        match (group(&self.weights), group(&self.input_activations)) {
            (Some(weights), Some(inputs)) if weights != inputs => {
                vec![SchemeWarning::GroupSizesDiffer { weights, inputs }]
            }
            _ => Vec::new(),
        }
    }

    /// Whether anything is quantized.
    pub fn is_quantized(&self) -> bool {
        self.weights.is_some() || self.input_activations.is_some() || self.output_activations.is_some()
    }

    /// All five keys, nulls included.
    pub fn to_json(&self) -> Value {
        let args = |it: &Option<QuantizationArgs>| it.as_ref().map(QuantizationArgs::to_json);
        json!({
            "targets": self.targets,
            "weights": args(&self.weights),
            "input_activations": args(&self.input_activations),
            "output_activations": args(&self.output_activations),
            "format": self.format.map(CompressionFormat::name),
        })
    }
}
