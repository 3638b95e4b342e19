//! The decoder layer in its forms.

use graph::{ModuleId, Value};
use tensor::Op;

use super::{
    AttentionPlan, DeltaPlan, LatentPlan, MlpPlan, MoePlan, NormPlan, PlainNames, attention, delta_net, exactly,
    fused_mlp, gated_mlp, latent_attention, norm, sparse_moe, ungated_mlp,
};
use crate::build::Builder;
use crate::context::{Cx, Layer};
use crate::error::{ErrorKind, Result};
use crate::links::ChannelMap;

/// A decoder layer.
pub(crate) struct LayerPlan {
    /// C.
    pub(crate) width: usize,
    pub(crate) mixer: Mixer,
    pub(crate) feed: Feed,
    pub(crate) norm: NormPlan,
    /// What it holds, in the order in which it is listed.
    pub(crate) listed: &'static [Item],
    pub(crate) shape: Branches,
    /// Factor on what a branch adds.
    pub(crate) residual_factor: Option<f32>,
}

/// A part of a decoder layer, under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Mixer(&'static str),
    Feed(&'static str),
    Norm(Slot, &'static str),
    /// It is listed and does nothing.
    Dropout(&'static str),
}

/// Where a norm stands in a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    BeforeMixer,
    AfterMixer,
    BeforeFeed,
    AfterFeed,
}

/// How the two branches of a decoder layer follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Branches {
    /// The second takes what the first gave.
    InTurn,
    /// Both take the layer's input through the first norm, or through one each where there are two.
    Parallel,
    /// As [`Branches::Parallel`], but branches are added to one another before they are added to the input.
    ParallelSum,
}

use Item::{Dropout, Feed as FeedItem, Mixer as MixerItem, Norm};

/// A norm before each branch (Llama).
pub(crate) const PRE_NORMS: &[Item] = &[
    MixerItem("self_attn"),
    FeedItem("mlp"),
    Norm(Slot::BeforeMixer, "input_layernorm"),
    Norm(Slot::BeforeFeed, "post_attention_layernorm"),
];

/// As [`PRE_NORMS`], and a dropout.
pub(crate) const PRE_NORMS_DROPOUT: &[Item] = &[
    MixerItem("self_attn"),
    FeedItem("mlp"),
    Norm(Slot::BeforeMixer, "input_layernorm"),
    Norm(Slot::BeforeFeed, "post_attention_layernorm"),
    Dropout("dropout"),
];

/// A norm after each branch (OLMo 2).
pub(crate) const POST_NORMS: &[Item] = &[
    MixerItem("self_attn"),
    FeedItem("mlp"),
    Norm(Slot::AfterMixer, "post_attention_layernorm"),
    Norm(Slot::AfterFeed, "post_feedforward_layernorm"),
];

/// A norm before and after each branch (Gemma 2).
pub(crate) const SANDWICH_NORMS: &[Item] = &[
    MixerItem("self_attn"),
    FeedItem("mlp"),
    Norm(Slot::BeforeMixer, "input_layernorm"),
    Norm(Slot::AfterMixer, "post_attention_layernorm"),
    Norm(Slot::BeforeFeed, "pre_feedforward_layernorm"),
    Norm(Slot::AfterFeed, "post_feedforward_layernorm"),
];

/// One norm for both branches (Cohere).
pub(crate) const ONE_NORM: &[Item] =
    &[MixerItem("self_attn"), FeedItem("mlp"), Norm(Slot::BeforeMixer, "input_layernorm")];

impl LayerPlan {
    /// Attention and feed in turn with a norm before each.
    pub(crate) fn pre_norm(norm: NormPlan, attention: AttentionPlan, feed: Feed) -> Self {
        Self::with(norm, attention.width, Mixer::Attention(attention), feed)
    }

    /// Branches over `width` channels in turn with a norm before each.
    pub(crate) fn with(norm: NormPlan, width: usize, mixer: Mixer, feed: Feed) -> Self {
        Self { width, mixer, feed, norm, listed: PRE_NORMS, shape: Branches::InTurn, residual_factor: None }
    }
}

/// The first branch of a decoder layer, which mixes positions.
pub(crate) enum Mixer {
    Attention(AttentionPlan),
    Latent(LatentPlan),
    Delta(DeltaPlan),
}

/// The second branch of a decoder layer.
pub(crate) enum Feed {
    Gated(MlpPlan),
    Fused(MlpPlan),
    Plain(MlpPlan, PlainNames),
    Experts(MoePlan),
}

/// x (B, T, C), then cos and sin or not, then a key mask or not -> (B, T, C).
struct DecoderLayer {
    mixer: ModuleId,
    feed: ModuleId,
    /// In order of [`Slot`].
    norms: [Option<ModuleId>; 4],
    shape: Branches,
    residual_factor: Option<f32>,
}

/// A branch: its id, the modules with a weight that take its input, and those that give its result.
pub(crate) type Branch = (ModuleId, Vec<ModuleId>, Vec<ModuleId>);

