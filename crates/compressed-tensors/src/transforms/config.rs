//! `transform_config`: which transforms act where.

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::precision::Precision;
use crate::{
    DType, Error, ErrorKind, Result,
    target::find_unique_name,
    wire::{self, refuse},
};

/// Where on a module a transform acts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransformLocation {
    /// On what enters the module, at run time.
    Input,
    /// Folded into the input side of the weight.
    WeightInput,
    /// Folded into the output side of the weight, and into the bias.
    WeightOutput,
    /// On what leaves the module, at run time.
    Output,
    /// On the keys that enter the cache, at run time.
    KCache,
    /// On the queries of attention, at run time.
    QAttn,
}

/// Locations with their wire names.
const LOCATIONS: &[(TransformLocation, &str)] = &[
    (TransformLocation::Input, "input"),
    (TransformLocation::WeightInput, "weight_input"),
    (TransformLocation::WeightOutput, "weight_output"),
    (TransformLocation::Output, "output"),
    (TransformLocation::KCache, "k_cache"),
    (TransformLocation::QAttn, "q_attn"),
];

impl TransformLocation {
    /// The wire name.
    pub fn as_str(self) -> &'static str {
        LOCATIONS.iter().find(|it| it.0 == self).map_or("", |it| it.1)
    }

    /// Reads a wire name.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownName`].
    pub fn from_name(name: &str) -> Result<Self> {
        LOCATIONS.iter().find(|it| it.1 == name).map(|it| it.0).ok_or_else(|| {
            Error::from(ErrorKind::UnknownName {
                what: "transform location",
                name: name.to_owned(),
                known: LOCATIONS.iter().map(|it| it.1.to_owned()).collect(),
            })
        })
    }

    /// Whether the transform runs with the model instead of being folded into a weight.
    pub fn is_online(self) -> bool {
        !matches!(self, Self::WeightInput | Self::WeightOutput)
    }
}

/// The kinds of transform matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransformType {
    /// Sylvester's Hadamard matrix.
    Hadamard,
    /// A Hadamard matrix with random row signs.
    RandomHadamard,
    /// Uniform random entries, undone by the inverse.
    RandomMatrix,
}

/// Kinds with their wire names.
const TYPES: &[(TransformType, &str)] = &[
    (TransformType::Hadamard, "hadamard"),
    (TransformType::RandomHadamard, "random-hadamard"),
    (TransformType::RandomMatrix, "random-matrix"),
];

impl TransformType {
    /// Reads a registry name: letter case does not count, `_` and space read as `-`.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownName`].
    pub fn from_name(name: &str) -> Result<Self> {
        let plain = name.to_lowercase().replace(['_', ' '], "-");
        TYPES.iter().find(|it| it.1 == plain).map(|it| it.0).ok_or_else(|| {
            Error::from(ErrorKind::UnknownName {
                what: "transform type",
                name: name.to_owned(),
                known: TYPES.iter().map(|it| it.1.to_owned()).collect(),
            })
        })
    }
}

/// One use of a transform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransformArgs {
    /// Module names, class names or `re:` patterns.
    pub targets: Vec<String>,
    /// Where on the module.
    pub location: TransformLocation,
    /// Whether the inverse acts.
    pub inverse: bool,
    /// Modules left out.
    pub ignore: Vec<String>,
}

/// A family of matrices, one for each size, and its uses.
#[derive(Clone, Debug, PartialEq)]
pub struct TransformScheme {
    /// Name of the kind; a name nobody knows is refused when matrices are made, as in the reference.
    pub r#type: String,
    /// The uses, in order of matrix creation.
    pub apply: Vec<TransformArgs>,
    /// Whether Hadamard matrices are permuted at random.
    pub randomize: bool,
    /// Whether matrices are trained.
    pub requires_grad: bool,
    /// Size of the blocks on the diagonal, instead of the module's width.
    pub head_dim: Option<usize>,
    /// Width of matrices that run with the model.
    pub precision: DType,
}

/// All transforms of a model: `transform_config` of `config.json`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TransformConfig {
    /// Schemes under their names; a name becomes a prefix of saved tensors.
    pub config_groups: IndexMap<String, TransformScheme>,
}

impl TransformArgs {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] and [`ErrorKind::UnknownName`], and unknown keys.
    pub fn from_json(value: &Value) -> Result<Self> {
        let map = wire::object("transform args", value)?;
        wire::only_known(map, &["targets", "location", "inverse", "ignore"])?;
        let location = map.get("location").unwrap_or(&Value::Null);
        Ok(Self {
            targets: one_or_more("targets", map.get("targets").unwrap_or(&Value::Null))?,
            location: TransformLocation::from_name(&wire::string("location", location)?)?,
            inverse: flag(map, "inverse")?,
            ignore: map.get("ignore").map_or(Ok(Vec::new()), |it| one_or_more("ignore", it))?,
        })
    }

    /// All four keys.
    pub fn to_json(&self) -> Value {
        json!({
            "targets": self.targets,
            "location": self.location.as_str(),
            "inverse": self.inverse,
            "ignore": self.ignore,
        })
    }
}

