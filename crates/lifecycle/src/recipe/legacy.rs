//! Recipes of releases 0.1 to 0.5: opaque modifiers, arguments that are evaluated, stages that follow each
//! other in time.
//!
//! [`Recipe`](super::Recipe) reads the same texts for a run. This reader keeps what the old recipe system
//! knew beyond that: evaluated arguments beside the written ones, schedules, targets of stages, and a
//! container that joins recipes.

use serde_json::{Map, Number, Value};

use super::{
    expression::RecipeArgs,
    node::{Format, Key, Node, Tree},
    write::to_yaml,
};
use crate::{Result, error::ErrorKind};

/// A recipe of the first releases.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LegacyRecipe {
    /// Arguments as written.
    pub args: RecipeArgs,
    /// Arguments after [`LegacyRecipe::evaluate`].
    pub args_evaluated: RecipeArgs,
    /// Stages in order.
    pub stages: Vec<LegacyStage>,
}

/// A stage of a [`LegacyRecipe`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LegacyStage {
    /// Its name.
    pub group: String,
    /// How it runs, where the recipe says so.
    pub run_type: Option<StageRunType>,
    /// Modifiers in order.
    pub modifiers: Vec<LegacyModifier>,
}

/// How a stage runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageRunType {
    /// With an optimizer.
    Train,
    /// Without.
    Oneshot,
}

impl StageRunType {
    /// The wire name.
    pub fn value(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Oneshot => "oneshot",
        }
    }
}

/// A modifier of a [`LegacyStage`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LegacyModifier {
    /// Its type.
    pub type_: String,
    /// Name of its group.
    pub group: String,
    /// Fields as written.
    pub args: Map<String, Value>,
    /// Fields after [`LegacyRecipe::evaluate`].
    pub args_evaluated: Map<String, Value>,
}

impl LegacyRecipe {
    /// Reads a recipe from JSON or YAML text.
    ///
    /// # Errors
    /// Text that breaks the grammar, with line and column.
    pub fn create_instance(text: &str) -> Result<Self> {
        let root = Node::parse(text, Format::Either, None)?;
        let mut recipe = Self::default();
        let mut default = LegacyStage { group: "default".to_owned(), ..LegacyStage::default() };
        for (key, node) in root.map("a recipe")? {
            if let Some((name, _)) = key.name.rsplit_once("_stage").filter(|it| it.1.is_empty()) {
                recipe.stages.push(stage(name, node)?);
            } else if key.name == "stages" {
                for (key, node) in node.map("`stages`")? {
                    recipe.stages.push(stage(&key.name, node)?);
                }
            } else if let Some(group) = key.name.strip_suffix("_modifiers") {
                default.modifiers.extend(group_of(group, node)?);
            } else if key.name == "modifiers" {
                default.modifiers.extend(listed(node)?);
            } else {
                recipe.args.0.insert(key.name.clone(), node.to_value());
            }
        }
        if !default.modifiers.is_empty() {
            recipe.stages.push(default);
        }
        Ok(recipe)
    }

    /// Evaluates arguments and modifiers, and moves schedules by `shift`.
    ///
    /// # Errors
    /// An expression that cannot be evaluated, or a modifier without fields.
    pub fn evaluate(&mut self, args: Option<&RecipeArgs>, shift: Option<&Number>) -> Result<()> {
        self.args = self.args.combine(args);
        self.args_evaluated = self.args.evaluate()?;
        for modifier in self.stages.iter_mut().flat_map(|it| &mut it.modifiers) {
            if modifier.args.is_empty() {
                let (what, found) = (format!("the fields of {}", modifier.type_), "empty".to_owned());
                return Err(ErrorKind::Shape { what, found, expected: "at least one".to_owned() }.into());
            }
            modifier.args_evaluated = self.args_evaluated.evaluate_ext(&modifier.args)?;
            for name in ["start", "end"] {
                if let (Some(Value::Number(number)), Some(shift)) = (modifier.args_evaluated.get_mut(name), shift) {
                    *number = sum(number, shift);
                }
            }
        }
        Ok(())
    }

    /// Keeps the stages that a target names, takes over arguments, and evaluates.
    ///
    /// # Errors
    /// As [`LegacyRecipe::evaluate`].
    pub fn simplify_recipe(tuple: &RecipeTuple, shift: Option<&Number>) -> Result<Self> {
        let mut recipe = tuple.recipe.clone();
        if let Some(targets) = tuple.target_stages.as_ref().filter(|it| !it.is_empty()) {
            recipe.stages.retain(|stage| targets.iter().any(|it| it.contains(&stage.group)));
        }
        recipe.evaluate(Some(&tuple.override_args), shift)?;
        Ok(recipe)
    }

