//! Qwen3: Llama with norms on the heads of query and key, and windows by layer.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    AttentionPlan, Classes, Defaults, Feed, HeadNorms, LayerPlan, causal_lm, decoder_layer, plain_attention,
    plain_causal, plain_mlp, qwen_windows,
};

const CLASSES: Classes = classes!("Qwen3");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-6, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "qwen3", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let mut attention = plain_attention(config, "Qwen3Attention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    attention.norms = HeadNorms::PerHead(plan.norm);
    let mlp = plain_mlp(config, "Qwen3MLP")?;
    let windows = qwen_windows(config, plan.n_layers)?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let attention = AttentionPlan { window: windows[idx], ..attention.clone() };
        let layer = LayerPlan::pre_norm(norm, attention, Feed::Gated(mlp.clone()));
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
