//! Matching over all modules, parameters or tensors of a model, in their order.

use crate::{ErrorKind, Result};

use super::{Matcher, NamedModule, Patterns, names::lowest_common_ancestor};

/// What to do about a module that matches two targets of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rematch {
    /// Refuse it.
    Error,
    /// List it under both.
    Allow,
}

/// Whether norms count as quantizable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Modules whose name ends in `norm` are left out.
    Skip,
    /// They are taken too.
    Keep,
}

/// Names of the modules that match, in order, each once.
///
/// # Errors
/// As [`Pattern::matches`](super::Pattern::matches).
pub fn match_named_modules<'m>(
    modules: impl IntoIterator<Item = NamedModule<'m>>,
    matcher: &Matcher,
) -> Result<Vec<&'m str>> {
    let mut found = Vec::new();
    for module in modules {
        if matcher.matches(module)? {
            found.push(module.name);
        }
    }
    Ok(found)
}

/// Full names of the parameters that match, in order, once for every target that does.
///
/// # Errors
/// As [`Pattern::matches`](super::Pattern::matches).
pub fn match_named_parameters<'m>(names: impl IntoIterator<Item = &'m str>, matcher: &Matcher) -> Result<Vec<&'m str>> {
    let mut found = Vec::new();
    for name in names {
        for target in matcher.targets.entries() {
            if target.matches(name)? && !matcher.ignore.matches_name(name)? {
                found.push(name);
            }
        }
    }
    Ok(found)
}

/// Module and full name of each tensor that would be quantized, judged by names alone, in order.
///
/// Without targets, or with the literal `Linear` among them, every module is meant: embeddings and
/// convolutions too. The ignores of `matcher` are compared with module names.
///
/// # Errors
/// As [`Pattern::matches`](super::Pattern::matches).
pub fn match_quantizable_tensors<'m>(
    names: impl IntoIterator<Item = &'m str>,
    matcher: &Matcher,
    parameters: &Patterns,
    norms: Norms,
) -> Result<Vec<(&'m str, &'m str)>> {
    let all = matcher.targets.is_empty() || matcher.targets.entries().iter().any(|it| it.as_str() == "Linear");
    let mut found = Vec::new();
    for name in names {
        let (module, parameter) = name.rsplit_once('.').unwrap_or(("", name));
        if norms == Norms::Skip && module.ends_with("norm") {
            continue;
        }
        let wanted = parameters.matches_name(parameter)? && (all || matcher.targets.matches_name(module)?);
        if wanted && !matcher.ignore.matches_name(module)? {
            found.push((module, name));
        }
    }
    Ok(found)
}

/// Groups matching modules into sets, one list per target, each set under its own ancestor.
///
/// A set ends where every target has a match and the next one would change the common ancestor. No
/// match at all gives no set.
///
/// # Errors
/// `InvalidField` for a last set that lacks a target, and for a module that matches two targets under
/// [`Rematch::Error`]; as [`Pattern::matches`](super::Pattern::matches).
pub fn match_modules_set<'m>(
    modules: impl IntoIterator<Item = NamedModule<'m>>,
    matcher: &Matcher,
    rematch: Rematch,
) -> Result<Vec<Vec<Vec<&'m str>>>> {
    let targets = matcher.targets.entries();
    let empty = || vec![Vec::new(); targets.len()];
    let complete = |set: &[Vec<&str>]| set.iter().all(|it| !it.is_empty());
    let mut sets = Vec::new();
    let mut set: Vec<Vec<&'m str>> = empty();
    let mut ancestor: Option<String> = None;
    for module in modules {
        let mut matched: Option<&str> = None;
        for (i, target) in targets.iter().enumerate() {
            if !target.matches_module(module)? || matcher.ignore.matches_module(module)? {
                continue;
            }
            let mut next = lowest_common_ancestor([Some(module.name), ancestor.as_deref()]);
            if complete(&set) && ancestor.as_ref() != Some(&next) {
                sets.push(std::mem::replace(&mut set, empty()));
                next = module.name.to_owned();
            }
            set[i].push(module.name);
            ancestor = Some(next);
            if let (Some(first), Rematch::Error) = (matched, rematch) {
                return Err(ErrorKind::InvalidField {
                    field: "targets".to_owned(),
                    found: format!("`{first}` and `{}`, which both match `{}`", target.as_str(), module.name),
                    expected: "at most one match per module".to_owned(),
                }
                .into());
            }
            matched = Some(target.as_str());
        }
    }
    if complete(&set) && !targets.is_empty() {
        sets.push(set);
    } else if let Some(missing) = set.iter().position(Vec::is_empty).filter(|_| set.iter().any(|it| !it.is_empty())) {
        return Err(ErrorKind::InvalidField {
            field: "targets".to_owned(),
            found: format!(
                "`{}`, which matches nothing below `{}`",
                targets[missing].as_str(),
                ancestor.unwrap_or_default()
            ),
            expected: "a match for every target of the set".to_owned(),
        }
        .into());
    }
    Ok(sets)
}

/// Whether some target matches the module `name` but neither its parent nor anything below it.
///
/// A module at the top counts as its own parent, so it never matches narrowly; neither does a name
/// that is not among `modules`.
///
/// # Errors
/// As [`Pattern::matches`](super::Pattern::matches).
pub fn is_narrow_match<'m>(
    modules: impl IntoIterator<Item = NamedModule<'m>> + Clone,
    targets: &Patterns,
    name: &str,
) -> Result<bool> {
    let Some((parent, _)) = name.rsplit_once('.') else {
        return Ok(false);
    };
    for target in targets.entries() {
        let mut own = false;
        let mut around = false;
        for module in modules.clone() {
            let below = module.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
            if module.name == name {
                own = target.matches_module(module)?;
            } else if below || module.name == parent {
                around |= target.matches_module(module)?;
            }
        }
        if own && !around {
            return Ok(true);
        }
    }
    Ok(false)
}
