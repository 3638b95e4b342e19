//! Which scheme each module gets, or why it gets none.

use compressed_tensors::{
    scheme::QuantizationScheme,
    target::{NamedModule, Patterns, nearest_names},
};
use indexmap::IndexMap;

use super::{
    DEFAULT_IGNORE,
    options::{DefaultIgnores, ModelFreeOptions, Tolerance},
};
use crate::error::{ErrorKind, InContext, Result};

/// What happens to one module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// It is quantized by the config group of this index.
    Quantize(usize),
    /// It stays as it is.
    Leave(Reason),
}

/// Why a module stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// An `ignore` entry names it.
    Ignored(String),
    /// It is of a kind that engines expect in full precision.
    Default(&'static str),
    /// No target names it.
    NotTargeted,
}

impl Reason {
    /// A few words for the report.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Ignored(pattern) => format!("ignored by `{pattern}`"),
            Self::Default(kind) => format!("{kind}, ignored by default"),
            Self::NotTargeted => "not targeted".to_owned(),
        }
    }
}

/// The answer for every module, in their order, with what a person should know.
#[derive(Debug)]
pub(crate) struct Selection {
    /// One choice a module.
    pub(crate) choices: Vec<Choice>,
    /// Things likely wrong but allowed.
    pub(crate) warnings: Vec<String>,
}

/// Chooses for every module of `names`; `groups` are the config's schemes in order, the first that matches wins.
///
/// # Errors
/// `Unmatched` for a target or include that matches nothing, and for an ignore under [`Tolerance::Refuse`];
/// `NothingToDo` where no module is left; `Format` for a pattern that cannot be compiled.
pub(crate) fn select(
    names: &[&str],
    groups: &IndexMap<String, QuantizationScheme>,
    ignore: &[String],
    options: &ModelFreeOptions,
) -> Result<Selection> {
    let rules = Rules::compile(groups, ignore, options)?;
    let choices = names.iter().map(|name| rules.choose(name)).collect::<Result<Vec<_>>>()?;
    for targets in &rules.targets {
        rules.require_matches("target", targets, names)?;
    }
    rules.require_matches("include", &rules.include, names)?;
    let mut warnings = Vec::new();
    for pattern in unmatched(&rules.ignore, names)? {
        match options.unmatched_ignore {
            Tolerance::Refuse => return Err(unmatched_error("ignore", pattern, names)),
            Tolerance::Allow => warnings.push(format!("ignore `{pattern}` matches no module")),
        }
    }
    if !choices.iter().any(|it| matches!(it, Choice::Quantize(_))) {
        let reason = match names.len() {
            0 => "the checkpoint holds no matrix named `*.weight`".to_owned(),
            n => format!("all {n} modules are ignored"),
        };
        return Err(ErrorKind::NothingToDo { reason }.into());
    }
    Ok(Selection { choices, warnings })
}

struct Rules {
    targets: Vec<Patterns>,
    ignore: Patterns,
    include: Patterns,
    default_ignore: Vec<(&'static str, Patterns)>,
}

impl Rules {
    fn compile(
        groups: &IndexMap<String, QuantizationScheme>,
        ignore: &[String],
        options: &ModelFreeOptions,
    ) -> Result<Self> {
        let default_ignore = match options.default_ignores {
            DefaultIgnores::Off => Vec::new(),
            DefaultIgnores::On => DEFAULT_IGNORE
                .iter()
                .map(|it| Ok((it.reason, Patterns::compile(&[it.pattern]).context("default ignores")?)))
                .collect::<Result<_>>()?,
        };
        Ok(Self {
            targets: groups
                .iter()
                .map(|(name, scheme)| Patterns::compile(&scheme.targets).context(format!("targets of `{name}`")))
                .collect::<Result<_>>()?,
            ignore: Patterns::compile(ignore).context("ignore")?,
            include: Patterns::compile(&options.include).context("include")?,
            default_ignore,
        })
    }

