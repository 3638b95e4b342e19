//! The decoder layer in its forms, and the causal language model around it.

use graph::{ModuleId, Value};
use tensor::Op;

use super::{
    AttentionPlan, EmbeddingPlan, MlpPlan, MoePlan, NormPlan, PlainNames, Rotary, attention, embedding, exactly,
    gated_mlp, norm, sparse_moe, ungated_mlp,
};
use crate::build::{Bias, Builder};
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

/// A decoder layer.
pub(crate) struct LayerPlan {
    pub(crate) attention: AttentionPlan,
    pub(crate) feed: Feed,
    pub(crate) norm: NormPlan,
    /// Which norms there are, in the order in which they are listed.
    pub(crate) norms: &'static [(Slot, &'static str)],
    pub(crate) shape: Branches,
    /// Factor on what a branch adds.
    pub(crate) residual_factor: Option<f32>,
    /// A `dropout` that is listed and does nothing.
    pub(crate) dropout: Option<&'static str>,
}

/// Where a norm stands in a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    BeforeAttention,
    AfterAttention,
    BeforeFeed,
    AfterFeed,
}

/// How the two branches of a decoder layer follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Branches {
    /// The second takes what the first gave.
    InTurn,
    /// Both take the first norm's result.
    Parallel,
}

/// A norm before each branch (Llama).
pub(crate) const PRE_NORMS: &[(Slot, &str)] =
    &[(Slot::BeforeAttention, "input_layernorm"), (Slot::BeforeFeed, "post_attention_layernorm")];

/// A norm after each branch (OLMo 2).
pub(crate) const POST_NORMS: &[(Slot, &str)] =
    &[(Slot::AfterAttention, "post_attention_layernorm"), (Slot::AfterFeed, "post_feedforward_layernorm")];

/// A norm before and after each branch (Gemma 2).
pub(crate) const SANDWICH_NORMS: &[(Slot, &str)] = &[
    (Slot::BeforeAttention, "input_layernorm"),
    (Slot::AfterAttention, "post_attention_layernorm"),
    (Slot::BeforeFeed, "pre_feedforward_layernorm"),
    (Slot::AfterFeed, "post_feedforward_layernorm"),
];

/// One norm for both branches (Cohere).
pub(crate) const ONE_NORM: &[(Slot, &str)] = &[(Slot::BeforeAttention, "input_layernorm")];

impl LayerPlan {
    /// Branches in turn with a norm before each.
    pub(crate) fn pre_norm(norm: NormPlan, attention: AttentionPlan, feed: Feed) -> Self {
        Self { attention, feed, norm, norms: PRE_NORMS, shape: Branches::InTurn, residual_factor: None, dropout: None }
    }
}

/// The second branch of a decoder layer.
pub(crate) enum Feed {
    Gated(MlpPlan),
    Plain(MlpPlan, PlainNames),
    Experts(MoePlan),
}

/// A causal language model.
pub(crate) struct CausalPlan {
    pub(crate) classes: Classes,
    pub(crate) embedding: EmbeddingPlan,
    pub(crate) n_layers: usize,
    pub(crate) norm: NormPlan,
    pub(crate) frequencies: Vec<Frequencies>,
    /// Which of the frequencies each layer takes; the first where there is no entry.
    pub(crate) table_of_layer: Vec<usize>,
    /// Whether the head shares the embedding's table.
    pub(crate) head: Head,
    /// Factor on the logits.
    pub(crate) logits_factor: Option<f32>,
    /// `c * tanh(logit / c)` in place of a logit.
    pub(crate) logits_cap: Option<f32>,
}

/// Where the head's weight comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    Own,
    Tied,
}

/// x (B, T, C), cos, sin, then a key mask or not -> (B, T, C).
struct DecoderLayer {
    attention: ModuleId,
    feed: ModuleId,
    /// In order of [`Slot`].
    norms: [Option<ModuleId>; 4],
    shape: Branches,
    residual_factor: Option<f32>,
}

/// ids (B, T), then a mask (B, T) or not -> (B, T, C).
struct Decoder {
    embedding: ModuleId,
    layers: Vec<ModuleId>,
    norm: ModuleId,
    rotary: ModuleId,
    table_of_layer: Vec<usize>,
}

/// ids (B, T), then a mask (B, T) or not -> logits (B, T, V).
struct CausalLm {
    model: ModuleId,
    head: ModuleId,
    logits_factor: Option<f32>,
    logits_cap: Option<f32>,
}

/// `x + attention(x)`, then `x + feed(x)`, with norms where the plan has them.
pub(crate) fn decoder_layer(b: &mut Builder, name: &str, class: &'static str, plan: &LayerPlan) -> Result<ModuleId> {
    b.module(name, class, |b| {
        let (attention, attention_takes, attention_gives) = attention(b, "self_attn", &plan.attention)?;
        let (feed, feed_takes, feed_gives) = match &plan.feed {
            Feed::Gated(mlp) => {
                let (id, takes, gives) = gated_mlp(b, "mlp", mlp)?;
                (id, takes, vec![gives])
            }
            Feed::Plain(mlp, names) => {
                let (id, takes, gives) = ungated_mlp(b, "mlp", mlp, *names)?;
                (id, takes, vec![gives])
            }
            Feed::Experts(moe) => sparse_moe(b, "mlp", moe)?,
        };
        let mut norms = [None; 4];
        for &(slot, name) in plan.norms {
            norms[slot as usize] = Some(norm(b, name, plan.norm, plan.attention.width)?);
        }
        if let Some(name) = plan.dropout {
            b.holder(name, "Dropout", |_| Ok(()))?;
        }
        let layer = DecoderLayer { attention, feed, norms, shape: plan.shape, residual_factor: plan.residual_factor };
        layer.publish(b, plan, [attention_takes, feed_takes], [vec![attention_gives], feed_gives]);
        Ok(layer)
    })
}

