//! Gemma 3, text: Gemma 2 with norms on the heads of query and key, no caps by default, and slower rotation in full layers.

use super::Architecture;
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    AttentionPlan, Classes, Defaults, Factor, Feed, HeadNorms, LayerPlan, NormKind, SANDWICH_NORMS, causal_lm,
    decoder_layer, inverse_root, layer_types, plain_attention, plain_causal, plain_mlp, refuse, windows_of,
};
use crate::rope::Frequencies;

const CLASSES: Classes = Classes {
    causal_lm: "Gemma3ForCausalLM",
    model: "Gemma3TextModel",
    layer: "Gemma3DecoderLayer",
    norm: "Gemma3RMSNorm",
    rotary: "Gemma3RotaryEmbedding",
};
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-6, rope_theta: 1_000_000.0, tied: Flag::On };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "gemma3_text", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    plan.norm.kind = NormKind::RmsOffset;
    plan.embedding.class = "Gemma3TextScaledWordEmbedding";
    plan.embedding.factor = Factor::InType((plan.embedding.width as f64).sqrt() as f32);
    refuse(config, "use_bidirectional_attention")?;
    let mut attention = plain_attention(config, "Gemma3Attention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    let mut mlp = plain_mlp(config, "Gemma3MLP")?;
    mlp.activation = config.activation("hidden_activation", "gelu_pytorch_tanh")?;
    attention.scale = inverse_root(config.number_or("query_pre_attn_scalar", 256.0)?);
    attention.norms = HeadNorms::PerHead(plan.norm);
    attention.softcap = config.number("attn_logit_softcapping")?.map(|cap| cap as f32);
    plan.logits_cap = config.number("final_logit_softcapping")?.map(|cap| cap as f32);
    let period = config.size_or("sliding_window_pattern", 6)?;
    let types = layer_types(config, plan.n_layers, period)?;
    let windows = windows_of(&types, Some(config.size_or("sliding_window", 4096)?), plan.n_layers)?;
    let local = config.number_or("rope_local_base_freq", 10_000.0)?;
    plan.frequencies = Frequencies::by_layer_type(config, attention.head_dim, [DEFAULTS.rope_theta, local])?;
    plan.table_of_layer = windows.iter().map(|window| usize::from(window.is_some())).collect();
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let attention = AttentionPlan { window: windows[idx], ..attention.clone() };
        let layer = LayerPlan::pre_norm(norm, attention, Feed::Gated(mlp.clone()));
        let layer = LayerPlan { listed: SANDWICH_NORMS, ..layer };
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
