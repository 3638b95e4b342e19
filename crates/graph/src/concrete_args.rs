//! Arguments of a model's forward function that a trace fixes because the sample does not give them.

use indexmap::IndexMap;

/// How a parameter takes its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// By position or name.
    Named,
    /// All further positions (`*args`).
    VarPositional,
    /// All further names (`**kwargs`).
    VarKeyword,
}

/// The value that an argument is fixed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Concrete {
    /// The parameter has no default; it must be given.
    NoDefault,
    /// Nothing.
    None,
    /// A truth value.
    Bool(bool),
    /// A number.
    Int(i64),
    /// An empty list.
    EmptyList,
    /// An empty map.
    EmptyMap,
}

/// A parameter of a forward function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// How it takes arguments.
    pub kind: ParameterKind,
    /// What it is where it is not given.
    pub default: Concrete,
}

/// What each parameter that `sample_input` lacks is fixed to: lists and maps are empty, `use_cache` is false, all others take
/// their default.
pub fn populate_concrete_args(signature: &[Parameter], sample_input: &[&str]) -> IndexMap<String, Concrete> {
    let missing = signature.iter().filter(|parameter| !sample_input.contains(&parameter.name.as_str()));
    let fixed = missing.map(|parameter| {
        let value = match (parameter.kind, parameter.name.as_str()) {
            (ParameterKind::VarPositional, _) => Concrete::EmptyList,
            (ParameterKind::VarKeyword, _) => Concrete::EmptyMap,
            (ParameterKind::Named, "use_cache") => Concrete::Bool(false),
            (ParameterKind::Named, _) => parameter.default.clone(),
        };
        (parameter.name.clone(), value)
    });
    fixed.collect()
}
