//! Granite: Llama with multipliers on embedding, attention, residual branches and logits.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    Classes, Defaults, Factor, Feed, LayerPlan, causal_lm, decoder_layer, plain_attention, plain_causal, plain_mlp,
};

const CLASSES: Classes = classes!("Granite");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-6, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "granite", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    plan.embedding.factor = Factor::Exact(config.number_or("embedding_multiplier", 1.0)? as f32);
    plan.logits_factor = Some((1.0 / config.number_or("logits_scaling", 1.0)?) as f32);
    let mut attention = plain_attention(config, "GraniteAttention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    attention.scale = config.number_or("attention_multiplier", 1.0)? as f32;
    let mut mlp = plain_mlp(config, "GraniteMLP")?;
    mlp.bias = Bias::from_flag(config.flag_or("mlp_bias", Flag::Off)?);
    let residual_factor = Some(config.number_or("residual_multiplier", 1.0)? as f32);
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Gated(mlp.clone()));
        let layer = LayerPlan { residual_factor, ..layer };
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
