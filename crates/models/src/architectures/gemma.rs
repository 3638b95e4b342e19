//! Gemma: Llama with norms that store their distance from one, a scaled embedding and a GELU gate.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    Classes, Defaults, Factor, Feed, LayerPlan, NormKind, causal_lm, decoder_layer, plain_attention, plain_causal,
    plain_mlp, refuse,
};

const CLASSES: Classes = classes!("Gemma");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-6, rope_theta: 10_000.0, tied: Flag::On };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "gemma", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    plan.norm.kind = NormKind::RmsOffset;
    plan.embedding.class = "GemmaTextScaledWordEmbedding";
    plan.embedding.factor = Factor::InType((plan.embedding.width as f64).sqrt() as f32);
    refuse(config, "use_bidirectional_attention")?;
    let mut attention = plain_attention(config, "GemmaAttention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    let mut mlp = plain_mlp(config, "GemmaMLP")?;
    mlp.activation = config.activation("hidden_activation", "gelu_pytorch_tanh")?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Gated(mlp.clone()));
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
