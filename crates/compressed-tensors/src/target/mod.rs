//! Targets and ignores: exact names, class names and `re:` patterns, compiled once and matched often.

mod dialect;
mod names;
mod walk;

use std::collections::HashMap;

use indexmap::IndexMap;

use crate::{Error, ErrorKind, Result};

pub use names::{expand_special_targets, find_unique_name, lowest_common_ancestor, nearest_names};
pub use walk::{
    Norms, Rematch, is_narrow_match, match_modules_set, match_named_modules, match_named_parameters,
    match_quantizable_tensors,
};

/// Bytes that one compiled pattern may take.
const SIZE_LIMIT_BYTES: usize = 4 << 20;

/// Steps that a backtracking pattern may take on one name.
const BACKTRACK_LIMIT: usize = 100_000;

/// A suffix of a fused module and the suffixes of the modules that it replaces.
pub type FusedMap = IndexMap<String, Vec<String>>;

/// A module as patterns see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedModule<'a> {
    /// The dotted path; empty for the model itself.
    pub name: &'a str,
    /// Names of its class and of the classes that it inherits from. `Module` need not be listed.
    pub classes: &'a [&'a str],
}

impl NamedModule<'_> {
    /// Whether a class is called `target`. `Module` is every module's; `LinearBase` counts as `Linear`.
    pub fn is_a(&self, target: &str) -> bool {
        target == "Module"
            || self.classes.iter().any(|&class| class == target || (class == "LinearBase" && target == "Linear"))
    }
}

/// One entry of a list of targets.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    engine: Engine,
}

#[derive(Clone, Debug)]
enum Engine {
    Exact,
    Everything,
    Linear(regex::Regex),
    Backtracking(Box<fancy_regex::Regex>),
}

impl Pattern {
    /// Reads `re:` and a Python regular expression, or an exact name.
    ///
    /// Look-around, references and atomic groups go to a backtracking engine with a step limit;
    /// everything else takes time linear in the name.
    ///
    /// # Errors
    /// `Pattern` where it is no regular expression, or too large.
    pub fn parse(text: &str) -> Result<Self> {
        let engine = match text.strip_prefix("re:") {
            None => Engine::Exact,
            Some("" | ".*") => Engine::Everything,
            Some(expression) => compile(expression).map_err(|reason| refuse(text, reason))?,
        };
        Ok(Self { text: text.to_owned(), engine })
    }

    /// The entry as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it began with `re:`.
    pub fn is_regex(&self) -> bool {
        !matches!(self.engine, Engine::Exact)
    }

    /// Whether it matches the name: an exact one equally, a regular expression from the name's start on.
    ///
    /// # Errors
    /// `Pattern` where a backtracking pattern runs past its step limit.
    pub fn matches(&self, name: &str) -> Result<bool> {
        match &self.engine {
            Engine::Exact => Ok(self.text == name),
            Engine::Everything => Ok(true),
            Engine::Linear(regex) => Ok(regex.is_match(name)),
            Engine::Backtracking(regex) => {
                regex.is_match(name).map_err(|e| refuse(&self.text, format!("{e} on `{name}`")))
            }
        }
    }

    /// Whether it matches the name, or one of the names that a fused module replaces.
    ///
    /// The first suffix of `fused` that the name ends in decides; the fused name itself is then not tested.
    ///
    /// # Errors
    /// As [`matches`](Self::matches).
    pub fn matches_fused(&self, name: &str, fused: &FusedMap) -> Result<bool> {
        for (suffix, shards) in fused {
            if let Some(parent) = name.strip_suffix(suffix.as_str()) {
                for shard in shards {
                    if self.matches(&format!("{parent}{shard}"))? {
                        return Ok(true);
                    }
                }
                return Ok(false);
            }
        }
        self.matches(name)
    }

    /// Whether it matches the module's name or one of its classes.
    ///
    /// # Errors
    /// As [`matches`](Self::matches).
    pub fn matches_module(&self, module: NamedModule<'_>) -> Result<bool> {
        Ok(self.matches(module.name)? || module.is_a(&self.text))
    }
}

/// Whether `name` matches `target`, for single questions; [`Patterns`] is for many.
///
/// # Errors
/// As [`Pattern::parse`] and [`Pattern::matches`].
pub fn match_name(name: &str, target: &str) -> Result<bool> {
    Pattern::parse(target)?.matches(name)
}

fn compile(expression: &str) -> Result<Engine, String> {
    let translated = dialect::translate(expression)?;
    let anchored = format!(r"\A(?:{})", translated.text);
    if translated.needs_backtracking {
        let built = fancy_regex::RegexBuilder::new(&anchored)
            .backtrack_limit(BACKTRACK_LIMIT)
            .delegate_size_limit(SIZE_LIMIT_BYTES)
            .build();
        return built.map(|it| Engine::Backtracking(Box::new(it))).map_err(|e| e.to_string());
    }
    let built = regex::RegexBuilder::new(&anchored).size_limit(SIZE_LIMIT_BYTES).build();
    built.map(Engine::Linear).map_err(|e| e.to_string())
}

fn refuse(pattern: &str, reason: String) -> Error {
    ErrorKind::Pattern { pattern: pattern.to_owned(), reason }.into()
}

