//! Where the modifiers of a run come from.

use serde_json::{Map, Value};

use super::{Group, ModifierEntry, Recipe, Registry, Stage};
use crate::{
    Result,
    modifier::{Modifier, recipe_fields},
};

/// A recipe in one of the forms that a run accepts.
pub enum RecipeInput {
    /// A modifier.
    Modifier(Box<dyn Modifier>),
    /// Several of any form, nested to any depth, in order.
    List(Vec<RecipeInput>),
}

impl Default for RecipeInput {
    /// Nothing.
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl From<Box<dyn Modifier>> for RecipeInput {
    fn from(modifier: Box<dyn Modifier>) -> Self {
        Self::Modifier(modifier)
    }
}

/// A recipe with the modifiers made from it.
pub(crate) struct Loaded {
    pub(crate) recipe: Recipe,
    pub(crate) modifiers: Vec<Box<dyn Modifier>>,
}

impl RecipeInput {
    /// Makes the modifiers.
    pub(crate) fn load(
        self,
        _registry: &Registry,
        _stage: Option<&str>,
        _args: Option<Map<String, Value>>,
    ) -> Result<Loaded> {
        let mut modifiers = Vec::new();
        self.flatten(&mut modifiers);
        let entry = |it: &dyn Modifier| ModifierEntry::new(it.type_name(), recipe_fields(it));
        let entries = modifiers.iter().map(|it| entry(&**it)).collect();
        let group = Group { name: "default".to_owned(), modifiers: entries };
        let stage = Stage { name: "default".to_owned(), groups: vec![group], ..Stage::default() };
        Ok(Loaded { recipe: Recipe { stages: vec![stage], ..Recipe::default() }, modifiers })
    }

    fn flatten(self, modifiers: &mut Vec<Box<dyn Modifier>>) {
        match self {
            Self::Modifier(modifier) => modifiers.push(modifier),
            Self::List(inputs) => inputs.into_iter().for_each(|it| it.flatten(modifiers)),
        }
    }
}
