//! What a recipe means: the plan that it resolves to, and which modules of a model each modifier concerns.

mod facts;
mod tables;

use std::{
    fs,
    path::{Path, PathBuf},
};

use lifecycle::{
    Place, Recipe, Registry,
    recipe::{Plan, PlannedModifier},
};
use modifiers::MODIFIERS;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    Progress,
    error::{ErrorKind, Result},
    model_free::Tolerance,
    names::fold_names,
};
use facts::model_facts;

pub use tables::field_tables;
pub(crate) use tables::own_fields;

/// What `check_recipe` is asked to do.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// The recipe: YAML, JSON, or the front matter of a Markdown file.
    pub recipe: PathBuf,
    /// Keeps the stages whose name starts with this.
    pub stage: Option<String>,
    /// A model to match patterns in: a directory or a hub id.
    pub model: Option<String>,
    /// `ignore` patterns that match nothing.
    pub unmatched_ignore: Tolerance,
}

impl CheckOptions {
    /// Options that check a recipe by itself.
    pub fn new(recipe: impl Into<PathBuf>) -> Self {
        Self { recipe: recipe.into(), stage: None, model: None, unmatched_ignore: Tolerance::Allow }
    }
}

/// A recipe that passed.
#[derive(Clone, Debug, Serialize)]
pub struct CheckedRecipe {
    /// The file.
    pub recipe: PathBuf,
    /// The model that patterns were matched in.
    pub model: Option<String>,
    /// Values that `eval(...)` in fields may name, evaluated.
    pub args: Map<String, Value>,
    /// The modifiers in the order in which they run.
    pub modifiers: Vec<CheckedModifier>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// A modifier of a recipe.
#[derive(Clone, Debug, Serialize)]
pub struct CheckedModifier {
    /// Its type.
    pub r#type: &'static str,
    /// Name of its stage.
    pub stage: String,
    /// Name of its group.
    pub group: String,
    /// Line on which it stands, from 1.
    pub line: Option<u64>,
    /// Whether it needs calibration data.
    pub needs_data: bool,
    /// Its fields, defaults written out, those that are null left out.
    pub fields: Map<String, Value>,
    /// Fields among these that the recipe leaves at their default.
    pub defaults: Vec<String>,
    /// What it concerns in the model, where one was given.
    pub modules: Option<ModulesOf>,
    #[serde(skip)]
    text: String,
}

/// Modules of a model that a modifier concerns, by name.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ModulesOf {
    /// Matched by `targets` and not by `ignore`.
    pub targeted: Vec<String>,
    /// Modules that it changes.
    pub changed: Vec<String>,
    /// What it observes: `<module>:input`, `:output`, `:query`, `:key` or `:value`.
    pub observed: Vec<String>,
}

/// The modifiers that recipes may name.
pub fn registry() -> Registry {
    Registry::new(MODIFIERS)
}

/// The JSON schema of recipes, for editors, in draft 2020-12.
pub fn schema() -> Value {
    registry().json_schema()
}

/// Resolves a recipe, and matches its patterns in a model where one is given; of that, only headers are read.
///
/// # Errors
/// `Lifecycle` at the line with the modifier and the field, and the nearest known names: for a file that breaks the
/// grammar, for unknown modifiers and fields, for values that a field refuses, for a target or mapping that matches
/// no module. Faults of the model.
pub fn check_recipe(options: &CheckOptions, progress: &dyn Progress) -> Result<CheckedRecipe> {
    let path = || options.recipe.clone();
    fs::metadata(&options.recipe).map_err(|source| ErrorKind::File { path: path(), source })?;
    let plan = read_plan(&options.recipe, options.stage.as_deref())?;
    let mut checked = CheckedRecipe {
        recipe: path(),
        model: options.model.clone(),
        args: plan.args.clone(),
        modifiers: plan.modifiers.iter().map(CheckedModifier::of).collect(),
        warnings: Vec::new(),
    };
    plan.build()?;
    if let Some(model) = &options.model {
        let (model, warning) = model_facts(model)?;
        checked.warnings.extend(warning);
        // A recipe may be checked before its model is whole; what stands later in it is judged all the same.
        for (matched, (planned, checked_modifier)) in
            plan.targets_in(&model)?.into_iter().zip(plan.modifiers.iter().zip(&mut checked.modifiers))
        {
            for pattern in matched.idle_ignores {
                checked.warnings.push(idle_ignore(planned, &pattern, options.unmatched_ignore)?);
            }
            let modifier = planned.build()?;
            let located = |error| planned.locate(error);
            checked_modifier.modules = Some(ModulesOf {
                targeted: matched.modules,
                changed: modifier.writes(&model).map_err(located)?,
                observed: modifier.taps(&model).map_err(located)?.iter().map(ToString::to_string).collect(),
            });
        }
    }
    checked.warnings.iter().for_each(|it| progress.warn(it));
    Ok(checked)
}

fn read_plan(file: &Path, stage: Option<&str>) -> Result<Plan> {
    Ok(Recipe::from_file(file, stage)?.resolve(&registry())?)
}

/// The warning about an `ignore` pattern that matches nothing.
fn idle_ignore(planned: &PlannedModifier, pattern: &str, tolerance: Tolerance) -> Result<String> {
    let text = format!("ignore `{pattern}` of {} matches no module", planned.spec.name);
    match tolerance {
        Tolerance::Refuse => Err(planned.locate(lifecycle::Error::failed(text)).into()),
        Tolerance::Allow => Ok(planned.place().map_or_else(|| text.clone(), |place| format!("{place}: {text}"))),
    }
}

impl CheckedModifier {
    fn of(planned: &PlannedModifier) -> Self {
        let fields = planned.saved_fields();
        Self {
            r#type: planned.spec.name,
            stage: planned.stage.clone(),
            group: planned.group.clone(),
            line: match planned.place() {
                Some(Place::Recipe { line, .. }) => Some(*line),
                _ => None,
            },
            needs_data: planned.needs_data(),
            defaults: fields.keys().filter(|it| !planned.is_written(it)).cloned().collect(),
            fields,
            modules: None,
            text: planned.to_string(),
        }
    }
}

impl CheckedRecipe {
    /// The plan for a person: modifiers in the order in which they run.
    pub fn summary(&self) -> String {
        let n = self.modifiers.len();
        let mut text = format!("{}: {n} modifier{}\n", self.recipe.display(), if n == 1 { "" } else { "s" });
        for (position, modifier) in self.modifiers.iter().enumerate() {
            text.push_str(&format!("{}. {}", position + 1, modifier.text));
            if let Some(modules) = &modifier.modules {
                text.push_str(&modules.text());
            }
        }
        text.truncate(text.trim_end().len());
        text
    }
}

impl ModulesOf {
    fn text(&self) -> String {
        let line = |what: &str, names: &[String]| match names {
            [] => format!("   {what:9} none\n"),
            names => {
                let folded = fold_names(names.iter().map(String::as_str));
                format!("   {what:9} {}: {}\n", names.len(), folded.join(", "))
            }
        };
        let mut text = String::new();
        if !self.targeted.is_empty() {
            text.push_str(&line("targets", &self.targeted));
        }
        if self.changed != self.targeted {
            text.push_str(&line("changes", &self.changed));
        }
        text.push_str(&line("observes", &self.observed));
        text
    }
}
