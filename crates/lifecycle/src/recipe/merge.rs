//! Recipes put one after the other, as texts, as mappings and as files.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::{ModifierEntry, Recipe, Stage, node::Format, read::Emptiness};
use crate::{
    Result,
    error::{Error, ErrorKind, Place},
};

impl Recipe {
    /// All modifiers in the order of execution.
    pub fn entries(&self) -> impl Iterator<Item = &ModifierEntry> {
        self.stages.iter().flat_map(|it| &it.groups).flat_map(|it| &it.modifiers)
    }

    /// Puts another recipe behind this one; stages keep their names and order. Where both give an
    /// argument different values, the arguments of both go down to their stages.
    pub fn append(&mut self, mut other: Self) {
        let clash = other.args.iter().any(|(name, value)| self.args.get(name).is_some_and(|it| it != value));
        if clash {
            self.lower_args();
            other.lower_args();
        }
        self.args.extend(other.args);
        self.stages.extend(other.stages);
    }

    fn lower_args(&mut self) {
        let args = std::mem::take(&mut self.args);
        for stage in &mut self.stages {
            stage.args.extend(args.clone());
        }
    }

    /// Reads several files as one recipe.
    ///
    /// # Errors
    /// As [`Recipe::from_file`].
    pub fn from_files<P: AsRef<Path>>(paths: &[P], target_stage: Option<&str>) -> Result<Self> {
        let mut all = Self::default();
        for path in paths {
            all.append(Self::from_file(path.as_ref(), target_stage)?);
        }
        Ok(all)
    }

    /// The YAML text of what an existing recipe file holds with this recipe behind it.
    ///
    /// # Errors
    /// An existing text that is no recipe: found before anything is written.
    pub fn yaml_behind(&self, existing: &str) -> Result<String> {
        let mut all = Self::read(existing, Format::Either, None, None, Emptiness::Allowed)?;
        // An empty stage only says that there was nothing.
        all.stages.retain(|it| *it != Stage { name: it.name.clone(), ..Stage::default() });
        all.append(self.clone());
        Ok(all.yaml())
    }

    /// Writes the recipe to a file, behind what `existing` holds, if it is given.
    ///
    /// # Errors
    /// Files that cannot be read or written, and as [`Recipe::yaml_behind`].
    pub fn write_yaml(&self, path: &Path, existing: Option<&Path>) -> Result<()> {
        let failed = |operation, path: &Path, error: std::io::Error| {
            Error::from(ErrorKind::Io { operation, reason: error.to_string() })
                .at(Place::File(path.display().to_string()))
        };
        let text = match existing {
            None => self.yaml(),
            Some(existing) => {
                let old = std::fs::read_to_string(existing).map_err(|it| failed("read the recipe", existing, it))?;
                self.yaml_behind(&old).map_err(|error| error.at(Place::File(existing.display().to_string())))?
            }
        };
        std::fs::write(path, text).map_err(|error| failed("write the recipe", path, error))
    }
}

/// Puts the keys of one mapping behind those of another; a key that both have gets numbers.
///
/// The base of a key is the key without `_<number>`. Where an unnumbered key clashes, the old one becomes
/// `_0` and the new one `_1`, both at the end; where these are taken, the next free numbers, so that
/// nothing is lost. Where a numbered key clashes, the new one takes the next free number from 1.
pub fn append_recipe_dict(old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let mut all: IndexMap<String, Value> = old.clone().into_iter().collect();
    for (key, value) in new {
        let Some(previous) = all.get(key).cloned() else {
            all.insert(key.clone(), value.clone());
            continue;
        };
        let base = match key.rsplit_once('_') {
            Some((base, digits)) if !digits.is_empty() && digits.bytes().all(|it| it.is_ascii_digit()) => base,
            _ => key,
        };
        if base == key {
            all.shift_remove(key);
            let first = free(&all, base, 0);
            all.insert(first, previous);
        }
        let next = free(&all, base, 1);
        all.insert(next, value.clone());
    }
    all.into_iter().collect()
}

fn free(all: &IndexMap<String, Value>, base: &str, from: u64) -> String {
    let mut number = from;
    loop {
        let key = format!("{base}_{number}");
        if !all.contains_key(&key) {
            return key;
        }
        number += 1;
    }
}

/// The keys of a mapping that start with `target_stage`; all of them where it is absent or empty.
pub fn filter_dict(dict: &Map<String, Value>, target_stage: Option<&str>) -> Map<String, Value> {
    let target = target_stage.unwrap_or_default();
    dict.iter().filter(|(key, _)| key.starts_with(target)).map(|(key, value)| (key.clone(), value.clone())).collect()
}
