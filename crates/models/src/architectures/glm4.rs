//! GLM-4: norms before and after each branch, gate and up as one linear; half of the channels turn in neighbouring pairs.

use tensor::Pairing;

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Dialect, Flag};
use crate::error::Result;
use crate::layers::{
    Classes, Defaults, Feed, Item, LayerPlan, Slot, causal_lm, decoder_layer, plain_attention, plain_causal, plain_mlp,
};
use crate::rope::Frequencies;

const CLASSES: Classes = classes!("Glm4");
const DEFAULTS: Defaults = Defaults { norm_eps: 1.5625e-7, rope_theta: 10_000.0, tied: Flag::Off };
const DIALECT: Dialect = Dialect { names: &[], head_dim: Some(128) };
const LISTED: &[Item] = &[
    Item::Mixer("self_attn"),
    Item::Feed("mlp"),
    Item::Norm(Slot::BeforeMixer, "input_layernorm"),
    Item::Norm(Slot::BeforeFeed, "post_attention_layernorm"),
    Item::Norm(Slot::AfterMixer, "post_self_attn_layernorm"),
    Item::Norm(Slot::AfterFeed, "post_mlp_layernorm"),
];

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "glm4", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let config = &config.speaking(&DIALECT);
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let mut attention = plain_attention(config, "Glm4Attention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::On)?);
    attention.rope = Some(Pairing::Interleaved);
    let turning = config.rotary_dim(attention.head_dim, 0.5)?;
    plan.frequencies = vec![Frequencies::from_config(config, turning, DEFAULTS.rope_theta)?];
    let mut mlp = plain_mlp(config, "Glm4MLP")?;
    mlp.act = "activation_fn";
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Fused(mlp.clone()));
        decoder_layer(b, name, CLASSES.layer, &LayerPlan { listed: LISTED, ..layer })
    })?;
    Ok(b)
}
