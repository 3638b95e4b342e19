//! OLMo: Llama with norms that have no parameters.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    Classes, Defaults, Feed, LayerPlan, NormKind, NormPlan, causal_lm, decoder_layer, plain_attention, plain_causal,
    plain_mlp, refuse,
};

const CLASSES: Classes = classes!("Olmo");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "olmo", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    plan.norm = NormPlan { class: "OlmoLayerNorm", eps: 1e-5, kind: NormKind::LayerPlain };
    refuse(config, "clip_qkv")?;
    let mut attention = plain_attention(config, "OlmoAttention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    let mlp = plain_mlp(config, "OlmoMLP")?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Gated(mlp.clone()));
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