impl DecoderLayer {
    fn norm(&self, slot: Slot) -> Option<ModuleId> {
        self.norms[slot as usize]
    }

    /// Says which norm feeds whom, and who reads and writes the residual stream.
    fn publish(&self, b: &mut Builder, plan: &LayerPlan, takes: [Vec<ModuleId>; 2], gives: [Vec<ModuleId>; 2]) {
        let mut read = |norm: Option<ModuleId>, takes: &[ModuleId]| match norm {
            Some(norm) => {
                if plan.norm.is_scalable() {
                    b.link(norm, takes, ChannelMap::Same);
                }
                b.links().residual_readers.push(norm);
            }
            None => b.links().residual_readers.extend(takes),
        };
        let [attention_takes, feed_takes] = takes;
        match self.shape {
            Branches::Parallel => read(self.norm(Slot::BeforeAttention), &[attention_takes, feed_takes].concat()),
            Branches::InTurn => {
                read(self.norm(Slot::BeforeAttention), &attention_takes);
                read(self.norm(Slot::BeforeFeed), &feed_takes);
            }
        }
        for (slot, gives) in [Slot::AfterAttention, Slot::AfterFeed].into_iter().zip(gives) {
            match self.norm(slot) {
                Some(norm) => b.links().residual_writers.push(norm),
                None => b.links().residual_writers.extend(gives),
            }
        }
    }

    /// A value through the norm of a slot, where there is one.
    fn normed(&self, cx: &mut Cx<'_>, slot: Slot, x: Value) -> Result<Value> {
        match self.norm(slot) {
            Some(norm) => cx.call(norm, [x]),
            None => Ok(x),
        }
    }

    fn add(&self, cx: &mut Cx<'_>, x: Value, mut branch: Value) -> Result<Value> {
        if let Some(factor) = self.residual_factor {
            branch = cx.apply(Op::Scale { factor }, [branch])?;
        }
        cx.apply(Op::Add, [x, branch])
    }
}

/// Embedding, decoder layers, norm and head; `layer` builds each decoder layer under its number.
pub(crate) fn causal_lm(
    b: &mut Builder,
    plan: CausalPlan,
    layer: impl FnMut(&mut Builder, usize, &str) -> Result<ModuleId>,
) -> Result<()> {
    let CausalPlan { classes, embedding: table, n_layers, norm: norm_plan, head, logits_factor, logits_cap, .. } = plan;
    let (frequencies, table_of_layer) = (plan.frequencies, plan.table_of_layer);
    b.root(|b| {
        let mut parts = None;
        let model = b.module("model", classes.model, |b| {
            let (embedding, weight) = embedding(b, "embed_tokens", &table)?;
            b.links().residual_writers.push(embedding);
            let (_, layers) = b.list("layers", n_layers, layer)?;
            let norm = norm(b, "norm", norm_plan, table.width)?;
            let rotary = b.module("rotary_emb", classes.rotary, |_| Ok(Rotary(frequencies)))?;
            b.links().residual_readers.push(norm);
            parts = Some((weight, norm));
            Ok(Decoder { embedding, layers, norm, rotary, table_of_layer })
        })?;
        let (weight, norm) = parts.expect("the closure ran, else there were an error");
        let head = match head {
            Head::Own => b.linear("lm_head", [table.vocab_size, table.width], Bias::Absent)?,
            Head::Tied => b.tied_linear("lm_head", weight)?,
        };
        if norm_plan.is_scalable() {
            b.link(norm, &[head], ChannelMap::Same);
        }
        Ok(CausalLm { model, head, logits_factor, logits_cap })
    })
}

impl Layer for DecoderLayer {
    fn forward(&self, cx: &mut Cx<'_>, mut inputs: Vec<Value>) -> Result<Vec<Value>> {
        let Some(x) = inputs.first().cloned() else {
            return Err(ErrorKind::Arity { found: 0, expected: "x, cos, sin and perhaps a key mask" }.into());
        };
        let first = self.normed(cx, Slot::BeforeAttention, x.clone())?;
        inputs[0] = first.clone();
        let [branch] = exactly(cx.call_all(self.attention, inputs)?, "one result")?;
        let branch = self.normed(cx, Slot::AfterAttention, branch)?;
        let x = self.add(cx, x, branch)?;
        let second = match self.shape {
            Branches::Parallel => first,
            Branches::InTurn => self.normed(cx, Slot::BeforeFeed, x.clone())?,
        };
        let branch = cx.call(self.feed, [second])?;
        let branch = self.normed(cx, Slot::AfterFeed, branch)?;
        Ok(vec![self.add(cx, x, branch)?])
    }
}

impl Layer for Decoder {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let (ids, mask) = match inputs.as_slice() {
            [ids] => (ids.clone(), None),
            [ids, mask] => (ids.clone(), Some(mask.clone())),
            _ => return Err(ErrorKind::Arity { found: inputs.len(), expected: "ids and perhaps a mask" }.into()),
        };
        let mut x = cx.call(self.embedding, [ids])?;
        let tables = cx.call_all(self.rotary, vec![x.clone()])?;
        let key_mask = mask.map(|mask| cx.apply(Op::KeyMask, [mask])).transpose()?;
        for (idx, &layer) in self.layers.iter().enumerate() {
            let table = self.table_of_layer.get(idx).copied().unwrap_or(0);
            let positions = tables.iter().skip(2 * table).take(2).chain(&key_mask).cloned();
            let inputs = std::iter::once(x).chain(positions).collect();
            [x] = exactly(cx.call_all(layer, inputs)?, "one result")?;
        }
        cx.call_all(self.norm, vec![x])
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