/// `x + mixer(x)`, then `x + feed(x)`, with norms where the plan has them.
pub(crate) fn decoder_layer(b: &mut Builder, name: &str, class: &'static str, plan: &LayerPlan) -> Result<ModuleId> {
    b.module(name, class, |b| {
        let mut branches: [Option<Branch>; 2] = [None, None];
        let mut norms = [None; 4];
        for item in plan.listed {
            match *item {
                Item::Mixer(name) => branches[0] = Some(plan.mixer.build(b, name)?),
                Item::Feed(name) => branches[1] = Some(plan.feed.build(b, name)?),
                Item::Norm(slot, name) => norms[slot as usize] = Some(norm(b, name, plan.norm, plan.width)?),
                Item::Dropout(name) => drop(b.holder(name, "Dropout", |_| Ok(()))?),
            }
        }
        let [Some((mixer, mixer_takes, mixer_gives)), Some((feed, feed_takes, feed_gives))] = branches else {
            return Err(ErrorKind::NotCallable.into());
        };
        let layer = DecoderLayer { mixer, feed, norms, shape: plan.shape, residual_factor: plan.residual_factor };
        layer.publish(b, plan.norm, [mixer_takes, feed_takes], [mixer_gives, feed_gives]);
        Ok(layer)
    })
}

impl Mixer {
    fn build(&self, b: &mut Builder, name: &str) -> Result<Branch> {
        let (id, takes, gives) = match self {
            Self::Attention(plan) => attention(b, name, plan)?,
            Self::Latent(plan) => latent_attention(b, name, plan)?,
            Self::Delta(plan) => delta_net(b, name, plan)?,
        };
        Ok((id, takes, vec![gives]))
    }
}

impl Feed {
    fn build(&self, b: &mut Builder, name: &str) -> Result<Branch> {
        let (id, takes, gives) = match self {
            Self::Gated(mlp) => gated_mlp(b, name, mlp)?,
            Self::Fused(mlp) => fused_mlp(b, name, mlp)?,
            Self::Plain(mlp, names) => ungated_mlp(b, name, mlp, *names)?,
            Self::Experts(moe) => return sparse_moe(b, name, moe),
        };
        Ok((id, takes, vec![gives]))
    }
}

impl DecoderLayer {
    fn norm(&self, slot: Slot) -> Option<ModuleId> {
        self.norms[slot as usize]
    }

    /// Says which norm feeds whom, and who reads and writes the residual stream.
    fn publish(&self, b: &mut Builder, plan: NormPlan, takes: [Vec<ModuleId>; 2], gives: [Vec<ModuleId>; 2]) {
        let mut read = |norm: Option<ModuleId>, takes: &[ModuleId]| match norm {
            Some(norm) => {
                // A layer with a transposed weight has no rows and columns to scale.
                let is_linear = takes.iter().all(|&module| b.tree.class(module) != "Conv1D");
                if plan.is_scalable() && is_linear {
                    b.link(norm, takes, ChannelMap::Same);
                }
                b.links().residual_readers.push(norm);
            }
            None => b.links().residual_readers.extend(takes),
        };
        let [mixer_takes, feed_takes] = takes;
        let is_parallel = matches!(self.shape, Branches::Parallel | Branches::ParallelSum);
        if is_parallel && self.norm(Slot::BeforeFeed).is_none() {
            read(self.norm(Slot::BeforeMixer), &[mixer_takes, feed_takes].concat());
        } else {
            read(self.norm(Slot::BeforeMixer), &mixer_takes);
            read(self.norm(Slot::BeforeFeed), &feed_takes);
        }
        for (slot, gives) in [Slot::AfterMixer, Slot::AfterFeed].into_iter().zip(gives) {
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

impl Layer for DecoderLayer {
    fn forward(&self, cx: &mut Cx<'_>, mut inputs: Vec<Value>) -> Result<Vec<Value>> {
        let Some(x) = inputs.first().cloned() else {
            return Err(ErrorKind::Arity { found: 0, expected: "x, cos, sin and perhaps a key mask" }.into());
        };
        let first = self.normed(cx, Slot::BeforeMixer, x.clone())?;
        inputs[0] = first.clone();
        let [mut branch] = exactly(cx.call_all(self.mixer, inputs)?, "one result")?;
        branch = self.normed(cx, Slot::AfterMixer, branch)?;
        let mut x = x;
        let mut apart = None;
        let second = match (self.shape, self.norm(Slot::BeforeFeed)) {
            (Branches::InTurn, _) => {
                x = self.add(cx, x, branch)?;
                self.normed(cx, Slot::BeforeFeed, x.clone())?
            }
            (shape, norm) => {
                let second = norm.map_or(Ok(first), |norm| cx.call(norm, [x.clone()]))?;
                if shape == Branches::Parallel {
                    x = self.add(cx, x, branch)?;
                } else {
                    apart = Some(branch);
                }
                second
            }
        };
        let branch = cx.call(self.feed, [second])?;
        let mut branch = self.normed(cx, Slot::AfterFeed, branch)?;
        if let Some(other) = apart {
            branch = cx.apply(Op::Add, [branch, other])?;
        }
        Ok(vec![self.add(cx, x, branch)?])
    }
}
