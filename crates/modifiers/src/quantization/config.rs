//! What a recipe may say about schemes: fields, defaults, validation, and the config that follows from them.

use compressed_tensors::{
    args::{Dynamic, QuantizationArgs},
    config::QuantizationConfig,
    presets::preset,
    scheme::QuantizationScheme,
};
use indexmap::IndexMap;
use lifecycle::{
    Fields, Settings,
    recipe::{FieldKind, FieldSpec},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::error::{ErrorKind, Result};

/// A preset for all targets, or presets with targets of their own.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum SchemeField {
    /// Name of a preset.
    Name(String),
    /// Targets by name of a preset.
    Targets(IndexMap<String, Vec<String>>),
}

/// The fields of `QuantizationModifier`, which other quantizing modifiers have too.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuantizationFields {
    /// Schemes by name of a group, as a checkpoint's config has them.
    pub config_groups: Option<Map<String, Value>>,
    /// Patterns of the modules that `scheme` is for.
    pub targets: Vec<String>,
    /// Patterns of modules that stay as they are.
    pub ignore: Vec<String>,
    /// Presets instead of groups.
    pub scheme: Option<SchemeField>,
    /// Arguments for keys and values.
    pub kv_cache_scheme: Option<Value>,
    /// Observer of all weights.
    pub weight_observer: Option<String>,
    /// Observer of all inputs.
    pub input_observer: Option<String>,
    /// Observer of all outputs.
    pub output_observer: Option<String>,
    /// The three observers as one mapping from `weights`, `input` and `output`.
    pub observer: Option<IndexMap<String, String>>,
    /// Whether columns that groups do not divide are left for later to find.
    pub bypass_divisibility_checks: bool,
}

impl Default for QuantizationFields {
    fn default() -> Self {
        Self {
            config_groups: None,
            targets: vec!["Linear".to_owned()],
            ignore: Vec::new(),
            scheme: None,
            kv_cache_scheme: None,
            weight_observer: None,
            input_observer: None,
            output_observer: None,
            observer: None,
            bypass_divisibility_checks: false,
        }
    }
}

/// Names of the fields in [`QuantizationFields`], in the order in which they are written out.
pub const FIELD_NAMES: [&str; 10] = [
    "config_groups",
    "targets",
    "ignore",
    "scheme",
    "kv_cache_scheme",
    "weight_observer",
    "input_observer",
    "output_observer",
    "observer",
    "bypass_divisibility_checks",
];

impl QuantizationFields {
    /// Takes the fields of a scheme out of all fields of a modifier, and leaves the others.
    ///
    /// # Errors
    /// A field of another kind.
    pub fn take(fields: &mut Fields) -> Result<Self> {
        let mut own = Fields::new();
        for name in FIELD_NAMES {
            if let Some(value) = fields.shift_remove(name) {
                own.insert(name.to_owned(), value);
            }
        }
        if let Some(Value::String(target)) = own.get("targets") {
            own["targets"] = json!([target]);
        }
        read_fields(own)
    }

    /// Whether any scheme is asked for; a modifier without one works on schemes that an earlier one has given.
    pub fn has_config(&self) -> bool {
        self.config_groups.is_some() || self.scheme.is_some() || self.kv_cache_scheme.is_some()
    }

