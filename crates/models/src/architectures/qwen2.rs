//! Qwen2: Llama with biases on query, key and value, and windows by layer.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    AttentionPlan, Classes, Defaults, Feed, LayerPlan, causal_lm, decoder_layer, plain_attention, plain_causal,
    plain_mlp, qwen_windows,
};

const CLASSES: Classes = classes!("Qwen2");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-6, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "qwen2", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let mut attention = plain_attention(config, "Qwen2Attention")?;
    attention.qkv_bias = Bias::Given;
    let mlp = plain_mlp(config, "Qwen2MLP")?;
    let windows = qwen_windows(config, plan.n_layers)?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let attention = AttentionPlan { window: windows[idx], ..attention.clone() };
        let layer = LayerPlan::pre_norm(norm, attention, Feed::Gated(mlp.clone()));
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
