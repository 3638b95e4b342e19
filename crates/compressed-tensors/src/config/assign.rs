//! Which scheme of a config a module gets.

use indexmap::IndexMap;

use crate::{
    Result,
    scheme::QuantizationScheme,
    target::{NamedModule, Patterns},
};

use super::QuantizationConfig;

/// The schemes of a config by target, compiled.
///
/// The most specific target that matches a module decides, not the order of groups: a target by name
/// before a class, an exact name before a pattern, then the alphabet. A target that two groups list
/// belongs to the later one.
#[derive(Clone, Debug)]
pub struct SchemeTable<'c> {
    targets: Patterns,
    ignore: Patterns,
    by_target: IndexMap<&'c str, Assignment<'c>>,
}

/// What a module got, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assignment<'c> {
    /// Name of the group.
    pub group: &'c str,
    /// The target that decided.
    pub target: &'c str,
    /// The group's scheme.
    pub scheme: &'c QuantizationScheme,
}

impl<'c> SchemeTable<'c> {
    /// Compiles the targets and ignores of a config.
    ///
    /// # Errors
    /// `Pattern`, with `config_groups` or `ignore` as the place.
    pub fn new(config: &'c QuantizationConfig) -> Result<Self> {
        let mut by_target: IndexMap<&'c str, Assignment<'c>> = IndexMap::new();
        for (group, scheme) in &config.config_groups {
            for target in &scheme.targets {
                by_target.insert(target, Assignment { group, target, scheme });
            }
        }
        let texts: Vec<&str> = by_target.keys().copied().collect();
        Ok(Self {
            targets: Patterns::compile(&texts).map_err(|e| e.at("config_groups"))?,
            ignore: Patterns::compile(&config.ignore).map_err(|e| e.at("ignore"))?,
            by_target,
        })
    }

    /// The scheme of a module, or nothing where no target matches or an ignore does.
    ///
    /// The class is not judged: what is neither linear, embedding nor attention is the caller's to skip.
    ///
    /// # Errors
    /// `Pattern` where a pattern runs past its step limit.
    pub fn assign(&self, module: NamedModule<'_>) -> Result<Option<Assignment<'c>>> {
        if self.ignore.matches_module(module)? {
            return Ok(None);
        }
        let matching = self.targets.matching(module)?;
        Ok(matching.first().and_then(|target| self.by_target.get(target)).copied())
    }

    /// The targets.
    pub fn targets(&self) -> &Patterns {
        &self.targets
    }

    /// The ignores.
    pub fn ignore(&self) -> &Patterns {
        &self.ignore
    }
}