    /// Puts recipes behind each other: each begins where those before it end.
    ///
    /// # Errors
    /// As [`LegacyRecipe::evaluate`].
    pub fn simplify_combine_recipes(tuples: &[RecipeTuple]) -> Result<Self> {
        let mut combined = Self::default();
        for tuple in tuples {
            let next = Self::simplify_recipe(tuple, Some(&combined.calculate_end()))?;
            combined.args = combined.args.combine(Some(&next.args));
            combined.args_evaluated = combined.args_evaluated.combine(Some(&next.args_evaluated));
            combined.stages.extend(next.stages);
        }
        Ok(combined)
    }

    /// The first start of any modifier, at least 0.
    ///
    /// # Errors
    /// No modifier with a start.
    pub fn calculate_start(&self) -> Result<Number> {
        let starts = self.schedule("start").into_iter().filter(|it| float(it) >= 0.0);
        starts.min_by(|left, right| float(left).total_cmp(&float(right))).ok_or_else(|| {
            let (what, found) = ("the recipe".to_owned(), "without any start".to_owned());
            ErrorKind::Shape { what, found, expected: "one modifier with a start".to_owned() }.into()
        })
    }

    /// The last end of any modifier, at least 0.
    pub fn calculate_end(&self) -> Number {
        let ends = self.schedule("end").into_iter().filter(|it| float(it) >= 0.0);
        ends.max_by(|left, right| float(left).total_cmp(&float(right))).unwrap_or_else(|| 0.into())
    }

    /// The recipe as YAML: arguments, then stages; stages of one name get numbers.
    pub fn yaml(&self) -> String {
        let mut dict = Map::new();
        if !self.args.0.is_empty() {
            dict.insert("args".to_owned(), Value::Object(self.args.0.clone()));
        }
        for (position, stage) in self.stages.iter().enumerate() {
            let same = |it: &&LegacyStage| it.group == stage.group;
            let key = match self.stages.iter().filter(same).count() {
                1 => format!("{}_stage", stage.group),
                _ => format!("{}_stage_{}", stage.group, self.stages[..position].iter().filter(same).count()),
            };
            dict.insert(key, Value::Object(stage.to_dict()));
        }
        to_yaml(&dict)
    }

    fn schedule(&self, name: &str) -> Vec<Number> {
        let modifiers = self.stages.iter().flat_map(|it| &it.modifiers);
        modifiers.filter_map(|it| it.args_evaluated.get(name)?.as_number().cloned()).collect()
    }
}

impl LegacyStage {
    /// How the stage runs: as the recipe says, or as its name does.
    pub fn infer_run_type(&self) -> Option<StageRunType> {
        self.run_type.or_else(|| match &self.group {
            group if group.contains("oneshot") => Some(StageRunType::Oneshot),
            group if group.contains("train") => Some(StageRunType::Train),
            _ => None,
        })
    }

    fn to_dict(&self) -> Map<String, Value> {
        let mut dict = Map::new();
        for modifier in &self.modifiers {
            let group =
                dict.entry(format!("{}_modifiers", modifier.group)).or_insert_with(|| Value::Object(Map::new()));
            group[&modifier.type_] = Value::Object(modifier.args.clone());
        }
        if let Some(run_type) = self.run_type {
            dict.insert("run_type".to_owned(), run_type.value().into());
        }
        dict
    }
}

fn float(number: &Number) -> f64 {
    number.as_f64().unwrap_or(f64::NAN)
}

/// A sum that stays whole where both numbers are.
fn sum(left: &Number, right: &Number) -> Number {
    let ints = left.as_i64().zip(right.as_i64()).and_then(|(left, right)| left.checked_add(right));
    ints.map(Number::from).or_else(|| Number::from_f64(float(left) + float(right))).unwrap_or_else(|| left.clone())
}

fn stage(group: &str, node: &Node) -> Result<LegacyStage> {
    let mut stage = LegacyStage { group: group.to_owned(), ..LegacyStage::default() };
    for (key, node) in node.map(format!("stage `{group}`"))? {
        match (key.name.strip_suffix("_modifiers"), key.name.as_str()) {
            (Some(group), _) => stage.modifiers.extend(group_of(group, node)?),
            (None, "run_type") => {
                stage.run_type = Some(match &node.tree {
                    Tree::Scalar(Value::String(text)) if text == "train" => StageRunType::Train,
                    Tree::Scalar(Value::String(text)) if text == "oneshot" => StageRunType::Oneshot,
                    _ => return Err(node.shape("`run_type`", "`train` or `oneshot`")),
                });
            }
            _ => {
                let known = ["<name>_modifiers", "run_type"].map(str::to_owned).to_vec();
                let what = format!("key of stage `{group}`");
                let name = key.name.clone();
                return Err(key.fault(ErrorKind::UnknownKey { what, name, nearest_names: Vec::new(), known }));
            }
        }
    }
    Ok(stage)
}