/// A list of targets, compiled. Exact entries cost one look-up however many there are.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    /// As given.
    list: Vec<Pattern>,
    /// Positions in `list` by specificity: without `re:` first, then by text.
    order: Vec<usize>,
    /// Exact text to the positions in `order` that hold it.
    exact: HashMap<String, Vec<usize>>,
    /// Positions in `order` of regular expressions.
    regexes: Vec<usize>,
}

impl Patterns {
    /// Compiles a list.
    ///
    /// # Errors
    /// As [`Pattern::parse`].
    pub fn compile<S: AsRef<str>>(targets: &[S]) -> Result<Self> {
        let list = targets.iter().map(|it| Pattern::parse(it.as_ref())).collect::<Result<Vec<_>>>()?;
        let mut order: Vec<usize> = (0..list.len()).collect();
        order.sort_by_key(|&i| (list[i].text.contains("re:"), &list[i].text));
        let mut exact: HashMap<String, Vec<usize>> = HashMap::new();
        let mut regexes = Vec::new();
        for (rank, &i) in order.iter().enumerate() {
            if list[i].is_regex() {
                regexes.push(rank);
            } else {
                exact.entry(list[i].text.clone()).or_default().push(rank);
            }
        }
        Ok(Self { list, order, exact, regexes })
    }

    /// The entries in the order given.
    pub fn entries(&self) -> &[Pattern] {
        &self.list
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether an entry matches the name.
    ///
    /// # Errors
    /// As [`Pattern::matches`].
    pub fn matches_name(&self, name: &str) -> Result<bool> {
        if self.exact.contains_key(name) {
            return Ok(true);
        }
        for &rank in &self.regexes {
            if self.ranked(rank).matches(name)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether an entry matches the module's name or one of its classes.
    ///
    /// # Errors
    /// As [`Pattern::matches`].
    pub fn matches_module(&self, module: NamedModule<'_>) -> Result<bool> {
        Ok(!self.class_ranks(module).is_empty() || self.matches_name(module.name)?)
    }

    /// All entries that match, most specific first: by name before by class; among them exact ones
    /// before regular expressions, each alphabetically.
    ///
    /// # Errors
    /// As [`Pattern::matches`].
    pub fn matching(&self, module: NamedModule<'_>) -> Result<Vec<&str>> {
        let mut ranks: Vec<usize> = self.exact.get(module.name).cloned().unwrap_or_default();
        for &rank in &self.regexes {
            if self.ranked(rank).matches(module.name)? {
                ranks.push(rank);
            }
        }
        ranks.sort_unstable();
        let by_class = self.class_ranks(module).into_iter().filter(|rank| !ranks.contains(rank)).collect::<Vec<_>>();
        ranks.extend(by_class);
        Ok(ranks.into_iter().map(|rank| self.ranked(rank).as_str()).collect())
    }

    /// Entries that match none of the modules, in the order given.
    ///
    /// # Errors
    /// As [`Pattern::matches`].
    pub fn unmatched<'m>(&self, modules: impl IntoIterator<Item = NamedModule<'m>>) -> Result<Vec<&str>> {
        let mut open: Vec<usize> = (0..self.list.len()).collect();
        for module in modules {
            let mut still = Vec::with_capacity(open.len());
            for i in open {
                if !self.list[i].matches_module(module)? {
                    still.push(i);
                }
            }
            open = still;
            if open.is_empty() {
                break;
            }
        }
        Ok(open.into_iter().map(|i| self.list[i].as_str()).collect())
    }

    fn ranked(&self, rank: usize) -> &Pattern {
        &self.list[self.order[rank]]
    }

    fn class_ranks(&self, module: NamedModule<'_>) -> Vec<usize> {
        let mut ranks: Vec<usize> = Vec::new();
        let bases = module.classes.contains(&"LinearBase").then_some("Linear");
        for class in module.classes.iter().copied().chain(bases).chain(["Module"]) {
            ranks.extend(self.exact.get(class).into_iter().flatten());
        }
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }
}

/// Targets less ignores, compiled.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    /// What is wanted.
    pub targets: Patterns,
    /// What is left out of it.
    pub ignore: Patterns,
}

impl Matcher {
    /// Compiles both lists.
    ///
    /// # Errors
    /// As [`Pattern::parse`], with `targets` or `ignore` as the place.
    pub fn compile<T: AsRef<str>, I: AsRef<str>>(targets: &[T], ignore: &[I]) -> Result<Self> {
        Ok(Self {
            targets: Patterns::compile(targets).map_err(|e| e.at("targets"))?,
            ignore: Patterns::compile(ignore).map_err(|e| e.at("ignore"))?,
        })
    }

    /// Whether a target matches by name or class, and no ignore does.
    ///
    /// # Errors
    /// As [`Pattern::matches`].
    pub fn matches(&self, module: NamedModule<'_>) -> Result<bool> {
        Ok(self.targets.matches_module(module)? && !self.ignore.matches_module(module)?)
    }

    /// As [`matches`](Self::matches), by name only.
    ///
    /// # Errors
    /// As [`Pattern::matches`].
    pub fn matches_name(&self, name: &str) -> Result<bool> {
        Ok(self.targets.matches_name(name)? && !self.ignore.matches_name(name)?)
    }
}

#[cfg(test)]
mod tests;
