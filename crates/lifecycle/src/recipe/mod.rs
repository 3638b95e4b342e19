//! [`Recipe`]: stages of groups of modifiers, each a type name with fields.
//!
//! A recipe knows no modifier. [`Recipe::resolve`] checks it against a [`Registry`] that the caller hands
//! over and gives a printable [`Plan`], from which the modifiers are built.

pub mod expression;
mod input;
mod kinds;
pub mod legacy;
mod merge;
mod names;
mod node;
mod read;
mod registry;
mod resolve;
mod schema;
mod write;

use indexmap::IndexMap;
use serde_json::{Map, Value};

pub use self::{
    input::{Loaded, RecipeInput},
    merge::{append_recipe_dict, filter_dict},
    registry::{FieldKind, FieldSpec, ModifierSpec, Registry, Role},
    resolve::{Plan, PlannedModifier},
};
use crate::{error::Place, modifier::Fields};

/// A recipe as written: nothing is resolved or evaluated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recipe {
    /// Values that `eval(...)` in fields may name.
    pub args: Map<String, Value>,
    /// Stages in the order of execution; several may have one name.
    pub stages: Vec<Stage>,
}

/// A named part of a recipe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stage {
    /// Name without the suffix `_stage`.
    pub name: String,
    /// Values that hold in this stage only; the recipe's win.
    pub args: Map<String, Value>,
    /// `oneshot` or `train`, where the recipe says so.
    pub run_type: Option<String>,
    /// Groups in the order of execution; several may have one name.
    pub groups: Vec<Group>,
}

/// A named list of modifiers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// Name without the suffix `_modifiers`.
    pub name: String,
    /// Modifiers in the order of execution; several may have one type.
    pub modifiers: Vec<ModifierEntry>,
}

/// A modifier as written.
#[derive(Clone, Debug, Default)]
pub struct ModifierEntry {
    /// Its type.
    pub type_name: String,
    /// Its fields as written.
    pub fields: Fields,
    /// Where it stands, if it was read from a text.
    pub place: Option<Place>,
    /// Where its fields stand.
    pub field_places: IndexMap<String, Place>,
}

impl PartialEq for ModifierEntry {
    /// Two entries that say the same are equal wherever they stand.
    fn eq(&self, other: &Self) -> bool {
        self.type_name == other.type_name && self.fields == other.fields
    }
}

impl ModifierEntry {
    /// An entry that stands in no text.
    pub fn new(type_name: impl Into<String>, fields: Fields) -> Self {
        Self { type_name: type_name.into(), fields, ..Self::default() }
    }
}
