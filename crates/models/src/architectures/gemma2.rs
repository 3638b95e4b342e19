//! Gemma 2: Gemma with norms around both branches, capped scores and logits, and every other layer in a window.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    AttentionPlan, Classes, Defaults, Factor, Feed, LayerPlan, NormKind, SANDWICH_NORMS, causal_lm, decoder_layer,
    inverse_root, layer_types, plain_attention, plain_causal, plain_mlp, refuse, windows_of,
};

const CLASSES: Classes = classes!("Gemma2");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-6, rope_theta: 10_000.0, tied: Flag::On };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "gemma2", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    plan.norm.kind = NormKind::RmsOffset;
    plan.embedding.class = "Gemma2TextScaledWordEmbedding";
    plan.embedding.factor = Factor::InType((plan.embedding.width as f64).sqrt() as f32);
    refuse(config, "use_bidirectional_attention")?;
    let mut attention = plain_attention(config, "Gemma2Attention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    let mut mlp = plain_mlp(config, "Gemma2MLP")?;
    mlp.activation = config.activation("hidden_activation", "gelu_pytorch_tanh")?;
    attention.scale = inverse_root(config.number_or("query_pre_attn_scalar", 256.0)?);
    attention.softcap = config.number_unless_null("attn_logit_softcapping", 50.0)?.map(|cap| cap as f32);
    plan.logits_cap = config.number_unless_null("final_logit_softcapping", 30.0)?.map(|cap| cap as f32);
    let types = layer_types(config, plan.n_layers, 2)?;
    let windows = windows_of(&types, Some(config.size_or("sliding_window", 4096)?), plan.n_layers)?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let attention = AttentionPlan { window: windows[idx], ..attention.clone() };
        let layer = LayerPlan::pre_norm(norm, attention, Feed::Gated(mlp.clone()));
        let layer = LayerPlan { listed: SANDWICH_NORMS, ..layer };
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
