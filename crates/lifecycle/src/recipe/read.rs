//! The grammar of a recipe: stages, groups, modifiers, in all forms that releases of the reference know.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::{
    Group, ModifierEntry, Recipe, Stage,
    names::nearest,
    node::{Format, Key, Node, Tree, at},
};
use crate::{
    Result,
    error::{Error, ErrorKind, Place},
};

const STAGE: &str = "_stage";
const MODIFIERS: &str = "_modifiers";
const DEFAULT: &str = "default";

/// Whether a text may hold no modifier at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Emptiness {
    /// It must hold one.
    Refused,
    /// It need not.
    Allowed,
}

impl Recipe {
    /// Reads a recipe from JSON or YAML text. `target_stage` keeps only stages whose key starts with it.
    ///
    /// # Errors
    /// Text that is neither, or breaks the grammar, with line and column; a text without modifiers.
    pub fn from_text(text: &str, target_stage: Option<&str>) -> Result<Self> {
        Self::read(text, Format::Either, None, target_stage, Emptiness::Refused)
    }

    /// Reads a recipe from a file: `.json`, `.yaml`, `.yml`, the front matter of an `.md`, and JSON or
    /// YAML under any other name.
    ///
    /// # Errors
    /// A file that cannot be read, and as [`Recipe::from_text`].
    pub fn from_file(path: &Path, target_stage: Option<&str>) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            let kind = ErrorKind::Io { operation: "read the recipe", reason: error.to_string() };
            Error::from(kind).at(Place::File(name.clone()))
        })?;
        let extension = path.extension().and_then(|it| it.to_str()).unwrap_or_default().to_lowercase();
        let format = match extension.as_str() {
            "json" => Format::Json,
            "yaml" | "yml" => Format::Yaml,
            _ => Format::Either,
        };
        let text = match extension.as_str() {
            "md" => front_matter(&text).map_err(|error| error.at(Place::File(name.clone())))?,
            _ => text,
        };
        Self::read(&text, format, Some(&name), target_stage, Emptiness::Refused)
    }

    pub(super) fn read(
        text: &str,
        format: Format,
        file: Option<&str>,
        target_stage: Option<&str>,
        emptiness: Emptiness,
    ) -> Result<Self> {
        let root = Node::parse(text, format, file)?;
        let expected = match (&root.tree, file) {
            (Tree::Scalar(Value::String(_)), None) => "a mapping of stages (if this is a path, no such file exists)",
            _ => "a mapping of stages",
        };
        let Tree::Map(pairs) = &root.tree else { return Err(root.shape("a recipe", expected)) };
        let mut reader = Reader { target_stage: target_stage.filter(|it| !it.is_empty()), ..Reader::default() };
        for (key, node) in pairs {
            reader.top_level(key, node)?;
        }
        let recipe = reader.finish();
        let modifiers = recipe.entries().count();
        if modifiers == 0 && emptiness == Emptiness::Refused {
            let hint = match target_stage {
                Some(stage) => format!("; stage `{stage}` keeps none"),
                None => String::new(),
            };
            return Err(root.fault(ErrorKind::NoModifiers { hint }));
        }
        Ok(recipe)
    }
}

/// The text between the first two delimiter lines, below as many empty lines as stand above it.
fn front_matter(text: &str) -> Result<String> {
    let is_delimiter = |it: &&str| it.starts_with("---") || it.starts_with("+++");
    let lines: Vec<&str> = text.lines().collect();
    let found = lines.iter().position(is_delimiter).and_then(|first| {
        let mark = &lines[first][..3];
        let last = lines.iter().skip(first + 1).position(|it| it.starts_with(mark))?;
        Some((first, first + 1 + last))
    });
    let (first, last) = found.ok_or(ErrorKind::NoFrontMatter)?;
    Ok("\n".repeat(first + 1) + &lines[first + 1..last].join("\n"))
}

/// The base of a key that ends in `suffix` or `suffix_<number>`, without any `suffix`, and the number.
fn base_of(key: &str, suffix: &str) -> Option<(String, Option<u64>)> {
    let (stem, number) = match key.rsplit_once('_') {
        Some((stem, digits)) if stem.ends_with(suffix) && digits.bytes().all(|it| it.is_ascii_digit()) => {
            (stem, digits.parse().ok())
        }
        _ => (key, None),
    };
    stem.ends_with(suffix).then(|| (stem.replace(suffix, ""), number))
}

#[derive(Default)]
struct Reader<'a> {
    target_stage: Option<&'a str>,
    args: Map<String, Value>,
    stages: Vec<(Option<u64>, Stage)>,
}

