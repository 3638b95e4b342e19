//! The decoder layer with a norm before each branch, and the causal language model around it.

use graph::{ModuleId, Value};
use tensor::Op;

use super::{
    AttentionPlan, EmbeddingPlan, MlpPlan, MoePlan, Rotary, attention, embedding, exactly, gated_mlp, sparse_moe,
};
use crate::build::{Bias, Builder};
use crate::context::{Cx, Layer};
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
    /// Factor on what a branch adds.
    pub(crate) residual_factor: Option<f32>,
}

/// The second branch of a decoder layer.
pub(crate) enum Feed {
    Gated(MlpPlan),
    Experts(MoePlan),
}

/// A causal language model.
pub(crate) struct CausalPlan {
    pub(crate) classes: Classes,
    pub(crate) embedding: EmbeddingPlan,
    pub(crate) n_layers: usize,
    pub(crate) norm_eps: f64,
    pub(crate) frequencies: Frequencies,
    /// Whether the head shares the embedding's table.
    pub(crate) head: Head,
    /// Factor on the logits.
    pub(crate) logits_factor: Option<f32>,
}

/// Where the head's weight comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Head {
    Own,
    Tied,
}

/// x (B, T, C), cos, sin, then a key mask or not -> (B, T, C).
struct PreNormLayer {
    input_norm: ModuleId,
    attention: ModuleId,
    post_norm: ModuleId,
    feed: ModuleId,
    residual_factor: Option<f32>,
}

/// ids (B, T), then a mask (B, T) or not -> (B, T, C).
struct Decoder {
    embedding: ModuleId,
    layers: Vec<ModuleId>,
    norm: ModuleId,
    rotary: ModuleId,
}

/// ids (B, T), then a mask (B, T) or not -> logits (B, T, V).
struct CausalLm {
    model: ModuleId,
    head: ModuleId,
    logits_factor: Option<f32>,
}

/// `x + attention(norm(x))`, then `x + feed(norm(x))`.
pub(crate) fn pre_norm_layer(
    b: &mut Builder,
    name: &str,
    classes: Classes,
    eps: f64,
    plan: &LayerPlan,
) -> Result<ModuleId> {
    let width = plan.attention.width;
    b.module(name, classes.layer, |b| {
        let (attention, attention_takes, attention_gives) = attention(b, "self_attn", &plan.attention)?;
        let (feed, feed_takes, feed_gives) = match &plan.feed {
            Feed::Gated(mlp) => {
                let (id, takes, gives) = gated_mlp(b, "mlp", mlp)?;
                (id, takes, vec![gives])
            }
            Feed::Experts(moe) => sparse_moe(b, "mlp", moe)?,
        };
        let input_norm = b.rms_norm("input_layernorm", classes.norm, width, eps)?;
        let post_norm = b.rms_norm("post_attention_layernorm", classes.norm, width, eps)?;
        b.link(input_norm, &attention_takes, ChannelMap::Same);
        b.link(post_norm, &feed_takes, ChannelMap::Same);
        b.links().residual_readers.extend([input_norm, post_norm]);
        b.links().residual_writers.push(attention_gives);
        b.links().residual_writers.extend(feed_gives);
        Ok(PreNormLayer { input_norm, attention, post_norm, feed, residual_factor: plan.residual_factor })
    })
}

/// Embedding, decoder layers, norm and head; `layer` builds each decoder layer under its number.
pub(crate) fn causal_lm(
    b: &mut Builder,
    plan: CausalPlan,
    layer: impl FnMut(&mut Builder, usize, &str) -> Result<ModuleId>,
) -> Result<()> {
    let CausalPlan { classes, embedding: table, n_layers, norm_eps, frequencies, head, logits_factor } = plan;
    b.root(|b| {
        let mut parts = None;
        let model = b.module("model", classes.model, |b| {
            let (embedding, weight) = embedding(b, "embed_tokens", &table)?;
            b.links().residual_writers.push(embedding);
            let (_, layers) = b.list("layers", n_layers, layer)?;
            let norm = b.rms_norm("norm", classes.norm, table.width, norm_eps)?;
            let rotary = b.module("rotary_emb", classes.rotary, |_| Ok(Rotary(frequencies)))?;
            b.links().residual_readers.push(norm);
            parts = Some((weight, norm));
            Ok(Decoder { embedding, layers, norm, rotary })
        })?;
        let (weight, norm) = parts.expect("the closure ran, else there were an error");
        let head = match head {
            Head::Own => b.linear("lm_head", [table.vocab_size, table.width], Bias::Absent)?,
            Head::Tied => b.tied_linear("lm_head", weight)?,
        };
        b.link(norm, &[head], ChannelMap::Same);
        Ok(CausalLm { model, head, logits_factor })
    })
}

impl PreNormLayer {
    fn add(&self, cx: &mut Cx<'_>, x: Value, mut branch: Value) -> Result<Value> {
        if let Some(factor) = self.residual_factor {
            branch = cx.apply(Op::Scale { factor }, [branch])?;
        }
        cx.apply(Op::Add, [x, branch])
    }
}

impl Layer for PreNormLayer {
    fn forward(&self, cx: &mut Cx<'_>, mut inputs: Vec<Value>) -> Result<Vec<Value>> {
        let Some(x) = inputs.first().cloned() else {
            return Err(ErrorKind::Arity { found: 0, expected: "x, cos, sin and perhaps a key mask" }.into());
        };
        inputs[0] = cx.call(self.input_norm, [x.clone()])?;
        let [branch] = exactly(cx.call_all(self.attention, inputs)?, "one result")?;
        let x = self.add(cx, x, branch)?;
        let h = cx.call(self.post_norm, [x.clone()])?;
        let branch = cx.call(self.feed, [h])?;
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
        let mut positions = cx.call_all(self.rotary, vec![x.clone()])?;
        if let Some(mask) = mask {
            positions.push(cx.apply(Op::KeyMask, [mask])?);
        }
        for &layer in &self.layers {
            let inputs = std::iter::once(x).chain(positions.iter().cloned()).collect();
            [x] = exactly(cx.call_all(layer, inputs)?, "one result")?;
        }
        cx.call_all(self.norm, vec![x])
    }
}

impl Layer for CausalLm {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let hidden = cx.call_all(self.model, inputs)?;
        let logits = cx.call_all(self.head, hidden)?;
        match self.logits_factor {
            Some(factor) => cx.apply_all(Op::Scale { factor }, logits),
            None => Ok(logits),
        }
    }
}
