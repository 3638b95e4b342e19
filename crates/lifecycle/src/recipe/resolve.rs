//! [`Plan`]: a recipe checked against a registry, with every field of every modifier.

use std::fmt;

use serde_json::{Map, Value};

use super::{
    Group, ModifierEntry, Recipe, Stage,
    expression::{eval_fields, resolve_args},
    names::nearest,
    node::at,
    registry::{ModifierSpec, Registry, Role},
    write::to_yaml,
};
use crate::{
    Result,
    error::{Error, ErrorKind, Place},
    matching::{Matched, match_modules},
    model::ModuleStore,
    modifier::{Fields, Modifier},
};

/// What a recipe means: its modifiers in order, with defaults written out. `Display` prints it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The recipe's arguments, evaluated.
    pub args: Map<String, Value>,
    /// The modifiers in the order of execution.
    pub modifiers: Vec<PlannedModifier>,
    recipe: Recipe,
}

/// A modifier of a plan.
#[derive(Clone, Debug)]
pub struct PlannedModifier {
    /// Name of its stage.
    pub stage: String,
    /// Name of its group.
    pub group: String,
    /// What the registry says about its type.
    pub spec: ModifierSpec,
    /// All fields, nulls included.
    pub fields: Fields,
    entry: ModifierEntry,
}

impl Recipe {
    /// Checks the recipe against a registry: evaluates `eval(...)`, refuses unknown types, unknown
    /// fields and values that do not fit, and writes defaults out.
    ///
    /// # Errors
    /// The first fault, at its line and column, with the nearest known names.
    pub fn resolve(&self, registry: &Registry) -> Result<Plan> {
        let mut modifiers = Vec::new();
        let mut recipe = Self { args: self.args.clone(), stages: Vec::new() };
        for stage in &self.stages {
            let mut args = stage.args.clone();
            args.extend(self.args.clone());
            let args = resolve_args(&args)?;
            let mut resolved = Stage { groups: Vec::new(), ..stage.clone() };
            for group in &stage.groups {
                let mut entries = Vec::new();
                for entry in &group.modifiers {
                    let planned = plan(entry, stage, group, &args, registry)?;
                    entries.push(planned.saved_entry());
                    modifiers.push(planned);
                }
                resolved.groups.push(Group { name: group.name.clone(), modifiers: entries });
            }
            recipe.stages.push(resolved);
        }
        check_followers(&modifiers)?;
        Ok(Plan { args: resolve_args(&self.args)?, modifiers, recipe })
    }
}

fn plan(
    entry: &ModifierEntry,
    stage: &Stage,
    group: &Group,
    args: &Map<String, Value>,
    registry: &Registry,
) -> Result<PlannedModifier> {
    let spec = registry.get(&entry.type_name).ok_or_else(|| {
        let known = || registry.specs().iter().map(|it| it.name);
        entry.fault(ErrorKind::UnknownKey {
            what: "modifier".to_owned(),
            name: entry.type_name.clone(),
            nearest_names: nearest(&entry.type_name, known()),
            known: known().map(str::to_owned).collect(),
        })
    })?;
    let specs = spec.all_fields();
    for name in entry.fields.keys() {
        if specs.iter().all(|it| it.name != name) {
            let known = || specs.iter().map(|it| it.name).filter(|it| !it.ends_with('_'));
            return Err(entry.field_fault(
                name,
                ErrorKind::UnknownKey {
                    what: format!("field of {}", spec.name),
                    name: name.clone(),
                    nearest_names: nearest(name, known()),
                    known: known().map(str::to_owned).collect(),
                },
            ));
        }
        if name == "group" {
            let found = "given".to_owned();
            let expected = format!("absent: the recipe's structure says `{}`", group.name);
            return Err(entry.invalid(name, found, expected));
        }
    }
    let evaluated = eval_fields(&entry.fields, args).map_err(|error| at(error, entry.place.as_ref()))?;
    let mut fields = Fields::new();
    for field in &specs {
        let value = match evaluated.get(field.name) {
            Some(value) => field.read(value).map_err(|misfit| {
                let path = format!("{}{}", field.name, misfit.path);
                let error = entry.invalid(&path, misfit.found, misfit.expected);
                at(error, entry.field_places.get(field.name))
            })?,
            None if field.name == "group" => group.name.as_str().into(),
            None => field.default_value().ok_or_else(|| {
                let (type_name, field) = (spec.name.to_owned(), field.name.to_owned());
                entry.fault(ErrorKind::MissingField { type_name, field })
            })?,
        };
        fields.insert(field.name.to_owned(), value);
    }
    (spec.check)(&mut fields).map_err(|error| entry.locate(error))?;
    let (stage, group) = (stage.name.clone(), group.name.clone());
    Ok(PlannedModifier { stage, group, spec: *spec, fields, entry: entry.clone() })
}