impl Reader<'_> {
    fn top_level(&mut self, key: &Key, node: &Node) -> Result<()> {
        if let Some((name, number)) = base_of(&key.name, STAGE) {
            if self.wanted(&key.name) {
                let stage = stage(name, node)?;
                self.stages.push((number, stage));
            }
            return Ok(());
        }
        if key.name.ends_with(MODIFIERS) || key.name == "modifiers" {
            if self.wanted("default_stage") {
                let group = group(&key.name, node)?;
                self.default_stage().groups.push(group);
            }
            return Ok(());
        }
        match (key.name.as_str(), &node.tree) {
            ("stages", _) => {
                for (key, node) in node.map("`stages`")? {
                    if self.wanted(&key.name) {
                        let stage = stage(key.name.replace(STAGE, ""), node)?;
                        self.stages.push((None, stage));
                    }
                }
            }
            ("args", Tree::Scalar(Value::Null)) => {}
            ("args", _) => self.args.extend(Node::pairs_to_map(node.map("`args`")?)),
            ("version", _) => {}
            // The first releases took every other key for an argument; mappings hold anchors to share.
            (name, Tree::Scalar(value)) => {
                self.args.insert(name.to_owned(), value.clone());
            }
            (name, _) if name.contains("stage") || name.contains("modifier") => {
                return Err(unknown_key("top-level key", key, &["<name>_stage", "<name>_modifiers", "args"]));
            }
            (name, _) => tracing::debug!(key = name, "a key of the recipe means nothing"),
        }
        Ok(())
    }

    fn wanted(&self, key: &str) -> bool {
        self.target_stage.is_none_or(|target| key.starts_with(target))
    }

    /// The stage of groups that stand outside stages, at the place of the first such group.
    fn default_stage(&mut self) -> &mut Stage {
        let found = self.stages.iter().position(|(number, it)| number.is_none() && it.name == DEFAULT);
        let position = found.unwrap_or_else(|| {
            self.stages.push((None, Stage { name: DEFAULT.to_owned(), ..Stage::default() }));
            self.stages.len() - 1
        });
        &mut self.stages[position].1
    }

    /// Puts the numbered stages of one name in the order of their numbers, at the places that they hold.
    fn finish(mut self) -> Recipe {
        let mut numbered: IndexMap<String, Vec<usize>> = IndexMap::new();
        for (position, (number, stage)) in self.stages.iter().enumerate() {
            if number.is_some() {
                numbered.entry(stage.name.clone()).or_default().push(position);
            }
        }
        for positions in numbered.values() {
            let mut taken: Vec<_> = positions.iter().map(|it| std::mem::take(&mut self.stages[*it])).collect();
            taken.sort_by_key(|(number, _)| *number);
            for (position, stage) in positions.iter().zip(taken) {
                self.stages[*position] = stage;
            }
        }
        Recipe { args: self.args, stages: self.stages.into_iter().map(|it| it.1).collect() }
    }
}

fn stage(name: String, node: &Node) -> Result<Stage> {
    let mut stage = Stage { name, ..Stage::default() };
    for (key, node) in node.map(format!("stage `{}`", stage.name))? {
        if base_of(&key.name, MODIFIERS).is_some() || key.name == "modifiers" {
            stage.groups.push(group(&key.name, node)?);
            continue;
        }
        match (key.name.as_str(), &node.tree) {
            ("args", Tree::Scalar(Value::Null)) => {}
            ("args", _) => stage.args.extend(Node::pairs_to_map(node.map("`args`")?)),
            ("run_type", Tree::Scalar(Value::String(run_type)))
                if ["train", "oneshot"].contains(&run_type.as_str()) =>
            {
                stage.run_type = Some(run_type.clone());
            }
            ("run_type", _) => return Err(node.shape("`run_type`", "`oneshot` or `train`")),
            _ => {
                let what = format!("key of stage `{}`", stage.name);
                return Err(unknown_key(&what, key, &["<name>_modifiers", "args", "run_type"]));
            }
        }
    }
    Ok(stage)
}

fn unknown_key(what: &str, key: &Key, known: &[&str]) -> Error {
    let nearest_names = nearest(&key.name, known.iter().copied());
    let known = known.iter().map(|it| (*it).to_owned()).collect();
    key.fault(ErrorKind::UnknownKey { what: what.to_owned(), name: key.name.clone(), nearest_names, known })
}

fn group(key: &str, node: &Node) -> Result<Group> {
    let name = base_of(key, MODIFIERS).map_or_else(|| DEFAULT.to_owned(), |it| it.0);
    let modifiers = match &node.tree {
        Tree::Map(pairs) => pairs.iter().map(|(key, node)| entry(key, node)).collect::<Result<_>>()?,
        Tree::List(items) => items.iter().map(listed_entry).collect::<Result<_>>()?,
        Tree::Scalar(_) => return Err(node.shape(format!("group `{name}`"), "a mapping or a list of modifiers")),
    };
    Ok(Group { name, modifiers })
}

fn entry(key: &Key, node: &Node) -> Result<ModifierEntry> {
    let what = format!("the value of {}", key.name);
    let Tree::Map(pairs) = &node.tree else {
        let error = node.shape(what, "a mapping of fields (`{}` for the defaults)");
        return Err(at(error, key.place.as_ref()));
    };
    let field_place = |(key, _): &(Key, Node)| Some((key.name.clone(), key.place.clone()?));
    Ok(ModifierEntry {
        type_name: key.name.clone(),
        fields: Node::pairs_to_map(pairs),
        place: key.place.clone(),
        field_places: pairs.iter().filter_map(field_place).collect(),
    })
}

/// An item of a list of modifiers: `{Type: {...}}` or `{type: Type, args: {...}}`.
fn listed_entry(node: &Node) -> Result<ModifierEntry> {
    const EXPECTED: &str = "`Type: {...}` or `{type: Type, args: {...}}`";
    let pairs = node.map("a modifier")?;
    if let [(key, fields)] = pairs
        && key.name != "type"
    {
        return entry(key, fields);
    }
    let mut type_name = None;
    let mut fields = &Node { tree: Tree::Map(Vec::new()), place: None };
    for (key, node) in pairs {
        match (key.name.as_str(), &node.tree) {
            ("type", Tree::Scalar(Value::String(name))) => {
                type_name = Some(Key { name: name.clone(), place: node.place.clone() });
            }
            ("args", _) => fields = node,
            ("group", _) => {}
            _ => return Err(node.shape("a modifier", EXPECTED)),
        }
    }
    let type_name = type_name.ok_or_else(|| node.shape("a modifier", EXPECTED))?;
    entry(&type_name, fields)
}
