//! Layers that architectures share.

mod attention;
mod decoder;
mod embedding;
mod experts;
mod family;
mod linear;
mod mlp;
mod norm;
mod rotary;

pub(crate) use attention::{AttentionPlan, HeadNorms, attention};
pub(crate) use decoder::{
    Branches, Classes, Feed, LayerPlan, ONE_NORM, POST_NORMS, SANDWICH_NORMS, causal_lm, decoder_layer,
};
pub(crate) use embedding::{EmbeddingPlan, Factor, embedding};
pub(crate) use experts::{ExpertNames, ModuleOrder, MoePlan, sparse_moe};
pub(crate) use family::{
    Defaults, inverse_root, layer_types, plain_attention, plain_causal, plain_mlp, qwen_windows, refuse, windows_of,
};
pub use linear::Linear;
pub(crate) use mlp::{MlpPlan, PlainNames, gated_mlp, ungated_mlp};
pub(crate) use norm::{NormKind, NormPlan, norm};
pub(crate) use rotary::Rotary;

use graph::Value;

use crate::error::{ErrorKind, Result};

/// The values of a module that takes a fixed number of them.
pub(crate) fn exactly<const N: usize>(inputs: Vec<Value>, expected: &'static str) -> Result<[Value; N]> {
    inputs.try_into().map_err(|found: Vec<Value>| ErrorKind::Arity { found: found.len(), expected }.into())
}
