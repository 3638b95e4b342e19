//! Where the modifiers of a run come from.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Group, ModifierEntry, Recipe, Registry, Stage};
use crate::{
    Result,
    modifier::{Modifier, recipe_fields},
};

/// A recipe in one of the forms that a run accepts.
pub enum RecipeInput {
    /// A recipe that was read.
    Recipe(Recipe),
    /// A recipe as JSON or YAML text.
    Text(String),
    /// A recipe file.
    File(PathBuf),
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

impl From<Recipe> for RecipeInput {
    fn from(recipe: Recipe) -> Self {
        Self::Recipe(recipe)
    }
}

impl From<&str> for RecipeInput {
    /// The path of an existing file is a file, anything else is text.
    fn from(text: &str) -> Self {
        let path = Path::new(text);
        if path.is_file() { Self::File(path.to_owned()) } else { Self::Text(text.to_owned()) }
    }
}

impl From<Box<dyn Modifier>> for RecipeInput {
    fn from(modifier: Box<dyn Modifier>) -> Self {
        Self::Modifier(modifier)
    }
}

impl<T: Into<Self>> From<Vec<T>> for RecipeInput {
    fn from(inputs: Vec<T>) -> Self {
        Self::List(inputs.into_iter().map(Into::into).collect())
    }
}

/// A recipe with the modifiers made from it.
pub struct Loaded {
    /// The recipe with defaults written out.
    pub recipe: Recipe,
    /// Its modifiers in the order of execution.
    pub modifiers: Vec<Box<dyn Modifier>>,
}

impl RecipeInput {
    /// Reads and resolves the recipe and makes its modifiers.
    ///
    /// `stage` keeps only stages of texts and files whose key starts with it; `args` go over the recipe's
    /// arguments. Modifiers that are given as such stand in the stage `default`, in their own group or in
    /// `default`.
    ///
    /// # Errors
    /// As [`Recipe::from_file`] and [`Recipe::resolve`].
    pub fn load(self, registry: &Registry, stage: Option<&str>, args: Option<Map<String, Value>>) -> Result<Loaded> {
        let mut loaded = Loaded { recipe: Recipe::default(), modifiers: Vec::new() };
        self.load_into(&mut loaded, registry, stage, &args.unwrap_or_default())?;
        Ok(loaded)
    }

    fn load_into(
        self,
        loaded: &mut Loaded,
        registry: &Registry,
        stage: Option<&str>,
        args: &Map<String, Value>,
    ) -> Result<()> {
        let mut recipe = match self {
            Self::Recipe(recipe) => recipe,
            Self::Text(text) => Recipe::from_text(&text, stage)?,
            Self::File(path) => Recipe::from_file(&path, stage)?,
            Self::Modifier(modifier) => {
                loaded.recipe.push_modifier(&*modifier);
                loaded.modifiers.push(modifier);
                return Ok(());
            }
            Self::List(inputs) => {
                for input in inputs {
                    input.load_into(loaded, registry, stage, args)?;
                }
                return Ok(());
            }
        };
        recipe.args.extend(args.clone());
        let plan = recipe.resolve(registry)?;
        loaded.modifiers.extend(plan.build()?);
        loaded.recipe.append(plan.recipe().clone());
        Ok(())
    }
}

impl Recipe {
    /// The recipe of some modifiers, in the stage `stage`, or `default`.
    pub fn from_modifiers(modifiers: &[Box<dyn Modifier>], stage: Option<&str>) -> Self {
        let mut recipe = Self::default();
        for modifier in modifiers {
            recipe.push_modifier(&**modifier);
        }
        if let (Some(name), Some(stage)) = (stage, recipe.stages.first_mut()) {
            stage.name = name.to_owned();
        }
        recipe
    }

    /// Puts a modifier at the end of the stage `default`, behind others of its group.
    fn push_modifier(&mut self, modifier: &dyn Modifier) {
        let entry = ModifierEntry::new(modifier.type_name(), recipe_fields(modifier));
        let group = modifier.settings().group.as_deref().unwrap_or("default");
        if self.stages.last().is_none_or(|it| it.name != "default") {
            self.stages.push(Stage { name: "default".to_owned(), ..Stage::default() });
        }
        let Some(stage) = self.stages.last_mut() else { return };
        if stage.groups.last().is_none_or(|it| it.name != group) {
            stage.groups.push(Group { name: group.to_owned(), modifiers: Vec::new() });
        }
        if let Some(group) = stage.groups.last_mut() {
            group.modifiers.push(entry);
        }
    }
}