impl ModifierEntry {
    fn fault(&self, kind: ErrorKind) -> Error {
        at(kind.into(), self.place.as_ref())
    }

    fn field_fault(&self, field: &str, kind: ErrorKind) -> Error {
        let place = self.field_places.get(field).or(self.place.as_ref());
        at(kind.into(), place)
    }

    fn invalid(&self, field: &str, found: String, expected: String) -> Error {
        let outer = field.split('.').next().unwrap_or(field);
        let (type_name, field) = (self.type_name.clone(), field.to_owned());
        self.field_fault(outer, ErrorKind::InvalidField { type_name, field, found, expected })
    }

    /// A fault of a check across fields, at the field that it names or at the modifier.
    fn locate(&self, error: Error) -> Error {
        let place = match error.kind() {
            ErrorKind::InvalidField { field, .. } => self.field_places.get(field).or(self.place.as_ref()),
            _ => self.place.as_ref(),
        };
        at(error, place)
    }
}

/// A transform that only prepares for a quantizer is refused where none follows.
fn check_followers(modifiers: &[PlannedModifier]) -> Result<()> {
    for (position, modifier) in modifiers.iter().enumerate() {
        let follows = || modifiers[position + 1..].iter().any(|it| it.spec.role == Role::Quantizer);
        if modifier.spec.role == Role::TransformBeforeQuantizer && !follows() {
            let type_name = modifier.spec.name.to_owned();
            let needs = "a modifier that quantizes, such as QuantizationModifier or GPTQModifier";
            return Err(modifier.entry.fault(ErrorKind::NeedsFollower { type_name, needs }));
        }
    }
    Ok(())
}

impl PlannedModifier {
    /// Whether the modifier needs calibration data.
    pub fn needs_data(&self) -> bool {
        self.fields.get("requires_calibration_data") == Some(&Value::Bool(true))
    }

    /// Makes the modifier.
    ///
    /// # Errors
    /// What the type's constructor reports.
    pub fn build(&self) -> Result<Box<dyn Modifier>> {
        (self.spec.build)(&self.fields).map_err(|error| self.entry.locate(error))
    }

    /// Whether the recipe says this field itself, instead of leaving its default.
    pub fn is_written(&self, field: &str) -> bool {
        self.entry.fields.contains_key(field)
    }

    /// Where it stands, if it was read from a text.
    pub fn place(&self) -> Option<&Place> {
        self.entry.place.as_ref()
    }

    /// A fault of this modifier at its line, or at that of the field it names, unless it has a place already.
    pub fn locate(&self, error: Error) -> Error {
        self.entry.locate(error)
    }

    /// The fields that a saved recipe shows: no nulls, no names that end in `_`, no group.
    pub fn saved_fields(&self) -> Fields {
        self.saved_entry().fields
    }

    fn saved_entry(&self) -> ModifierEntry {
        let mut fields = self.fields.clone();
        fields.retain(|name, value| !value.is_null() && !name.ends_with('_') && name != "group");
        ModifierEntry { fields, ..self.entry.clone() }
    }
}

impl Plan {
    /// Makes the modifiers.
    ///
    /// # Errors
    /// What a constructor reports, at the modifier's line.
    pub fn build(&self) -> Result<Vec<Box<dyn Modifier>>> {
        self.modifiers.iter().map(PlannedModifier::build).collect()
    }

    /// What each modifier's targets and ignores mean in a model, in the order of execution. A modifier
    /// without targets has no matches.
    ///
    /// # Errors
    /// A target that matches nothing, at the modifier's line, with the nearest names.
    pub fn targets_in(&self, model: &dyn ModuleStore) -> Result<Vec<Matched>> {
        let matched = |it: &PlannedModifier| {
            let texts = |value: &Value| value.as_str().map(str::to_owned);
            let ignore = it.fields.get("ignore").and_then(Value::as_array);
            let ignore: Vec<String> = ignore.into_iter().flatten().filter_map(texts).collect();
            match_modules(model, &it.build()?.targets(), &ignore).map_err(|error| it.entry.locate(error))
        };
        self.modifiers.iter().map(matched).collect()
    }

    /// The recipe with defaults written out, as it is saved beside a model.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }
}

impl fmt::Display for PlannedModifier {
    /// What it is, where it stands, and its fields as YAML, indented.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = if self.needs_data() { "needs data" } else { "no data" };
        writeln!(f, "{} ({data}), stage {}, group {}", self.spec.name, self.stage, self.group)?;
        to_yaml(&self.saved_fields()).lines().try_for_each(|line| writeln!(f, "   {line}"))
    }
}

impl fmt::Display for Plan {
    /// One paragraph a modifier, in the order of execution.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut modifiers = self.modifiers.iter().enumerate();
        modifiers.try_for_each(|(position, modifier)| write!(f, "{}. {modifier}", position + 1))
    }
}
