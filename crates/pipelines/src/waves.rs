//! Where waves begin, and which modules each holds.

use std::collections::{BTreeMap, BTreeSet};

use graph::{Extent, ModuleId, NodeKind, Policy, Subgraph};
use lifecycle::{CompressionLifecycle, Division, ModuleStore, Tap, TapPoint};
use models::{Model, TraceInputs};

use crate::{divisions::Divisions, error::Result};

/// Where waves begin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Partition {
    /// Before targets: those that are equally deep share a wave, and each runs once, already changed.
    #[default]
    BeforeTargets,
    /// Before decoder layers, as the reference: a layer is heard as it was, then runs again as it became.
    Compat,
}

impl Partition {
    /// The name that a user gives.
    pub fn name(self) -> &'static str {
        match self {
            Self::BeforeTargets => "before_targets",
            Self::Compat => "compat",
        }
    }
}

/// What the waves of a run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaveKind {
    /// Targets that are equally deep: only their inputs are heard, which their own weights do not alter.
    Targets,
    /// Decoder layers: modifiers hear the layer as those before them have left it.
    Layers,
    /// Modules that are held by one, without a run.
    Parents,
}

/// A part of a run at whose end modules are final.
#[derive(Clone, Debug)]
pub struct Wave {
    /// Position among all.
    pub index: usize,
    /// Modules that belong to it, parents before children, in running order.
    pub modules: Vec<String>,
    pub(crate) ids: BTreeSet<ModuleId>,
    pub(crate) subgraph: Option<Subgraph>,
}

impl Wave {
    pub(crate) fn new(index: usize, model: &Model, ids: Vec<ModuleId>, subgraph: Option<Subgraph>) -> Self {
        let modules = ids.iter().map(|it| model.tree().path(*it).to_owned()).collect();
        Self { index, modules, ids: ids.into_iter().collect(), subgraph }
    }
}

/// All waves of a run in order.
#[derive(Clone, Debug)]
pub struct Waves {
    /// What they are.
    pub kind: WaveKind,
    /// The waves.
    pub waves: Vec<Wave>,
    pub(crate) divisions: Divisions,
}

/// What one modifier declares, as ids of a model.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declared {
    /// Where it taps values, in its order.
    pub(crate) taps: Vec<(ModuleId, TapPoint)>,
    /// What it writes.
    pub(crate) writes: BTreeSet<ModuleId>,
    /// What it runs again.
    pub(crate) reruns: BTreeSet<ModuleId>,
    /// Whether it hears beside each value that of a run in which nothing has been changed.
    pub(crate) hears_unchanged: bool,
    /// Modules whose output it divides, and those that it changes to make up for it.
    pub(crate) divisions: BTreeMap<ModuleId, BTreeSet<ModuleId>>,
    /// Modules whose outputs alone it changes.
    pub(crate) rescales: BTreeSet<ModuleId>,
    /// Where it can divide afterwards what it has heard.
    pub(crate) divisible: BTreeSet<(ModuleId, TapPoint)>,
    /// Whether it needs whole layers.
    pub(crate) needs_layers: bool,
    /// Whether later waves see its changes.
    pub(crate) propagates: bool,
}

impl Declared {
    /// Asks a modifier.
    pub(crate) fn of(modifier: &dyn lifecycle::Modifier, model: &Model, store: &dyn ModuleStore) -> Result<Self> {
        let find = |name: &String| model.tree().find(name);
        let tap = |it: &Tap| Some((find(&it.module)?, it.point));
        let division = |it: &Division| Some((find(&it.module)?, it.balanced.iter().filter_map(find).collect()));
        Ok(Self {
            taps: modifier.taps(store)?.iter().filter_map(tap).collect(),
            divisions: modifier.divisions(store)?.iter().filter_map(division).collect(),
            rescales: modifier.rescales(store)?.iter().filter_map(find).collect(),
            divisible: modifier.divisible(store)?.iter().filter_map(tap).collect(),
            writes: modifier.writes(store)?.iter().filter_map(find).collect(),
            reruns: modifier.reruns(store)?.iter().filter_map(find).collect(),
            hears_unchanged: modifier.hears_unchanged(),
            needs_layers: modifier.wave() == lifecycle::Wave::Layer,
            propagates: modifier.propagates_error(),
        })
    }
}

impl Declared {
    /// Whether waves of targets serve it: it hears inputs of linears, and what it divides.
    fn is_fine(&self, model: &Model) -> bool {
        let is_heard = |(module, point): &(ModuleId, TapPoint)| match point {
            TapPoint::Input => model.linear(*module).is_some(),
            TapPoint::Output => self.divisions.contains_key(module),
            _ => false,
        };
        !self.needs_layers && self.reruns.is_empty() && self.taps.iter().all(is_heard)
    }

    /// Modules before which waves of targets begin: what it hears or writes, but not what runs with them as it is divided.
    fn targets(&self) -> impl Iterator<Item = ModuleId> + '_ {
        let heard = self.taps.iter().map(|it| it.0);
        heard.chain(self.writes.iter().copied()).filter(|it| !self.divisions.contains_key(it))
    }
}

/// What all modifiers of a lifecycle declare, in order; those that do not hear the run declare nothing.
pub(crate) fn declared(lifecycle: &CompressionLifecycle, model: &Model) -> Result<Vec<Declared>> {
    let store = lifecycle.state.model()?;
    let hearing = hearing(lifecycle);
    let one = |(idx, it): (usize, &lifecycle::ModifierDriver)| match hearing.contains(&idx) {
        true => Declared::of(it.modifier(), model, store),
        false => Ok(Declared { propagates: true, ..Declared::default() }),
    };
    lifecycle.modifiers().iter().enumerate().map(one).collect()
}