    /// The config of the whole model: groups with their presets resolved and their observers written out.
    ///
    /// # Errors
    /// `scheme` beside `config_groups`, `observer` beside the fields that it stands for, unknown presets and observer keys,
    /// and whatever the format refuses in a scheme.
    pub fn resolve(&self) -> Result<QuantizationConfig> {
        if self.config_groups.is_some() && self.scheme.is_some() {
            return Err(refuse("scheme", "given", "absent beside `config_groups`"));
        }
        let mut config = match &self.config_groups {
            Some(groups) => QuantizationConfig::from_json(&json!({ "config_groups": groups }))?,
            None => QuantizationConfig::default(),
        };
        config.ignore.clone_from(&self.ignore);
        let named = |index: usize| format!("group_{index}");
        match &self.scheme {
            Some(SchemeField::Name(name)) => {
                config.config_groups.insert(named(0), preset(name, self.targets.clone())?);
            }
            Some(SchemeField::Targets(presets)) => {
                for (index, (name, targets)) in presets.iter().enumerate() {
                    config.config_groups.insert(named(index), preset(name, targets.clone())?);
                }
            }
            None if self.config_groups.is_none() => {
                config.config_groups.insert(named(0), QuantizationScheme::unquantized(self.targets.clone()));
            }
            None => {}
        }
        if let Some(args) = &self.kv_cache_scheme {
            config.kv_cache_scheme = Some(QuantizationArgs::from_json(args).map_err(|e| e.at("kv_cache_scheme"))?);
        }
        let [weights, inputs, outputs] = self.observers()?;
        for scheme in config.config_groups.values_mut() {
            let parts = [
                (&mut scheme.weights, weights, "memoryless_minmax"),
                (&mut scheme.input_activations, inputs, "minmax"),
                (&mut scheme.output_activations, outputs, "minmax"),
            ];
            for (args, named, default) in parts {
                if let Some(args) = args {
                    observe(args, named, default);
                }
            }
        }
        Ok(config)
    }

    /// Observers of weights, inputs and outputs, where named for all.
    fn observers(&self) -> Result<[Option<&str>; 3]> {
        let fields = [&self.weight_observer, &self.input_observer, &self.output_observer];
        let Some(mapping) = &self.observer else { return Ok(fields.map(Option::as_deref)) };
        if fields.iter().any(|it| it.is_some()) {
            return Err(refuse(
                "observer",
                "given",
                "absent beside weight_observer, input_observer and output_observer",
            ));
        }
        let keys = ["weights", "input", "output"];
        if let Some(other) = mapping.keys().find(|it| !keys.contains(&it.as_str())) {
            return Err(refuse("observer", &format!("a mapping with `{other}`"), "the keys weights, input and output"));
        }
        Ok(keys.map(|key| mapping.get(key).map(String::as_str)))
    }

    /// Whether scales have to be found on data.
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub fn needs_data(&self) -> Result<bool> {
        let config = self.resolve()?;
        let importance = |it: &QuantizationArgs| it.observer.as_deref() == Some("nvfp4_expanded_imatrix");
        let mut schemes = config.config_groups.values();
        let by_importance = schemes.any(|it| it.weights.as_ref().is_some_and(importance));
        Ok(by_importance || config.requires_calibration_data())
    }
}

/// The observer named for all, else the tensor's own, else the default; none where scales are found on every call.
fn observe(args: &mut QuantizationArgs, named: Option<&str>, default: &str) {
    if let Some(name) = named {
        args.observer = Some(name.to_owned());
    } else if args.observer.is_none() && args.dynamic != Dynamic::Yes {
        args.observer = Some(default.to_owned());
    }
}

pub(crate) fn refuse(field: &'static str, found: &str, expected: &str) -> crate::Error {
    ErrorKind::InvalidField { field, found: found.to_owned(), expected: expected.to_owned() }.into()
}

/// Reads fields into a struct that denies unknown ones.
pub(crate) fn read_fields<T: DeserializeOwned>(mut fields: Fields) -> Result<T> {
    // Null stands for the default where a field has one, and for absence elsewhere.
    fields.retain(|_, value| !value.is_null());
    serde_json::from_value(Value::Object(fields)).map_err(|error| refuse("modifier", &error.to_string(), "its fields"))
}

/// Takes the fields that every modifier has out of all fields.
///
/// # Errors
/// A field of another kind.
pub(crate) fn take_settings(fields: &mut Fields) -> Result<Settings> {
    fields.shift_remove("requires_calibration_data");
    let mut settings = Fields::new();
    for name in ["index", "group", "start", "end", "update"] {
        if let Some(value) = fields.shift_remove(name) {
            settings.insert(name.to_owned(), value);
        }
    }
    read_fields(settings)
}

