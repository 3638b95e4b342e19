//! Layers that architectures share.

mod attention;
mod conv;
mod decoder;
mod decoder_layer;
mod delta;
mod embedding;
mod experts;
mod family;
mod latent;
mod linear;
mod mlp;
mod norm;
mod rotary;

pub(crate) use attention::{AttentionNames, AttentionPlan, HeadNorms, LLAMA_NAMES, Listed, Source, attention};
pub(crate) use conv::{ShortConv, short_conv};
pub(crate) use decoder::{Alibi, CausalPlan, Classes, Head, LLAMA_PARTS, Part, causal_lm};
pub(crate) use decoder_layer::{
    Branches, Feed, Item, LayerPlan, Mixer, ONE_NORM, POST_NORMS, PRE_NORMS_DROPOUT, SANDWICH_NORMS, Slot,
    decoder_layer,
};
pub(crate) use delta::{DeltaPlan, delta_net};
pub(crate) use embedding::{Counted, EmbeddingPlan, Factor, PositionsPlan, embedding, learned_positions};
pub(crate) use experts::{
    ExpertNames, Gating, ModuleOrder, MoePlan, RouterType, STACKED_ROWS, SharedPlan, Stacked, Weighted, sparse_moe,
};
pub(crate) use family::{
    Defaults, alibi_slopes, corrected_moe, every_layer, expect, inverse_root, layer_types, mlp_of, plain_attention,
    plain_causal, plain_mlp, plain_moe, qwen_windows, refuse, windows_of,
};
pub(crate) use latent::{LatentPlan, latent_attention, latent_plan};
pub use linear::Linear;
pub(crate) use linear::LinearKind;
pub(crate) use mlp::{ActPlace, MlpPlan, PlainNames, fused_mlp, gated_mlp, ungated_mlp};
pub(crate) use norm::{GateOrder, NormKind, NormPlan, gated_norm, norm};
pub(crate) use rotary::Rotary;

use graph::Value;

use crate::error::{ErrorKind, Result};

/// The values of a module that takes a fixed number of them.
pub(crate) fn exactly<const N: usize>(inputs: Vec<Value>, expected: &'static str) -> Result<[Value; N]> {
    inputs.try_into().map_err(|found: Vec<Value>| ErrorKind::Arity { found: found.len(), expected }.into())
}