    fn choose(&self, name: &str) -> Result<Choice> {
        let module = as_linear(name);
        if let Some(pattern) = self.ignore.matching(module).context("ignore")?.first() {
            return Ok(Choice::Leave(Reason::Ignored((*pattern).to_owned())));
        }
        // The reference never quantizes these, whatever the targets say.
        if name.ends_with("norm") {
            return Ok(Choice::Leave(Reason::Default("norm")));
        }
        if !self.include.matches_name(name).context("include")? {
            for (reason, patterns) in &self.default_ignore {
                if patterns.matches_name(name).context("default ignores")? {
                    return Ok(Choice::Leave(Reason::Default(reason)));
                }
            }
        }
        for (idx, targets) in self.targets.iter().enumerate() {
            if targets.matches_module(module).context("targets")? {
                return Ok(Choice::Quantize(idx));
            }
        }
        Ok(Choice::Leave(Reason::NotTargeted))
    }

    fn require_matches(&self, option: &'static str, patterns: &Patterns, names: &[&str]) -> Result<()> {
        match unmatched(patterns, names)?.first() {
            Some(pattern) => Err(unmatched_error(option, pattern, names)),
            None => Ok(()),
        }
    }
}

/// By names alone every matrix counts as a `Linear`.
fn as_linear(name: &str) -> NamedModule<'_> {
    NamedModule { name, classes: &["Linear"] }
}

fn unmatched<'p>(patterns: &'p Patterns, names: &[&str]) -> Result<Vec<&'p str>> {
    patterns.unmatched(names.iter().map(|name| as_linear(name))).context("patterns")
}

fn unmatched_error(option: &'static str, pattern: &str, names: &[&str]) -> crate::Error {
    let nearest = nearest_names(pattern, names.iter().copied(), 3).into_iter().map(str::to_owned).collect();
    ErrorKind::Unmatched { option, pattern: pattern.to_owned(), nearest }.into()
}

#[cfg(test)]
mod tests {
    use compressed_tensors::presets::preset;

    use super::*;

    const NAMES: &[&str] = &[
        "model.embed_tokens",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.gate",
        "model.layers.0.mlp.experts.0.up_proj",
        "lm_head",
    ];

    fn options() -> ModelFreeOptions {
        ModelFreeOptions::preset("in", "out", "W4A16")
    }

    fn check(options: &ModelFreeOptions, targets: &[&str], ignore: &[&str]) -> Result<Vec<bool>> {
        let targets = targets.iter().map(|it| (*it).to_owned()).collect();
        let groups = IndexMap::from([("W4A16".to_owned(), preset("W4A16", targets).unwrap())]);
        let ignore: Vec<_> = ignore.iter().map(|it| (*it).to_owned()).collect();
        let selection = select(NAMES, &groups, &ignore, options)?;
        Ok(selection.choices.iter().map(|it| matches!(it, Choice::Quantize(_))).collect())
    }

    #[test]
    fn embeddings_heads_and_routers_are_left_by_default() {
        assert_eq!(check(&options(), &["Linear"], &[]).unwrap(), [false, true, false, true, false]);
    }

    #[test]
    fn include_takes_what_the_defaults_leave() {
        let options = ModelFreeOptions { include: vec!["lm_head".to_owned()], ..options() };
        assert_eq!(check(&options, &["Linear"], &[]).unwrap(), [false, true, false, true, true]);
    }

    #[test]
    fn a_target_that_matches_nothing_is_an_error_with_the_nearest_names() {
        let error = check(&options(), &["re:.*q_porj"], &[]).unwrap_err();
        let ErrorKind::Unmatched { option: "target", nearest, .. } = error.kind() else { panic!("{error}") };
        assert!(nearest.iter().any(|it| it.ends_with("q_proj")), "{nearest:?}");
    }

    #[test]
    fn an_ignore_that_matches_nothing_is_an_error_only_when_strict() {
        assert!(check(&options(), &["Linear"], &["k_proj"]).is_ok());
        let strict = ModelFreeOptions { unmatched_ignore: Tolerance::Refuse, ..options() };
        let error = check(&strict, &["Linear"], &["k_proj"]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unmatched { option: "ignore", .. }));
    }

    #[test]
    fn a_choice_without_modules_is_refused() {
        let error = check(&options(), &["lm_head"], &[]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NothingToDo { .. }), "{error}");
    }
}