/// Positions of the modifiers that hear the run.
pub(crate) fn hearing(lifecycle: &CompressionLifecycle) -> Vec<usize> {
    (0..lifecycle.modifiers().len()).filter(|idx| lifecycle.focus().is_none_or(|it| it == *idx)).collect()
}

impl Waves {
    /// Cuts a model for modifiers: into waves of targets where that is asked for and serves all of them, else into layers.
    pub(crate) fn of(model: &Model, declared: &[Declared], partition: Partition, inputs: TraceInputs) -> Result<Self> {
        let divisions = Divisions::of(model, declared, inputs)?;
        let cut = |kind| Self::cut(model, kind, declared, partition, inputs);
        let mut waves = None;
        if partition == Partition::BeforeTargets && declared.iter().all(|it| it.is_fine(model)) {
            let fine = cut(WaveKind::Targets)?;
            waves = declared.iter().all(|it| divisions.are_within_waves(it, &fine.waves)).then_some(fine);
        }
        Ok(Self { divisions, ..waves.map_or_else(|| cut(WaveKind::Layers), Ok)? })
    }

    fn cut(
        model: &Model,
        kind: WaveKind,
        declared: &[Declared],
        partition: Partition,
        inputs: TraceInputs,
    ) -> Result<Self> {
        let targets: BTreeSet<ModuleId> = match kind {
            WaveKind::Targets => {
                let is_leaf = |it: &ModuleId| model.tree().children(*it).next().is_none();
                let targets = declared.iter().flat_map(Declared::targets).filter(is_leaf).collect();
                with_idle_layers(model, targets)?
            }
            _ => model.match_targets::<&str>(&[])?,
        };
        let policy = match partition {
            Partition::BeforeTargets => Policy::BeforeTargets,
            Partition::Compat => Policy::COMPAT,
        };
        let mut known = BTreeSet::new();
        let subgraphs = model.subgraphs(&targets, inputs, policy)?;
        let waves = subgraphs.into_iter().enumerate().map(|(index, subgraph)| {
            let called = subgraph.submodules(model.tree());
            let ids = called.into_iter().filter(|it| known.insert(*it)).collect();
            Wave::new(index, model, ids, Some(subgraph))
        });
        Ok(Self { kind, waves: waves.collect(), divisions: Divisions::default() })
    }

    /// Modules that are held by one parent, for a run without data.
    pub(crate) fn by_parent(model: &Model, written: &BTreeSet<ModuleId>) -> Self {
        let mut order: Vec<Vec<ModuleId>> = Vec::new();
        let mut place: BTreeMap<Option<ModuleId>, usize> = BTreeMap::new();
        for id in model.tree().ids().filter(|it| written.contains(it)) {
            let at = *place.entry(model.tree().parent(id)).or_insert_with(|| {
                order.push(Vec::new());
                order.len() - 1
            });
            order[at].push(id);
        }
        let waves = order.into_iter().enumerate().map(|(index, ids)| Wave::new(index, model, ids, None));
        Self { kind: WaveKind::Parents, waves: waves.collect(), divisions: Divisions::default() }
    }
}

/// Targets, and the first linear of each decoder layer that holds none: a run of idle layers in one wave would be in memory
/// together.
fn with_idle_layers(model: &Model, targets: BTreeSet<ModuleId>) -> Result<BTreeSet<ModuleId>> {
    let tree = model.tree();
    let is_below = |layer: ModuleId, it: ModuleId| {
        std::iter::successors(Some(it), |it| tree.parent(*it)).any(|around| around == layer)
    };
    let idle = model.match_targets::<&str>(&[])?.into_iter().filter(|it| !targets.iter().any(|at| is_below(*it, *at)));
    let first = |layer: ModuleId| tree.ids().find(|it| model.linear(*it).is_some() && is_below(layer, *it));
    let first: Vec<ModuleId> = idle.filter_map(first).collect();
    Ok(targets.into_iter().chain(first).collect())
}

/// How far a subgraph has to run for taps to be heard.
pub(crate) fn extent_for(
    model: &Model,
    (kind, divisions): (WaveKind, &Divisions),
    subgraph: &Subgraph,
    taps: &BTreeSet<(ModuleId, TapPoint)>,
) -> Extent {
    if kind == WaveKind::Targets {
        // What is divided has run where the inputs of its readers are there.
        let heard = |(module, point): &(ModuleId, TapPoint)| match point {
            TapPoint::Input => vec![*module],
            _ => divisions.readers(*module).collect(),
        };
        return Extent::InputsOf(taps.iter().flat_map(heard).collect());
    }
    let calls: Vec<&[ModuleId]> = subgraph
        .graph
        .nodes()
        .filter(|(_, node)| matches!(node.kind, NodeKind::CallModule(_)))
        .map(|(_, node)| node.modules())
        .collect();
    let must_run = |modules: &&[ModuleId]| {
        modules.iter().any(|&module| {
            let mut below = vec![module];
            while let Some(next) = below.pop() {
                let heard_before = next == module;
                let is_heard = taps.iter().any(|it| it.0 == next && !(heard_before && it.1 == TapPoint::Input));
                if is_heard {
                    return true;
                }
                below.extend(model.tree().children(next).map(|it| it.1));
            }
            false
        })
    };
    let end = calls.iter().rposition(must_run).map_or(0, |it| it + 1);
    let rest: BTreeSet<ModuleId> = calls[end..].iter().copied().flatten().copied().collect();
    if rest.is_empty() { Extent::Whole } else { Extent::InputsOf(rest) }
}
