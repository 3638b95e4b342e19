//! `sparsity_config`: the part of `quantization_config` that named a sparse format.

use serde_json::{Value, json};

use crate::{
    Error, ErrorKind, Result,
    wire::{self, refuse},
};

/// Formats that a `sparsity_config` may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SparsityFormat {
    /// Weights as they are.
    Dense,
    /// Non-zero values and a mask.
    SparseBitmask,
    /// Two values of every four and a mask.
    Sparse24Bitmask,
}

/// Formats with their wire names.
const FORMATS: &[(SparsityFormat, &str)] = &[
    (SparsityFormat::Dense, "dense"),
    (SparsityFormat::SparseBitmask, "sparse-bitmask"),
    (SparsityFormat::Sparse24Bitmask, "sparse-24-bitmask"),
];

/// Where zeros lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SparsityStructure {
    /// At least two zeros in every four elements.
    TwoFour,
    /// Anywhere.
    Unstructured,
    /// Nowhere in particular; written for dense models.
    ZeroZero,
}

/// Structures with their wire names.
const STRUCTURES: &[(SparsityStructure, &str)] = &[
    (SparsityStructure::TwoFour, "2:4"),
    (SparsityStructure::Unstructured, "unstructured"),
    (SparsityStructure::ZeroZero, "0:0"),
];

/// The value of `sparsity_config`.
#[derive(Clone, Debug, PartialEq)]
pub struct SparsityConfig {
    /// How weights are stored.
    pub format: SparsityFormat,
    /// Modules it covers.
    pub targets: Option<Vec<String>>,
    /// Modules left out.
    pub ignore: Option<Vec<String>>,
    /// Part of all weights that is zero.
    pub global_sparsity: f64,
    /// Where zeros lie.
    pub sparsity_structure: SparsityStructure,
}

impl SparsityFormat {
    /// The wire name.
    pub fn as_str(self) -> &'static str {
        FORMATS.iter().find(|it| it.0 == self).map_or("", |it| it.1)
    }

    /// Reads a registry name: letter case does not count, `_` and space read as `-`.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownName`].
    pub fn from_name(name: &str) -> Result<Self> {
        let plain = name.to_lowercase().replace(['_', ' '], "-");
        FORMATS.iter().find(|it| it.1 == plain).map(|it| it.0).ok_or_else(|| {
            Error::from(ErrorKind::UnknownName {
                what: "sparsity format",
                name: name.to_owned(),
                known: FORMATS.iter().map(|it| it.1.to_owned()).collect(),
            })
        })
    }
}

impl SparsityStructure {
    /// The wire name.
    pub fn as_str(self) -> &'static str {
        STRUCTURES.iter().find(|it| it.0 == self).map_or("", |it| it.1)
    }

    /// Reads a wire name in any letter case; null means `unstructured`.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownName`] and, for what is no string, [`ErrorKind::InvalidField`].
    pub fn from_json(value: &Value) -> Result<Self> {
        if value.is_null() {
            return Ok(Self::Unstructured);
        }
        let name = wire::string("sparsity_structure", value)?;
        let plain = name.to_lowercase();
        STRUCTURES.iter().find(|it| it.1 == plain).map(|it| it.0).ok_or_else(|| {
            Error::from(ErrorKind::UnknownName {
                what: "sparsity structure",
                name,
                known: STRUCTURES.iter().map(|it| it.1.to_owned()).collect(),
            })
        })
    }
}

impl SparsityConfig {
    /// Reads a JSON object; an empty one means that there is none. Keys that are not its own are passed
    /// over, since writers left a registry's internals there.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] and [`ErrorKind::UnknownName`].
    pub fn from_json(value: &Value) -> Result<Option<Self>> {
        let map = wire::object("sparsity_config", value)?;
        if map.is_empty() {
            return Ok(None);
        }
        let format = wire::string("format", map.get("format").unwrap_or(&Value::Null))?;
        let format = SparsityFormat::from_name(&format)?;
        let names = |field| wire::given(map, field).map(|it| wire::strings(field, it)).transpose();
        let global_sparsity = match map.get("global_sparsity") {
            None => 0.0,
            Some(it) => it.as_f64().ok_or_else(|| refuse("global_sparsity", it, "a number"))?,
        };
        let sparsity_structure = match (map.get("sparsity_structure"), format) {
            (Some(it), _) => SparsityStructure::from_json(it)?,
            (None, SparsityFormat::Sparse24Bitmask) => SparsityStructure::TwoFour,
            (None, _) => SparsityStructure::Unstructured,
        };
        Ok(Some(Self {
            format,
            targets: names("targets")?,
            ignore: names("ignore")?,
            global_sparsity,
            sparsity_structure,
        }))
    }

    /// All keys that the reference writes, its registry's constant included.
    pub fn to_json(&self) -> Value {
        json!({
            "format": self.format.as_str(),
            "targets": self.targets,
            "ignore": self.ignore,
            "global_sparsity": self.global_sparsity,
            "sparsity_structure": self.sparsity_structure.as_str(),
            "registry_requires_subclass": false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_depend_on_the_format() {
        let read = |value| SparsityConfig::from_json(&value).unwrap().unwrap();
        let two_four = read(json!({"format": "Sparse_24_Bitmask"}));
        assert_eq!(two_four.sparsity_structure, SparsityStructure::TwoFour);
        let bitmask =
            read(json!({"format": "sparse-bitmask", "global_sparsity": 0.5, "registry_requires_subclass": false}));
        assert_eq!((bitmask.sparsity_structure, bitmask.global_sparsity), (SparsityStructure::Unstructured, 0.5));
        assert_eq!(read(bitmask.to_json()), bitmask);
        let null = read(json!({"format": "dense", "sparsity_structure": null, "targets": ["Linear"]}));
        assert_eq!(null.sparsity_structure, SparsityStructure::Unstructured);
        assert_eq!(null.targets.as_deref(), Some(&["Linear".to_owned()][..]));
        assert_eq!(SparsityConfig::from_json(&json!({})).unwrap(), None);
    }

    #[test]
    fn faults_name_the_field() {
        let kind = |value| SparsityConfig::from_json(&value).unwrap_err().kind().clone();
        assert!(matches!(kind(json!({"format": "csr"})), ErrorKind::UnknownName { name, .. } if name == "csr"));
        assert!(matches!(kind(json!({"targets": []})), ErrorKind::InvalidField { field, .. } if field == "format"));
        let structure = kind(json!({"format": "dense", "sparsity_structure": "1:4"}));
        assert!(matches!(structure, ErrorKind::UnknownName { what: "sparsity structure", .. }));
        let targets = kind(json!({"format": "dense", "targets": "Linear"}));
        assert!(matches!(targets, ErrorKind::InvalidField { field, .. } if field == "targets"));
        assert!(SparsityStructure::from_json(&json!("2:4")).is_ok());
    }
}
