//! Phi-3: Llama with query, key and value as one linear, and gate and up as another.

use super::{Architecture, classes};
use crate::build::Builder;
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    AttentionNames, Classes, Defaults, Feed, Item, LLAMA_NAMES, LayerPlan, Listed, Slot, Source, causal_lm,
    decoder_layer, plain_attention, plain_causal, plain_mlp,
};
use crate::rope::Frequencies;

const CLASSES: Classes = classes!("Phi3");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::Off };
const NAMES: AttentionNames = AttentionNames { qkv: ["qkv_proj", "", ""], order: Listed::OutputFirst, ..LLAMA_NAMES };
const LISTED: &[Item] = &[
    Item::Mixer("self_attn"),
    Item::Feed("mlp"),
    Item::Norm(Slot::BeforeMixer, "input_layernorm"),
    Item::Norm(Slot::BeforeFeed, "post_attention_layernorm"),
    Item::Dropout("resid_attn_dropout"),
    Item::Dropout("resid_mlp_dropout"),
];

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "phi3", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let mut attention = plain_attention(config, "Phi3Attention")?;
    (attention.names, attention.source) = (NAMES, Source::Blocks);
    attention.window = config.size_of("sliding_window")?;
    let turning = config.rotary_dim(attention.head_dim, 1.0)?;
    plan.frequencies = vec![Frequencies::from_config(config, turning, DEFAULTS.rope_theta)?];
    let mut mlp = plain_mlp(config, "Phi3MLP")?;
    mlp.act = "activation_fn";
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Fused(mlp.clone()));
        decoder_layer(b, name, CLASSES.layer, &LayerPlan { listed: LISTED, ..layer })
    })?;
    Ok(b)
}
