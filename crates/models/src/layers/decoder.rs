//! The causal language model around its layers.

use std::sync::Arc;

use graph::{ModuleId, Value};
use tensor::{DType, Op};

use super::{EmbeddingPlan, NormPlan, PositionsPlan, Rotary, embedding, exactly, learned_positions, norm};
use crate::build::{Bias, Builder};
use crate::config::Nesting;
use crate::context::{Causal, Cx, Layer};
use crate::error::{ErrorKind, Result};
use crate::links::ChannelMap;
use crate::rope::Frequencies;

/// Class names of a family.
#[derive(Clone, Copy)]
pub(crate) struct Classes {
    pub(crate) causal_lm: &'static str,
    pub(crate) model: &'static str,
    pub(crate) layer: &'static str,
    pub(crate) norm: &'static str,
    pub(crate) rotary: &'static str,
}

/// A causal language model.
pub(crate) struct CausalPlan {
    pub(crate) classes: Classes,
    /// Where in a larger model it lies.
    pub(crate) nesting: Nesting,
    /// Name of the body, and names and classes of what lies inside of it before the layers' module.
    pub(crate) body: &'static str,
    pub(crate) inner: Option<(&'static str, &'static str)>,
    /// What the body holds, in the order in which it is listed.
    pub(crate) listed: &'static [Part],
    pub(crate) embedding: EmbeddingPlan,
    pub(crate) positions: Option<PositionsPlan>,
    /// Width of the embedding's table where it is projected to C (OPT 350M).
    pub(crate) projected: Option<usize>,
    /// C.
    pub(crate) width: usize,
    pub(crate) n_layers: usize,
    pub(crate) norm: NormPlan,
    pub(crate) frequencies: Vec<Frequencies>,
    /// Which of the frequencies each layer takes; the first where there is no entry.
    pub(crate) table_of_layer: Vec<usize>,
    pub(crate) alibi: Option<Alibi>,
    /// Whether the head shares the embedding's table.
    pub(crate) head: Head,
    pub(crate) head_bias: Bias,
    /// Factor on the logits.
    pub(crate) logits_factor: Option<f32>,
    /// `c * tanh(logit / c)` in place of a logit.
    pub(crate) logits_cap: Option<f32>,
}

