//! The names that exist, and a page about each, from the registries themselves.

use compressed_tensors::{codec::CODECS, converters::CONVERTERS, presets::PRESETS};
use serde::Serialize;

use crate::{
    ExitCode,
    error::{ErrorKind, Result},
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
    /// Weight observers.
    Observers,
    /// Exit codes of the command.
    ExitCodes,
}

impl Topic {
    /// Every topic with entries that [`explain`] knows.
    const EXPLAINED: &'static [Self] = &[Self::Schemes, Self::Formats, Self::Converters, Self::Observers];

    fn noun(self) -> &'static str {
        match self {
            Self::Schemes => "scheme",
            Self::Formats => "format",
            Self::Converters => "converter",
            Self::Observers => "observer",
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
    pub definition: Option<serde_json::Value>,
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
        Topic::Observers => Vec::new(),
        Topic::ExitCodes => ExitCode::ALL.iter().map(|it| page(&it.code().to_string(), it.meaning(), None)).collect(),
    }
}

fn first_sentence(text: &str) -> String {
    text.split_inclusive(". ").next().unwrap_or(text).trim_end().to_owned()
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
