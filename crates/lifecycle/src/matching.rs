//! Targets and ignores of a modifier, matched over a model's modules.

use compressed_tensors::target::{Matcher, NamedModule, expand_special_targets, nearest_names};

use crate::{Result, error::ErrorKind, model::ModuleStore};

/// What a list of targets means in a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// Names of the matching modules, in definition order, each once.
    pub modules: Vec<String>,
    /// Ignore patterns that match nothing: something to warn of.
    pub idle_ignores: Vec<String>,
}

/// Matches targets and ignores over a model. Internal modules never match; names for families of classes,
/// such as `__ALL_PRUNABLE__`, stand for those of their classes that the model has.
///
/// # Errors
/// A target that matches nothing, with the nearest names, and a pattern that is no regular expression.
pub fn match_modules<T: AsRef<str>, I: AsRef<str>>(
    model: &dyn ModuleStore,
    targets: &[T],
    ignore: &[I],
) -> Result<Matched> {
    let families = |it: &T| it.as_ref().starts_with("__");
    let (families, plain): (Vec<&T>, Vec<&T>) = targets.iter().partition(|it| families(it));
    let names: Vec<&str> = families.iter().map(|it| it.as_ref()).collect();
    let families = expand_special_targets(&names)?;
    let plain: Vec<String> = plain.into_iter().map(|it| it.as_ref().to_owned()).collect();
    let named = Matcher::compile(&plain, ignore)?;
    let matcher = Matcher::compile(&[plain, families].concat(), ignore)?;
    let classes: Vec<Vec<&str>> =
        model.modules().iter().map(|it| it.classes.iter().map(String::as_str).collect()).collect();
    let listed = model.modules().iter().zip(&classes).filter(|(it, _)| !it.internal);
    let listed: Vec<Vec<NamedModule<'_>>> =
        listed.map(|(it, classes)| it.names().map(|name| NamedModule { name, classes }).collect()).collect();
    let modules = || listed.iter().flatten().copied();
    if let Some(target) = named.targets.unmatched(modules())?.first() {
        let names = modules().flat_map(|it| std::iter::once(it.name).chain(it.classes.iter().copied()));
        let nearest = nearest_names(target, names, 3).into_iter().map(str::to_owned).collect();
        let name = (*target).to_owned();
        let what = "target".to_owned();
        return Err(ErrorKind::UnknownKey { what, name, nearest_names: nearest, known: Vec::new() }.into());
    }
    let mut matched = Matched::default();
    for names in &listed {
        let (mut is_target, mut is_ignored) = (false, false);
        for name in names {
            is_target |= matcher.targets.matches_module(*name)?;
            is_ignored |= matcher.ignore.matches_module(*name)?;
        }
        if let (Some(first), true, false) = (names.first(), is_target, is_ignored) {
            matched.modules.push(first.name.to_owned());
        }
    }
    let idle = matcher.ignore.unmatched(modules())?;
    matched.idle_ignores = idle.into_iter().map(str::to_owned).collect();
    Ok(matched)
}
