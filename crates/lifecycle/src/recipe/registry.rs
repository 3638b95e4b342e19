//! [`Registry`]: what a recipe may say about each modifier, as data handed over by the caller.

use serde_json::Value;

use crate::{
    Result,
    error::ErrorKind,
    modifier::{Fields, Modifier},
};

/// What a modifier does to a model, for rules about the order of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Gives modules a scheme: quantization, GPTQ, AutoRound.
    Quantizer,
    /// Changes weights without a scheme.
    Transform,
    /// A transform that is useless unless a quantizer follows: AWQ.
    TransformBeforeQuantizer,
    /// Removes weights.
    Pruner,
    /// Anything else.
    Other,
}

/// Which values a field takes.
///
/// Values are read as leniently as the reference reads them: numbers and truth values may be written as
/// text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FieldKind {
    /// A truth value; `yes`, `no`, `on`, `off`, `t`, `f`, `y`, `n`, `1` and `0` count.
    Bool,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// A text.
    Text,
    /// One of some texts.
    Choice(&'static [&'static str]),
    /// A list.
    List(&'static FieldKind),
    /// A text or a list of texts.
    TextOrList,
    /// A list of texts; a single text is wrapped.
    TextList,
    /// A mapping from names to values of one kind.
    Map(&'static FieldKind),
    /// A mapping with fields of its own.
    Object(&'static [FieldSpec]),
    /// The first kind that takes the value.
    OneOf(&'static [FieldKind]),
    /// Anything.
    Any,
}

/// A field of a modifier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FieldSpec {
    /// Wire name.
    pub name: &'static str,
    /// Which values it takes.
    pub kind: FieldKind,
    /// The value it has where the recipe does not say, as JSON; `None` where a recipe must say.
    /// With default `null` the field takes null.
    pub default: Option<&'static str>,
    /// One sentence for the schema.
    pub doc: &'static str,
}

/// Everything a recipe needs to know about a modifier type.
#[derive(Clone, Copy, Debug)]
pub struct ModifierSpec {
    /// The type's name, the key in a recipe.
    pub name: &'static str,
    /// One sentence for the schema.
    pub doc: &'static str,
    /// What it does, for rules about order.
    pub role: Role,
    /// Its own fields, in the order in which they are written out. Those of
    /// [`Settings`](crate::modifier::Settings) and `requires_calibration_data` are added, unless listed
    /// here.
    pub fields: &'static [FieldSpec],
    /// Rules across fields: refuses, or fills in what follows from other fields. Called with all fields
    /// present, defaults written out.
    pub check: fn(&mut Fields) -> Result<()>,
    /// Makes the modifier from fields that passed `check`.
    pub build: fn(&Fields) -> Result<Box<dyn Modifier>>,
}

/// The fields of every modifier.
const BASE_FIELDS: &[FieldSpec] = &[
    FieldSpec {
        name: "requires_calibration_data",
        kind: FieldKind::Bool,
        default: Some("false"),
        doc: "Whether the modifier needs calibration data.",
    },
    FieldSpec { name: "index", kind: FieldKind::Int, default: Some("null"), doc: "Position among the modifiers." },
    FieldSpec { name: "group", kind: FieldKind::Text, default: Some("null"), doc: "Set by the recipe's structure." },
    FieldSpec { name: "start", kind: FieldKind::Float, default: Some("null"), doc: "First index at which it works." },
    FieldSpec { name: "end", kind: FieldKind::Float, default: Some("null"), doc: "First index after its work." },
    FieldSpec { name: "update", kind: FieldKind::Float, default: Some("null"), doc: "Interval between updates." },
];

impl ModifierSpec {
    /// All fields: those of every modifier that it does not list itself, then its own. A modifier that
    /// lists some of the base fields decides where they stand.
    pub fn all_fields(&self) -> Vec<FieldSpec> {
        let listed = |name: &str| self.fields.iter().any(|it| it.name == name);
        let missing = BASE_FIELDS.iter().filter(|it| !listed(it.name)).copied();
        missing.chain(self.fields.iter().copied()).collect()
    }
}

impl FieldSpec {
    /// The default as a value; `None` where a recipe must say.
    pub fn default_value(&self) -> Option<Value> {
        self.default.map(|json| serde_json::from_str(json).unwrap_or_else(|_| Value::String(json.to_owned())))
    }
}

/// The modifier types of a run, in display order.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    specs: Vec<ModifierSpec>,
}

impl Registry {
    /// A registry of the given types.
    pub fn new(specs: &[ModifierSpec]) -> Self {
        Self { specs: specs.to_vec() }
    }

    /// Adds a type.
    ///
    /// # Errors
    /// A name that is registered already.
    pub fn register(&mut self, spec: ModifierSpec) -> Result<()> {
        if self.get(spec.name).is_some() {
            return Err(ErrorKind::AlreadyRegistered { what: "modifier", name: spec.name.to_owned() }.into());
        }
        self.specs.push(spec);
        Ok(())
    }

    /// The type of that name.
    pub fn get(&self, name: &str) -> Option<&ModifierSpec> {
        self.specs.iter().find(|it| it.name == name)
    }

    /// All types.
    pub fn specs(&self) -> &[ModifierSpec] {
        &self.specs
    }
}
