//! `sparsity_config`, which versions up to 0.14 filled and later ones leave empty.

use serde_json::Value;

use crate::{
    ErrorKind, Result,
    wire::{self, refuse},
};

/// Which elements of a pruned weight are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SparsityStructure {
    /// Two of every four.
    TwoFour,
    /// Any.
    #[default]
    Unstructured,
    /// Any; an older spelling.
    ZeroZero,
}

impl SparsityStructure {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::TwoFour => "2:4",
            Self::Unstructured => "unstructured",
            Self::ZeroZero => "0:0",
        }
    }

    /// Reads a name in any letter case.
    ///
    /// # Errors
    /// `UnknownName`.
    pub fn from_name(name: &str) -> Result<Self> {
        let all = [Self::TwoFour, Self::Unstructured, Self::ZeroZero];
        all.into_iter().find(|it| it.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            let known = all.map(|it| it.name().to_owned()).to_vec();
            ErrorKind::UnknownName { what: "sparsity structure", name: name.to_owned(), known }.into()
        })
    }
}

/// How a checkpoint with retired sparse tensors describes them.
#[derive(Clone, Debug, PartialEq)]
pub struct SparsityConfig {
    /// `dense`, `sparse-bitmask` or `sparse-24-bitmask`.
    pub format: String,
    /// Modules meant, where listed.
    pub targets: Option<Vec<String>>,
    /// Modules left out, where listed.
    pub ignore: Option<Vec<String>>,
    /// Share of zeros in the whole model.
    pub global_sparsity: f64,
    /// Which elements are zero.
    pub sparsity_structure: SparsityStructure,
}

impl SparsityConfig {
    /// Reads a JSON object, of which only `format` is required; null and `{}` say that there is none.
    ///
    /// # Errors
    /// `InvalidField` and `UnknownName`.
    pub fn from_json(value: &Value) -> Result<Option<Self>> {
        if value.is_null() {
            return Ok(None);
        }
        let map = wire::object("sparsity_config", value)?;
        if map.is_empty() {
            return Ok(None);
        }
        let list = |key: &str| wire::given(map, key).map(|it| wire::strings(key, it)).transpose();
        let structure = wire::given(map, "sparsity_structure")
            .map(|it| it.as_str().ok_or_else(|| refuse("sparsity_structure", it, "a string")))
            .transpose()?;
        Ok(Some(Self {
            format: wire::string("format", map.get("format").unwrap_or(&Value::Null))?,
            targets: list("targets")?,
            ignore: list("ignore")?,
            global_sparsity: wire::given(map, "global_sparsity")
                .map_or(Ok(0.0), |it| wire::number("global_sparsity", it))?,
            sparsity_structure: structure.map_or(Ok(SparsityStructure::default()), SparsityStructure::from_name)?,
        }))
    }
}
