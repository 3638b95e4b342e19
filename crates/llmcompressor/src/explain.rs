//! The names that exist, and a page about each, from the registries themselves.

use compressed_tensors::{codec::CODECS, converters::CONVERTERS, presets::PRESETS};
use lifecycle::recipe::{FieldSpec, ModifierSpec};
use modifiers::{
    MODIFIERS,
    observers::{Memory, OBSERVERS, ObserverEntry},
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    ExitCode,
    error::{ErrorKind, Result},
    recipes::own_fields,
};

/// What can be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topic {
    /// Preset schemes.
    Schemes,
    /// On-disk formats.
    Formats,
    /// Converters between formats.
    Converters,
    /// Observers of weights and activations.
    Observers,
    /// Modifiers that recipes name.
    Modifiers,
    /// Exit codes of the command.
    ExitCodes,
}

impl Topic {
    /// Every topic with entries that [`explain`] knows.
    const EXPLAINED: &'static [Self] =
        &[Self::Schemes, Self::Formats, Self::Converters, Self::Observers, Self::Modifiers];

    fn noun(self) -> &'static str {
        match self {
            Self::Schemes => "scheme",
            Self::Formats => "format",
            Self::Converters => "converter",
            Self::Observers => "observer",
            Self::Modifiers => "modifier",
            Self::ExitCodes => "exit code",
        }
    }
}

/// One name.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// The name.
    pub name: String,
    /// The first sentence about it.
    pub summary: String,
}

/// A page about one name.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// The name.
    pub name: String,
    /// What kind of thing it is.
    pub kind: &'static str,
    /// What it does.
    pub text: String,
    /// Its definition, where it is data.
    pub definition: Option<Value>,
}

impl Page {
    /// The page for a person.
    pub fn text(&self) -> String {
        let mut text = format!("{} ({})\n\n{}", self.name, self.kind, self.text);
        if let Some(definition) = &self.definition {
            let json = serde_json::to_string_pretty(definition).unwrap_or_default();
            text.push_str(&format!("\n\n{json}"));
        }
        text
    }
}

/// The entries of a topic, in display order.
pub fn list(topic: Topic) -> Vec<Entry> {
    pages(topic).into_iter().map(|it| Entry { summary: first_sentence(&it.text), name: it.name }).collect()
}

/// The page about `name`, in any letter case.
///
/// # Errors
/// `Unknown` with the nearest names.
pub fn explain(name: &str) -> Result<Page> {
    let all: Vec<Page> = Topic::EXPLAINED.iter().flat_map(|it| pages(*it)).collect();
    if let Some(page) = all.iter().find(|it| it.name.eq_ignore_ascii_case(name)) {
        return Ok(page.clone());
    }
    let names = all.iter().map(|it| it.name.as_str());
    let nearest = compressed_tensors::target::nearest_names(name, names, 3);
    let nearest = nearest.into_iter().map(str::to_owned).collect();
    Err(ErrorKind::UnknownName { name: name.to_owned(), nearest }.into())
}

fn pages(topic: Topic) -> Vec<Page> {
    let page = |name: &str, text: &str, definition| Page {
        name: name.to_owned(),
        kind: topic.noun(),
        text: text.to_owned(),
        definition,
    };
    match topic {
        Topic::Schemes => PRESETS
            .iter()
            .map(|it| page(it.name, it.doc, Some(it.scheme(vec!["Linear".to_owned()]).to_json())))
            .collect(),
        Topic::Formats => CODECS.iter().map(|it| page(it.name(), it.page(), None)).collect(),
        Topic::Converters => CONVERTERS.iter().map(|it| page(it.name, it.page, None)).collect(),
        Topic::Observers => {
            OBSERVERS.iter().map(|it| page(it.name, &observer_text(it), Some(observer_definition(it)))).collect()
        }
        Topic::Modifiers => MODIFIERS.iter().map(|it| page(it.name, &modifier_text(it), None)).collect(),
        Topic::ExitCodes => ExitCode::ALL.iter().map(|it| page(&it.code().to_string(), it.meaning(), None)).collect(),
    }
}

fn observer_text(entry: &ObserverEntry) -> String {
    let memory = match entry.memory {
        Memory::None => "Each batch counts by itself",
        Memory::All => "The widest range of all batches counts",
        Memory::Average => "Batches are joined by a moving average",
    };
    let data = if entry.needs_inputs() { " It needs calibration data." } else { "" };
    format!("{}. {memory}.{data}", entry.doc)
}

/// Kwargs with their defaults, and what the name stands for.
fn observer_definition(entry: &ObserverEntry) -> Value {
    let mut kwargs = Map::new();
    for name in entry.known_kwargs() {
        kwargs.insert(name.to_owned(), entry.default_of(name));
    }
    let mut definition = json!({"kwargs": kwargs});
    if let Some(target) = entry.alias_of {
        definition["alias_of"] = target.into();
    }
    definition
}

fn modifier_text(spec: &ModifierSpec) -> String {
    let fields: Vec<FieldSpec> = own_fields(spec);
    let width = fields.iter().map(|it| it.name.len()).max().unwrap_or(0);
    let mut text = format!("{}\n\nfields:", spec.doc);
    for field in fields {
        let (name, takes) = (field.name, field.kind.expected());
        let default = field.default.map_or_else(|| "required".to_owned(), |it| format!("default {it}"));
        text.push_str(&format!("\n  {name:width$}  {takes}; {default}\n  {:width$}  {}", "", field.doc));
    }
    text
}

fn first_sentence(text: &str) -> String {
    text.lines().next().unwrap_or(text).split_inclusive(". ").next().unwrap_or(text).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_name_has_a_page() {
        for topic in Topic::EXPLAINED {
            for entry in list(*topic) {
                assert_eq!(explain(&entry.name.to_lowercase()).unwrap().name, entry.name);
                assert!(!entry.summary.is_empty(), "{}", entry.name);
            }
        }
    }

    #[test]
    fn an_unknown_name_is_answered_with_near_ones() {
        let error = explain("FP8_DYNAMC").unwrap_err();
        let ErrorKind::UnknownName { nearest, .. } = error.kind() else { panic!("{error}") };
        assert!(nearest.contains(&"FP8_DYNAMIC".to_owned()), "{nearest:?}");
    }
}