fn group_of(group: &str, node: &Node) -> Result<Vec<LegacyModifier>> {
    let modifier = |(key, node): &(Key, Node)| {
        let args = match &node.tree {
            Tree::Scalar(Value::Null) => Map::new(),
            _ => Node::pairs_to_map(node.map(format!("the value of {}", key.name))?),
        };
        let (type_, group) = (key.name.clone(), group.to_owned());
        Ok(LegacyModifier { type_, group, args, ..LegacyModifier::default() })
    };
    node.map(format!("group `{group}`"))?.iter().map(modifier).collect()
}

/// The list form, `[{type: Type, args: {...}}]`.
fn listed(node: &Node) -> Result<Vec<LegacyModifier>> {
    let Tree::List(items) = &node.tree else { return Err(node.shape("`modifiers`", "a list")) };
    let modifier = |item: &Node| {
        let value = item.to_value();
        let part = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let type_ = part("type").ok_or_else(|| item.shape("a modifier", "`{type: Type, args: {...}}`"))?;
        let args = value.get("args").and_then(Value::as_object).cloned().unwrap_or_default();
        let group = part("group").unwrap_or_else(|| "default".to_owned());
        Ok(LegacyModifier { type_, group, args, ..LegacyModifier::default() })
    };
    items.iter().map(modifier).collect()
}

/// A recipe with the stages to keep and the arguments to take over.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecipeTuple {
    /// The recipe.
    pub recipe: LegacyRecipe,
    /// Names that a kept stage's name is part of; `None` and none keep all.
    pub target_stages: Option<Vec<String>>,
    /// Arguments that replace the recipe's.
    pub override_args: RecipeArgs,
}

/// Which stages to keep of each recipe of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StageInput {
    /// All.
    #[default]
    All,
    /// The same for every recipe.
    Same(Vec<String>),
    /// Some for each recipe.
    Each(Vec<Vec<String>>),
}

/// Recipes that are joined to one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecipeContainer {
    /// The recipes as given.
    pub recipes: Vec<RecipeTuple>,
    /// The joined recipe, after [`RecipeContainer::check_compile_recipe`].
    pub compiled_recipe: Option<LegacyRecipe>,
}

impl RecipeContainer {
    /// Replaces the recipes, unless there are none. `args` holds one set a recipe.
    ///
    /// # Errors
    /// As many stages or arguments as there are recipes, or none, are expected.
    pub fn update(
        &mut self,
        recipes: Option<Vec<LegacyRecipe>>,
        stages: StageInput,
        args: Option<Vec<RecipeArgs>>,
    ) -> Result<()> {
        let recipes = recipes.unwrap_or_default();
        if recipes.is_empty() {
            return Ok(());
        }
        let count = recipes.len();
        let check = |argument: &'static str, found: usize| {
            if found == count {
                return Ok(());
            }
            Err(ErrorKind::OutOfRange { argument, found: format!("{found} long"), expected: format!("{count} long") })
        };
        let stages = match stages {
            StageInput::All => vec![None; count],
            StageInput::Same(names) => vec![Some(names); count],
            StageInput::Each(names) => {
                check("recipe_stage", names.len())?;
                names.into_iter().map(Some).collect()
            }
        };
        let args = match args {
            None => vec![RecipeArgs::default(); count],
            Some(args) => {
                check("recipe_args", args.len())?;
                args
            }
        };
        let tuples = recipes.into_iter().zip(stages).zip(args);
        self.recipes = tuples
            .map(|((recipe, target_stages), override_args)| RecipeTuple { recipe, target_stages, override_args })
            .collect();
        self.compiled_recipe = None;
        Ok(())
    }

    /// Joins the recipes if that has not been done, and says whether it was.
    ///
    /// # Errors
    /// As [`LegacyRecipe::simplify_combine_recipes`].
    pub fn check_compile_recipe(&mut self) -> Result<bool> {
        if self.recipes.is_empty() || self.compiled_recipe.is_some() {
            return Ok(false);
        }
        self.compiled_recipe = Some(LegacyRecipe::simplify_combine_recipes(&self.recipes)?);
        Ok(true)
    }

    /// Whether there is any recipe.
    pub fn check_any_recipe_exists(&self) -> bool {
        !self.recipes.is_empty()
    }
}