const fn field(name: &'static str, kind: FieldKind, default: &'static str, doc: &'static str) -> FieldSpec {
    FieldSpec { name, kind, default: Some(default), doc }
}

/// The fields of quantization arguments; defaults are the format's.
const ARGS: FieldKind = FieldKind::Object(&[
    field("num_bits", FieldKind::Int, "8", "Width of a code."),
    field("type", FieldKind::Choice(&["int", "float"]), "\"int\"", "Kind of code."),
    field("symmetric", FieldKind::Bool, "true", "Whether the zero point is fixed at 0."),
    field("group_size", FieldKind::Int, "null", "Columns that share a scale; -1 for a scale per channel."),
    field("strategy", FieldKind::Text, "null", "Which elements share a scale; by default told from group_size."),
    field("block_structure", FieldKind::Any, "null", "Rows and columns of a block."),
    field("dynamic", FieldKind::OneOf(&[FieldKind::Bool, FieldKind::Text]), "false", "When scales are found."),
    field("actorder", FieldKind::OneOf(&[FieldKind::Bool, FieldKind::Text]), "null", "Order of columns in GPTQ."),
    field("scale_dtype", FieldKind::Text, "null", "Type of the scale on disk."),
    field("zp_dtype", FieldKind::Text, "null", "Type of the zero point."),
    field("observer", FieldKind::Text, "null", "Name of the observer."),
    field("observer_kwargs", FieldKind::Map(&FieldKind::Any), "{}", "Arguments of the observer."),
]);

const SCHEME: FieldKind = FieldKind::Object(&[
    FieldSpec { name: "targets", kind: FieldKind::TextList, default: None, doc: "Patterns of the modules." },
    field("weights", ARGS, "null", "Arguments for weights."),
    field("input_activations", ARGS, "null", "Arguments for inputs."),
    field("output_activations", ARGS, "null", "Arguments for outputs."),
    field("format", FieldKind::Text, "null", "On-disk format."),
]);

/// What recipes may say, in the order of [`FIELD_NAMES`].
pub const FIELDS: [FieldSpec; 10] = [
    field(FIELD_NAMES[0], FieldKind::Map(&SCHEME), "null", "Schemes by name of a group."),
    field(FIELD_NAMES[1], FieldKind::TextList, "[\"Linear\"]", "Patterns of the modules that `scheme` is for."),
    field(FIELD_NAMES[2], FieldKind::TextList, "[]", "Patterns of modules that stay as they are."),
    field(
        FIELD_NAMES[3],
        FieldKind::OneOf(&[FieldKind::Text, FieldKind::Map(&FieldKind::TextList)]),
        "null",
        "Name of a preset, or targets by preset.",
    ),
    field(FIELD_NAMES[4], ARGS, "null", "Arguments for keys and values of attention."),
    field(FIELD_NAMES[5], FieldKind::Text, "null", "Observer of all weights."),
    field(FIELD_NAMES[6], FieldKind::Text, "null", "Observer of all inputs."),
    field(FIELD_NAMES[7], FieldKind::Text, "null", "Observer of all outputs."),
    field(FIELD_NAMES[8], FieldKind::Map(&FieldKind::Text), "null", "Observers under weights, input and output."),
    field(FIELD_NAMES[9], FieldKind::Bool, "false", "Whether columns that groups do not divide are accepted."),
];

/// Where the fields of every modifier stand in modifiers with a scheme: behind those of the scheme.
pub const BASE_FIELDS: [FieldSpec; 6] = [
    field("requires_calibration_data", FieldKind::Bool, "false", "Whether the modifier needs calibration data."),
    field("index", FieldKind::Int, "null", "Position among the modifiers."),
    field("group", FieldKind::Text, "null", "Set by the recipe's structure."),
    field("start", FieldKind::Float, "null", "First index at which it works."),
    field("end", FieldKind::Float, "null", "First index after its work."),
    field("update", FieldKind::Float, "null", "Interval between updates."),
];
