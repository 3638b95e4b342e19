//! SmolLM3: Llama with windows by layer, and layers without positions.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    AttentionPlan, Classes, Defaults, Feed, LayerPlan, causal_lm, decoder_layer, plain_attention, plain_causal,
    plain_mlp, qwen_windows,
};

const CLASSES: Classes = classes!("SmolLM3");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-6, rope_theta: 2_000_000.0, tied: Flag::On };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "smollm3", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let mut attention = plain_attention(config, "SmolLM3Attention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    let mut mlp = plain_mlp(config, "SmolLM3MLP")?;
    mlp.bias = Bias::from_flag(config.flag_or("mlp_bias", Flag::Off)?);
    let windows = qwen_windows(config, plan.n_layers)?;
    let interval = config.size_or("no_rope_layer_interval", 4)?;
    let listed = config.sizes("no_rope_layers")?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        // A listed 1 keeps positions, 0 drops them; without a list every `interval`-th layer drops them.
        let has_positions = listed.get(idx).map_or((idx + 1) % interval != 0, |&keeps| keeps != 0);
        let rope = attention.rope.filter(|_| has_positions);
        let attention = AttentionPlan { window: windows[idx], rope, ..attention.clone() };
        let layer = LayerPlan::pre_norm(norm, attention, Feed::Gated(mlp.clone()));
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
