//! Which modules a run takes up, and what it refuses to part.

use std::{collections::HashSet, sync::Arc};

use checkpoint::Source;
use compressed_tensors::{args::QuantizationStrategy, scheme::QuantizationScheme};
use graph::ModuleId;
use indexmap::IndexMap;
use lifecycle::ModuleStore;
use models::{Model, Weights};

use super::{
    OneshotOptions, Scope,
    finished::{Finished, Grafted},
};
use crate::error::{ErrorKind, Result};

/// The modules that were chosen by patterns.
#[derive(Debug)]
pub(super) struct Chosen(HashSet<String>);

impl Chosen {
    /// The modules that match a pattern, and all that they hold.
    ///
    /// # Errors
    /// A pattern that matches nothing, with the nearest names.
    fn of(model: &Model, patterns: &[String]) -> Result<Self> {
        let tree = model.tree();
        let matched = if patterns.is_empty() { Default::default() } else { model.match_targets(patterns)? };
        let is_chosen = |id: &ModuleId| {
            let around = std::iter::successors(Some(*id), |it| tree.parent(*it));
            around.into_iter().any(|it| matched.contains(&it))
        };
        Ok(Self(tree.ids().filter(is_chosen).map(|id| tree.path(id).to_owned()).collect()))
    }

    pub(super) fn contains(&self, module: &str) -> bool {
        self.0.contains(module)
    }
}

/// What a run takes up, and what it takes over.
#[derive(Default)]
pub(super) struct Selection {
    /// The modules that it may change; none for all.
    pub(super) chosen: Option<Chosen>,
    /// The output that the others come from; none for the source.
    pub(super) finished: Option<Finished>,
}

impl Selection {
    /// What the options say of the model of a source.
    ///
    /// # Errors
    /// Patterns that match nothing; an output that cannot be gone on from.
    pub(super) fn of(options: &OneshotOptions, source: &Source, model: &Model) -> Result<Self> {
        let (patterns, from) = match &options.scope {
            Scope::All => return Ok(Self::default()),
            Scope::Only { patterns } => (patterns, None),
            Scope::Redo { patterns, from } => (patterns, Some(from)),
        };
        let finished = from.map(|from| Finished::open(from, &options.output, source)).transpose()?;
        let chosen = Chosen::of(model, patterns)?;
        if let Some(finished) = &finished {
            finished.check_parts(model, &chosen)?;
        }
        Ok(Self { chosen: Some(chosen), finished })
    }

    /// The output of which modules are done again, and these.
    pub(super) fn redone(&self) -> Option<(&Finished, &Chosen)> {
        self.finished.as_ref().zip(self.chosen.as_ref())
    }

    /// The schemes of all modules of the output, of which the run gives `new` ones to some.
    ///
    /// # Errors
    /// As [`Finished::schemes`].
    pub(super) fn schemes(
        &self,
        store: &dyn ModuleStore,
        new: &IndexMap<String, QuantizationScheme>,
    ) -> Result<IndexMap<String, QuantizationScheme>> {
        self.redone().map_or_else(|| Ok(new.clone()), |(finished, chosen)| finished.schemes(store, chosen, new))
    }

    /// The weights that the run sees, where they are not those of the source.
    pub(super) fn weights(&self, source: &Arc<Source>, model: &Model) -> Option<Arc<dyn Weights>> {
        let (finished, chosen) = self.redone()?;
        Some(Arc::new(Grafted::new(source, finished, chosen, model)))
    }

    /// What is added to the fingerprints of the run.
    pub(super) fn fingerprints(&self, options: &OneshotOptions) -> Vec<(String, String)> {
        match (&options.scope, &self.finished) {
            (Scope::Only { patterns }, _) => vec![("only layers".to_owned(), patterns.join("\n"))],
            (Scope::Redo { patterns, .. }, Some(finished)) => {
                let from = finished.source().fingerprint().to_owned();
                vec![("redo".to_owned(), patterns.join("\n")), ("from".to_owned(), from)]
            }
            _ => Vec::new(),
        }
    }

    /// Refuses schemes by which modules differ that engines run as one, where some of them are chosen and some are not.
    ///
    /// # Errors
    /// `Inseparable`, with one of each.
    pub(super) fn check_fused(&self, model: &Model, schemes: &IndexMap<String, QuantizationScheme>) -> Result<()> {
        let Some(chosen) = &self.chosen else { return Ok(()) };
        let links = model.links();
        let layers = links.fused.iter().map(|it| (it.parts.clone(), true));
        let experts = links.experts.iter().map(|it| (it.1.concat(), false));
        for (parts, shares_scale) in layers.chain(experts) {
            let names: Vec<&str> = parts.iter().map(|it| model.tree().path(*it)).collect();
            let (inside, outside): (Vec<&str>, Vec<&str>) = names.iter().partition(|it| chosen.contains(it));
            let (Some(module), Some(other)) = (inside.first(), outside.first()) else { continue };
            let bare: Vec<_> = names.iter().map(|it| schemes.get(*it).map(bare)).collect();
            let first = bare[0].as_ref();
            let is_global = |it: &QuantizationScheme| {
                it.weights.as_ref().is_some_and(|it| it.strategy == QuantizationStrategy::TensorGroup)
            };
            let reason = if bare.iter().any(|it| it.as_ref() != first) {
                "engines run them as one layer, under one scheme"
            } else if shares_scale && first.is_some_and(is_global) {
                "engines run them as one layer, with one global scale"
            } else {
                continue;
            };
            return Err(inseparable(module, other, reason));
        }
        Ok(())
    }
}

/// A scheme without what only names modules.
pub(super) fn bare(scheme: &QuantizationScheme) -> QuantizationScheme {
    QuantizationScheme { targets: Vec::new(), format: None, ..scheme.clone() }
}

pub(super) fn inseparable(module: &str, other: &str, reason: &str) -> crate::Error {
    ErrorKind::Inseparable { module: module.to_owned(), other: other.to_owned(), reason: reason.to_owned() }.into()
}
