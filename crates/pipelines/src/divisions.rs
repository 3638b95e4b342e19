//! Values that modifiers divide: what reads them, who may hear them before, and who is told behind.

use std::collections::{BTreeMap, BTreeSet};

use graph::{Graph, ModuleId, Port};
use lifecycle::{CompressionLifecycle, Tap, TapPoint};
use models::{Model, TraceInputs};

use crate::{Wave, WaveKind, error::Result, waves::Declared};

/// What reads the values that modifiers divide, where that is linears alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Divisions {
    /// The linears by the module that gives the value.
    readers: BTreeMap<ModuleId, BTreeSet<ModuleId>>,
}

impl Divisions {
    /// Finds the readers in a trace of the model.
    pub(crate) fn of(model: &Model, declared: &[Declared], inputs: TraceInputs) -> Result<Self> {
        let divided: BTreeSet<ModuleId> = declared.iter().flat_map(|it| it.divisions.keys().copied()).collect();
        if divided.is_empty() {
            return Ok(Self::default());
        }
        let linears = model.tree().ids().filter(|it| model.linear(*it).is_some()).collect();
        let graph = model.trace(&linears, inputs)?;
        let mut n_calls: BTreeMap<ModuleId, usize> = BTreeMap::new();
        for (_, node) in graph.nodes() {
            node.modules().iter().for_each(|it| *n_calls.entry(*it).or_default() += 1);
        }
        // What is called twice has several values, of which one may be another's.
        let is_single = |it: &ModuleId| n_calls.get(it) == Some(&1);
        let mut readers = BTreeMap::new();
        for (id, node) in graph.nodes() {
            let &[module] = node.modules() else { continue };
            if !divided.contains(&module) || linears.contains(&module) || !is_single(&module) {
                continue;
            }
            if let Some(found) = linears_behind(&graph, id.into(), &linears)
                && found.iter().all(is_single)
            {
                readers.insert(module, found);
            }
        }
        Ok(Self { readers })
    }

    /// Whether the modules that a modifier balances are among those that read the value, and one wave holds all of them.
    pub(crate) fn are_within_waves(&self, modifier: &Declared, waves: &[Wave]) -> bool {
        modifier.divisions.iter().all(|(module, balanced)| {
            let Some(readers) = self.readers.get(module) else { return false };
            let is_around = |it: &&Wave| it.ids.contains(module);
            let wave = waves.iter().find(is_around);
            balanced.is_subset(readers) && wave.is_some_and(|it| readers.is_subset(&it.ids))
        })
    }

    /// The linears that are given what a module gives.
    pub(crate) fn readers(&self, module: ModuleId) -> impl Iterator<Item = ModuleId> + '_ {
        self.readers.get(&module).into_iter().flatten().copied()
    }

    /// Modifiers in order, those together that can hear a wave in one pass.
    pub(crate) fn passes(
        &self,
        model: &Model,
        (kind, wave): (WaveKind, &Wave),
        declared: &[Declared],
        hearing: Vec<usize>,
    ) -> Vec<Vec<usize>> {
        let mut passes: Vec<Vec<usize>> = Vec::new();
        for idx in hearing {
            let joins = |it: &usize| self.hears_before(model, (kind, wave), &declared[*it], &declared[idx]);
            match passes.last_mut().filter(|pass| pass.iter().all(joins)) {
                Some(pass) => pass.push(idx),
                None => passes.push(vec![idx]),
            }
        }
        passes
    }

    /// Whether what one modifier hears of a wave before another changes it serves as well as what it would hear afterwards.
    fn hears_before(
        &self,
        model: &Model,
        (kind, wave): (WaveKind, &Wave),
        changes: &Declared,
        hears: &Declared,
    ) -> bool {
        let mut divided: BTreeSet<(ModuleId, TapPoint)> = BTreeSet::new();
        let mut serving: BTreeSet<ModuleId> = BTreeSet::new();
        for (module, balanced) in changes.divisions.iter().filter(|it| wave.ids.contains(it.0)) {
            divided.insert((*module, TapPoint::Output));
            divided.extend(self.readers(*module).map(|it| (it, TapPoint::Input)));
            if self.readers.get(module) == Some(balanced) {
                serving.extend(balanced.iter().chain([module]));
            }
        }
        // In a wave of targets nothing else is heard than their inputs, which their own weights do not alter.
        if kind == WaveKind::Layers {
            // Divisions that are made up for leave all other values as they are.
            let leaves_others = changes.writes.iter().filter(|it| wave.ids.contains(it)).all(|it| serving.contains(it));
            let is_plain = |(module, point): &(ModuleId, TapPoint)| match point {
                TapPoint::Input => model.linear(*module).is_some(),
                TapPoint::Output => hears.divisions.contains_key(module),
                _ => false,
            };
            let is_rerun = hears.reruns.iter().any(|it| wave.ids.contains(it));
            let is_heard = |it: &&(ModuleId, TapPoint)| wave.ids.contains(&it.0);
            if !leaves_others || is_rerun || !hears.taps.iter().filter(is_heard).all(is_plain) {
                return false;
            }
        }
        hears.taps.iter().filter(|it| divided.contains(it)).all(|it| hears.divisible.contains(it))
    }

    /// Tells modifiers of the values that another has divided since they heard them.
    pub(crate) fn tell(
        &self,
        model: &Model,
        declared: &[Declared],
        lifecycle: &mut CompressionLifecycle,
        (by, heard): (usize, &[usize]),
    ) -> Result<()> {
        for divisors in lifecycle.take_divisors(by) {
            let Some(module) = model.tree().find(&divisors.module) else { continue };
            let inputs = self.readers(module).map(|it| (it, TapPoint::Input));
            let shown: BTreeSet<_> = inputs.chain([(module, TapPoint::Output)]).collect();
            for &idx in heard {
                let taps = declared[idx].taps.iter().filter(|it| shown.contains(it));
                let taps: Vec<Tap> = taps.map(|it| Tap::new(model.tree().path(it.0), it.1)).collect();
                if !taps.is_empty() {
                    lifecycle.divide(idx, &taps, &divisors.by)?;
                }
            }
        }
        Ok(())
    }
}

/// The modules that take a value, where these are linears which take nothing else.
fn linears_behind(graph: &Graph, value: Port, linears: &BTreeSet<ModuleId>) -> Option<BTreeSet<ModuleId>> {
    let users = graph.node(value.node).users();
    let one = |user: &graph::NodeId| match (graph.node(*user).modules(), graph.node(*user).args.as_slice()) {
        (&[module], &[only]) if only == value && linears.contains(&module) => Some(module),
        _ => None,
    };
    users.iter().map(one).collect()
}