impl TransformScheme {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// As [`TransformArgs::from_json`], with the field as the place.
    pub fn from_json(value: &Value) -> Result<Self> {
        let map = wire::object("transform scheme", value)?;
        wire::only_known(map, &["type", "apply", "randomize", "requires_grad", "head_dim", "precision"])?;
        let apply = match map.get("apply") {
            None => Vec::new(),
            Some(Value::Array(list)) => list
                .iter()
                .enumerate()
                .map(|(idx, it)| TransformArgs::from_json(it).map_err(|e| e.at(format!("apply[{idx}]"))))
                .collect::<Result<_>>()?,
            Some(other) => return Err(refuse("apply", other, "a list of transform args")),
        };
        let head_dim = wire::given(map, "head_dim")
            .map(|it| {
                let n = wire::integer("head_dim", it)?;
                usize::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| refuse("head_dim", it, "a positive integer"))
            })
            .transpose()?;
        let precision = match map.get("precision") {
            None => DType::F32,
            Some(it) => it
                .as_str()
                .and_then(DType::from_torch_name)
                .filter(|it| Precision::from_dtype(*it).is_ok())
                .ok_or_else(|| refuse("precision", it, "a floating dtype such as `torch.float32`"))?,
        };
        Ok(Self {
            r#type: wire::string("type", map.get("type").unwrap_or(&Value::Null))?,
            apply,
            randomize: flag(map, "randomize")?,
            requires_grad: flag(map, "requires_grad")?,
            head_dim,
            precision,
        })
    }

    /// All six keys, nulls included.
    pub fn to_json(&self) -> Value {
        json!({
            "type": self.r#type,
            "apply": self.apply.iter().map(TransformArgs::to_json).collect::<Vec<_>>(),
            "randomize": self.randomize,
            "requires_grad": self.requires_grad,
            "head_dim": self.head_dim,
            "precision": self.precision.torch_name().map(|it| format!("torch.{it}")),
        })
    }
}

impl TransformConfig {
    /// Reads the value of `transform_config`; an empty object has no groups.
    ///
    /// # Errors
    /// As [`TransformArgs::from_json`], with group and field as the place.
    pub fn from_json(value: &Value) -> Result<Self> {
        let map = wire::object("transform_config", value)?;
        wire::only_known(map, &["config_groups"])?;
        let Some(groups) = map.get("config_groups") else { return Ok(Self::default()) };
        let groups = wire::object("config_groups", groups)?.iter();
        let config_groups = groups
            .map(|(name, it)| Ok((name.clone(), TransformScheme::from_json(it).map_err(|e| e.at(name))?)))
            .collect::<Result<_>>()?;
        Ok(Self { config_groups })
    }

    /// The object under `transform_config`.
    pub fn to_json(&self) -> Value {
        let groups: Map<_, _> = self.config_groups.iter().map(|(name, it)| (name.clone(), it.to_json())).collect();
        json!({ "config_groups": groups })
    }

    /// Appends the groups of `other`; a name in use gets the next free number (`R1`, `R1_1`, ...).
    pub fn merge(&mut self, other: Self) {
        for (name, scheme) in other.config_groups {
            let name = find_unique_name(&name, |it| self.config_groups.contains_key(it));
            self.config_groups.insert(name, scheme);
        }
    }
}

fn flag(map: &Map<String, Value>, field: &str) -> Result<bool> {
    map.get(field).map_or(Ok(false), |it| wire::boolean(field, it))
}

/// A list of strings, or one string for a list of one.
fn one_or_more(field: &str, value: &Value) -> Result<Vec<String>> {
    match value {
        Value::String(one) => Ok(vec![one.clone()]),
        more => wire::strings(field, more),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheme(value: Value) -> Result<TransformScheme> {
        TransformScheme::from_json(&value)
    }

    #[test]
    fn bare_strings_are_lists_of_one_and_defaults_are_filled_in() {
        let value =
            json!({"type": "hadamard", "apply": [{"targets": "Linear", "location": "input", "ignore": "lm_head"}]});
        let read = scheme(value).unwrap();
        assert_eq!(read.apply[0].targets, ["Linear"]);
        assert_eq!(read.apply[0].ignore, ["lm_head"]);
        assert_eq!((read.precision, read.head_dim, read.randomize), (DType::F32, None, false));
        assert_eq!(scheme(read.to_json()).unwrap(), read);
    }

    #[test]
    fn faults_name_the_field_and_the_group() {
        let config = |scheme: Value| TransformConfig::from_json(&json!({"config_groups": {"R1": scheme}})).unwrap_err();
        let error = config(json!({"type": "hadamard", "apply": [{"targets": [], "location": "inptu"}]}));
        assert!(matches!(error.kind(), ErrorKind::UnknownName { name, .. } if name == "inptu"));
        assert_eq!(error.place(), Some("R1.apply[0]"));
        for (field, value) in [("head_dim", json!(0)), ("precision", json!("torch.int8")), ("randomize", json!([]))] {
            let error = config(json!({"type": "hadamard", field: value}));
            assert!(matches!(error.kind(), ErrorKind::InvalidField { field: it, .. } if it == field), "{error}");
        }
        assert!(scheme(json!({"type": "hadamard", "headdim": 4})).is_err());
        assert!(scheme(json!({})).is_err());
    }

    #[test]
    fn a_merged_group_gets_the_next_free_name() {
        let one = |names: &[&str]| TransformConfig {
            config_groups: names.iter().map(|n| ((*n).to_owned(), scheme(json!({"type": "x"})).unwrap())).collect(),
        };
        let mut config = one(&["R", "x_3"]);
        config.merge(one(&["R", "x_3", "y"]));
        assert_eq!(config.config_groups.keys().collect::<Vec<_>>(), ["R", "x_3", "R_1", "x_4", "y"]);
    }

    #[test]
    fn type_names_are_read_as_registry_names() {
        assert_eq!(TransformType::from_name("Random_Hadamard").unwrap(), TransformType::RandomHadamard);
        assert!(TransformType::from_name("fourier").is_err());
    }
}
