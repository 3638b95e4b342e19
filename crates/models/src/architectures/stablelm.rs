//! StableLM: Llama with layer norms, of whose heads a part of the channels turns.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    Classes, Defaults, Feed, LayerPlan, NormKind, NormPlan, PRE_NORMS_DROPOUT, causal_lm, decoder_layer,
    plain_attention, plain_causal, plain_mlp, refuse,
};
use crate::rope::Frequencies;

const CLASSES: Classes = classes!("StableLm");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "stablelm", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let eps = config.number_or("layer_norm_eps", DEFAULTS.norm_eps)?;
    plan.norm = NormPlan { class: "LayerNorm", eps, kind: NormKind::LayerBias };
    refuse(config, "qk_layernorm")?;
    refuse(config, "use_parallel_residual")?;
    let mut attention = plain_attention(config, "StableLmAttention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("use_qkv_bias", Flag::Off)?);
    let turning = config.rotary_dim(attention.head_dim, 0.25)?;
    plan.frequencies = vec![Frequencies::from_config(config, turning, DEFAULTS.rope_theta)?];
    let mlp = plain_mlp(config, "StableLmMLP")?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Gated(mlp.clone()));
        decoder_layer(b, name, CLASSES.layer, &LayerPlan { listed: PRE_NORMS_DROPOUT, ..layer })
    })?;
    Ok(b)
}
