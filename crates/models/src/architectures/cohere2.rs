//! Cohere 2: Cohere with windows by layer; full layers have no positions.

use tensor::Pairing;

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    AttentionPlan, Branches, Classes, Defaults, Feed, LayerPlan, NormKind, NormPlan, ONE_NORM, causal_lm,
    decoder_layer, layer_types, plain_attention, plain_causal, plain_mlp, refuse, windows_of,
};

const CLASSES: Classes = classes!("Cohere2");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::On };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "cohere2", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let eps = config.number_or("layer_norm_eps", DEFAULTS.norm_eps)?;
    plan.norm = NormPlan { class: "Cohere2LayerNorm", eps, kind: NormKind::LayerWeight };
    plan.logits_factor = Some(config.number_or("logit_scale", 0.0625)? as f32);
    refuse(config, "use_qk_norm")?;
    let mut attention = plain_attention(config, "Cohere2Attention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    attention.rope = Some(Pairing::Interleaved);
    let mlp = plain_mlp(config, "Cohere2MLP")?;
    let types = layer_types(config, plan.n_layers, 4)?;
    let windows = windows_of(&types, Some(config.size_or("sliding_window", 4096)?), plan.n_layers)?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let window = windows[idx];
        let attention =
            AttentionPlan { window, rope: attention.rope.filter(|_| window.is_some()), ..attention.clone() };
        let layer = LayerPlan::pre_norm(norm, attention, Feed::Gated(mlp.clone()));
        let layer = LayerPlan { listed: ONE_NORM, shape: Branches::Parallel, ..layer };
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