/// A part of the body, under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Embedding(&'static str),
    /// Learned positions, added to the embedding.
    Positions(&'static str),
    /// A norm of the embedding (BLOOM).
    EmbeddingNorm(&'static str),
    /// Projections from and to the embedding's width, where it is not C.
    ProjectIn(&'static str),
    ProjectOut(&'static str),
    Layers(&'static str),
    Norm(&'static str),
    Rotary(&'static str),
    /// It is listed and does nothing.
    Dropout(&'static str),
}

/// Parts of the Llama family.
pub(crate) const LLAMA_PARTS: &[Part] =
    &[Part::Embedding("embed_tokens"), Part::Layers("layers"), Part::Norm("norm"), Part::Rotary("rotary_emb")];

/// Numbers that grow with a key's position, added to the scores.
#[derive(Clone)]
pub(crate) struct Alibi {
    /// By head.
    pub(crate) slopes: Arc<[f32]>,
    /// The type that they are rounded to; that of the model by default.
    pub(crate) rounded_to: Option<DType>,
    /// Factor on the rounded numbers.
    pub(crate) factor: f32,
}

/// Where the head's weight comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    Own,
    Tied,
}

/// ids (B, T), then a mask (B, T) or not -> (B, T, C).
#[derive(Default)]
struct Decoder {
    embedding: Option<ModuleId>,
    positions: Option<ModuleId>,
    embedding_norm: Option<ModuleId>,
    project_in: Option<ModuleId>,
    project_out: Option<ModuleId>,
    layers: Vec<ModuleId>,
    norm: Option<ModuleId>,
    rotary: Option<ModuleId>,
    table_of_layer: Vec<usize>,
    alibi: Option<Alibi>,
}

/// A module that hands its inputs to another.
struct Around(ModuleId);

/// ids (B, T), then a mask (B, T) or not -> logits (B, T, V).
struct CausalLm {
    model: ModuleId,
    head: ModuleId,
    logits_factor: Option<f32>,
    logits_cap: Option<f32>,
}

/// Embedding, layers, norm and head; `layer` builds each layer under its number.
pub(crate) fn causal_lm(
    b: &mut Builder,
    plan: CausalPlan,
    mut layer: impl FnMut(&mut Builder, usize, &str) -> Result<ModuleId>,
) -> Result<()> {
    b.root(|b| match plan.nesting {
        Nesting::Whole => {
            b.holder("language_model", plan.classes.causal_lm, |b| parts(b, &plan, &mut layer)).map(|it| it.1)
        }
        Nesting::Alone | Nesting::Inside => parts(b, &plan, &mut layer),
    })
}

fn parts(
    b: &mut Builder,
    plan: &CausalPlan,
    layer: &mut impl FnMut(&mut Builder, usize, &str) -> Result<ModuleId>,
) -> Result<CausalLm> {
    let mut weight = None;
    let mut last = None;
    let mut build = |b: &mut Builder| {
        let (decoder, table) = decoder(b, plan, layer)?;
        weight = table;
        last = decoder.project_out.or(decoder.norm.filter(|_| plan.norm.is_scalable()));
        Ok(decoder)
    };
    let model = match (plan.inner, plan.nesting) {
        (None, Nesting::Inside) => {
            b.module("model", "Module", |b| b.module("language_model", plan.classes.model, &mut build).map(Around))?
        }
        (None, _) => b.module(plan.body, plan.classes.model, build)?,
        (Some((name, class)), _) => {
            b.module(plan.body, plan.classes.model, |b| b.module(name, class, &mut build).map(Around))?
        }
    };
    let columns = plan.projected.unwrap_or(plan.width);
    let head = match (plan.head, weight) {
        (Head::Tied, Some(weight)) => b.tied_linear("lm_head", weight)?,
        _ => b.linear("lm_head", [plan.embedding.vocab_size, columns], plan.head_bias)?,
    };
    if let Some(last) = last {
        b.link(last, &[head], ChannelMap::Same);
    }
    // A checkpoint of the body alone has names without the body's.
    let prefix = format!("{}.", plan.body);
    b.alias(|name| name.strip_prefix(&prefix).map(str::to_owned));
    Ok(CausalLm { model, head, logits_factor: plan.logits_factor, logits_cap: plan.logits_cap })
}

fn decoder(
    b: &mut Builder,
    plan: &CausalPlan,
    layer: &mut impl FnMut(&mut Builder, usize, &str) -> Result<ModuleId>,
) -> Result<(Decoder, Option<crate::store::ParameterId>)> {
    let mut weight = None;
    let mut it =
        Decoder { table_of_layer: plan.table_of_layer.clone(), alibi: plan.alibi.clone(), ..Decoder::default() };
    for part in plan.listed {
        match *part {
            Part::Embedding(name) => {
                let (id, table) = embedding(b, name, &plan.embedding)?;
                b.links().residual_writers.push(id);
                (it.embedding, weight) = (Some(id), Some(table));
            }
            Part::Positions(name) => {
                it.positions =
                    plan.positions.map(|positions| learned_positions(b, name, positions, plan.width)).transpose()?;
            }
            Part::EmbeddingNorm(name) => it.embedding_norm = Some(norm(b, name, plan.norm, plan.width)?),
            Part::ProjectIn(name) => {
                let linear = |width| b.linear(name, [plan.width, width], Bias::Absent);
                it.project_in = plan.projected.map(linear).transpose()?;
            }
            Part::ProjectOut(name) => {
                let linear = |width| b.linear(name, [width, plan.width], Bias::Absent);
                it.project_out = plan.projected.map(linear).transpose()?;
            }
            Part::Layers(name) => (_, it.layers) = b.list(name, plan.n_layers, &mut *layer)?,
            Part::Norm(name) => it.norm = Some(norm(b, name, plan.norm, plan.width)?),
            Part::Rotary(name) => {
                let frequencies = plan.frequencies.clone();
                it.rotary = Some(b.module(name, plan.classes.rotary, |_| Ok(Rotary(frequencies)))?);
            }
            Part::Dropout(name) => drop(b.holder(name, "Dropout", |_| Ok(()))?),
        }
    }
    if let Some(norm) = it.norm {
        b.links().residual_readers.push(norm);
    }
    if let (Some(norm), Some(out), true) = (it.norm, it.project_out, plan.norm.is_scalable()) {
        b.link(norm, &[out], ChannelMap::Same);
    }
    Ok((it, weight))
}

impl Layer for Decoder {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let (ids, mask) = match inputs.as_slice() {
            [ids] => (ids.clone(), None),
            [ids, mask] => (ids.clone(), Some(mask.clone())),
            _ => return Err(ErrorKind::Arity { found: inputs.len(), expected: "ids and perhaps a mask" }.into()),
        };
        let Some(embedding) = self.embedding else { return Err(ErrorKind::NotCallable.into()) };
        let mut x = cx.call(embedding, [ids])?;
        if let Some(project) = self.project_in {
            x = cx.call(project, [x])?;
        }
        if let Some(positions) = self.positions {
            let [more] = exactly(cx.call_all(positions, inputs)?, "one result")?;
            x = cx.apply(Op::Add, [x, more])?;
        }
        if let Some(norm) = self.embedding_norm {
            x = cx.call(norm, [x])?;
        }
        let tables = match self.rotary {
            Some(rotary) => cx.call_all(rotary, vec![x.clone()])?,
            None => Vec::new(),
        };
        let mut key_mask = mask.map(|mask| cx.apply(Op::KeyMask, [mask])).transpose()?;
        if let Some(Alibi { slopes, rounded_to, factor }) = &self.alibi {
            let op = Op::Alibi { slopes: slopes.clone(), rounded_to: *rounded_to, factor: *factor };
            let [biases] = exactly(cx.apply_all(op, [x.clone()].into_iter().chain(key_mask).collect())?, "one result")?;
            key_mask = Some(biases);
        }
        for (idx, &layer) in self.layers.iter().enumerate() {
            let table = self.table_of_layer.get(idx).copied().unwrap_or(0);
            let positions = tables.iter().skip(2 * table).take(2).chain(&key_mask).cloned();
            let inputs = std::iter::once(x).chain(positions).collect();
            [x] = exactly(cx.call_all(layer, inputs)?, "one result")?;
        }
        for module in [self.norm, self.project_out].into_iter().flatten() {
            x = cx.call(module, [x])?;
        }
        Ok(vec![x])
    }
}

impl Layer for Around {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        cx.call_all(self.0, inputs)
    }
}

impl CausalLm {
    fn after_head(&self) -> impl Iterator<Item = Op> {
        let factor = self.logits_factor.map(|factor| Op::Scale { factor });
        factor.into_iter().chain(self.logits_cap.map(|cap| Op::Softcap { cap }))
    }
}

impl Layer for CausalLm {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let hidden = cx.call_all(self.model, inputs)?;
        let mut logits = cx.call_all(self.head, hidden)?;
        for op in self.after_head() {
            logits = cx.apply_all(op, logits)?;
        }
        Ok(logits)
    }

    fn as_causal(&self) -> Option<Causal> {
        Some(Causal { body: self.model, head: self.head, after_head: self.after_head().collect() })
    }
}
