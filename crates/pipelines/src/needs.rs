//! The least memory that a run takes, from shapes alone.

use std::collections::{BTreeMap, BTreeSet};

use graph::ModuleId;
use lifecycle::{CompressionLifecycle, TapPoint};
use models::{Model, TraceInputs};

use crate::{
    DataFree, Sequential, Wave, WaveKind, Waves,
    error::Result,
    waves::{Declared, declared},
};

/// Bytes of the values of one element that modifiers hold while they change a weight: f32 of what it is, of what it becomes, and
/// of a candidate between.
const CHANGE_BYTES: u64 = 12;
/// Bytes of an element of second moments, and of the factor that is made of them.
const MOMENT_BYTES: u64 = 8;

/// Bytes that a wave takes at least.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaveNeeds {
    /// The first module of the wave.
    pub module: String,
    /// Its parameters and the values of one batch: what the engine's budget holds.
    pub engine_bytes: u64,
    /// What modifiers hold beside: statistics and copies of weights.
    pub modifier_bytes: u64,
}

impl WaveNeeds {
    fn new(model: &Model, wave: &Wave, declared: &[Declared], engine_bytes: u64) -> Self {
        let module = wave.modules.first().cloned().unwrap_or_default();
        Self { module, engine_bytes, modifier_bytes: modifier_bytes(model, wave, declared) }
    }
}

/// Least memory of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Of each wave.
    pub waves: Vec<WaveNeeds>,
}

impl Needs {
    /// The wave that takes most.
    pub fn largest(&self) -> WaveNeeds {
        self.waves.iter().max_by_key(|it| it.engine_bytes + it.modifier_bytes).cloned().unwrap_or_default()
    }

    /// The most that modifiers hold in any wave.
    pub fn modifier_bytes(&self) -> u64 {
        self.waves.iter().map(|it| it.modifier_bytes).max().unwrap_or(0)
    }

    /// The most that parameters and one batch take in any wave.
    pub fn engine_bytes(&self) -> u64 {
        self.waves.iter().map(|it| it.engine_bytes).max().unwrap_or(0)
    }
}

impl Sequential {
    /// What a run over batches of at most `batch_tokens` tokens takes, `all_tokens` in all.
    ///
    /// # Errors
    /// Targets that match nothing, a model that cannot be traced.
    pub fn needs(&self, lifecycle: &CompressionLifecycle, batch_tokens: u64, all_tokens: u64) -> Result<Needs> {
        let declared = declared(lifecycle, &self.model)?;
        let waves = Waves::of(&self.model, &declared, self.partition, TraceInputs::Ids)?;
        self.check_unchanged(lifecycle, &declared, &waves)?;
        let one = |wave: &Wave| {
            let width = width_of(&self.model);
            let mut channels = 0u64;
            for module in &wave.ids {
                if let Some(linear) = self.model.linear(*module) {
                    let shape = &self.model.store().info(linear.weight).shape;
                    // Of the last wave nobody computes the output.
                    let is_head = self.model.causal().is_some_and(|it| it.head == *module);
                    channels += if is_head { 0 } else { shape.iter().sum::<usize>() as u64 };
                }
            }
            let parameters = wave.ids.iter().map(|it| own_elements(&self.model, *it)).sum::<u64>();
            let kept = declared.iter().flat_map(|it| &it.reruns).filter(|it| wave.ids.contains(it)).count() as u64;
            let hidden = hidden_of(&self.model);
            let live = (2 * channels + 8 * hidden) * self.window.max(1) as u64;
            // What is heard of both streams is in memory together.
            let live = if declared.iter().any(|it| it.hears_unchanged) { 2 * live } else { live };
            // What a module is given, and what it gives, of all tokens.
            let kept = if waves.kind == WaveKind::Layers { 2 * kept * hidden * all_tokens } else { 0 };
            let engine_bytes = width * (parameters + live * batch_tokens + kept);
            WaveNeeds::new(&self.model, wave, &declared, engine_bytes)
        };
        Ok(Needs { waves: waves.waves.iter().map(one).collect() })
    }
}

impl DataFree {
    /// What a run takes.
    ///
    /// # Errors
    /// Targets that match nothing.
    pub fn needs(&self, lifecycle: &CompressionLifecycle) -> Result<Needs> {
        let declared = declared(lifecycle, &self.model)?;
        let written: BTreeSet<ModuleId> = declared.iter().flat_map(|it| it.writes.iter().copied()).collect();
        let waves = Waves::by_parent(&self.model, &written);
        let one = |wave: &Wave| {
            let parameters = wave.ids.iter().map(|it| own_elements(&self.model, *it)).sum::<u64>();
            WaveNeeds::new(&self.model, wave, &declared, width_of(&self.model) * parameters)
        };
        Ok(Needs { waves: waves.waves.iter().map(one).collect() })
    }
}

/// Bytes of what modifiers hold of a wave: statistics by distinct input, and copies of the weights that are written.
pub(crate) fn modifier_bytes(model: &Model, wave: &Wave, declared: &[Declared]) -> u64 {
    let mut inputs: BTreeMap<(Option<ModuleId>, u64), u64> = BTreeMap::new();
    let mut written: BTreeSet<ModuleId> = BTreeSet::new();
    for it in declared {
        let bytes = if it.hears_unchanged { 2 * MOMENT_BYTES } else { MOMENT_BYTES };
        for (module, _) in it.taps.iter().filter(|it| it.1 == TapPoint::Input && wave.ids.contains(&it.0)) {
            if let Some(linear) = model.linear(*module) {
                let cols = model.store().info(linear.weight).shape.last().copied().unwrap_or(0) as u64;
                inputs.insert((model.tree().parent(*module), cols), cols * cols * bytes);
            }
        }
        written.extend(it.writes.iter().filter(|it| wave.ids.contains(it)));
    }
    let factor = inputs.values().max().copied().unwrap_or(0);
    let weights: u64 = written.iter().map(|it| own_elements(model, *it)).sum();
    inputs.values().sum::<u64>() + factor + weights * CHANGE_BYTES
}

fn own_elements(model: &Model, module: ModuleId) -> u64 {
    let shape = |it| model.store().info(it).shape.iter().product::<usize>() as u64;
    model.own_parameters(module).iter().map(|it| shape(*it)).sum()
}

fn width_of(model: &Model) -> u64 {
    (model.store().dtype().bits() / 8) as u64
}

/// Channels of the residual stream: columns of the output head.
fn hidden_of(model: &Model) -> u64 {
    let head = model.causal().and_then(|it| model.linear(it.head));
    head.and_then(|it| model.store().info(it.weight).shape.get(1).copied()).unwrap_or(0) as u64
}
