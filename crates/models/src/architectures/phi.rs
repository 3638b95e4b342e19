//! Phi: attention and a feed-forward block without a gate side by side, biases everywhere, half of the channels turn.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    ActPlace, AttentionNames, Branches, Classes, Defaults, Feed, HeadNorms, Item, LLAMA_NAMES, LayerPlan, NormKind,
    NormPlan, Part, PlainNames, Slot, causal_lm, decoder_layer, mlp_of, plain_attention, plain_causal,
};
use crate::rope::Frequencies;

const CLASSES: Classes = classes!("Phi");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::Off };
const NAMES: AttentionNames = AttentionNames { o: "dense", norms: ["q_layernorm", "k_layernorm"], ..LLAMA_NAMES };
const PARTS: &[Part] = &[
    Part::Embedding("embed_tokens"),
    Part::Layers("layers"),
    Part::Rotary("rotary_emb"),
    Part::Dropout("embed_dropout"),
    Part::Norm("final_layernorm"),
];
const LISTED: &[Item] = &[
    Item::Mixer("self_attn"),
    Item::Feed("mlp"),
    Item::Norm(Slot::BeforeMixer, "input_layernorm"),
    Item::Dropout("resid_dropout"),
];

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "phi", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let eps = config.number_or("layer_norm_eps", DEFAULTS.norm_eps)?;
    plan.norm = NormPlan { class: "LayerNorm", eps, kind: NormKind::LayerBias };
    (plan.listed, plan.head_bias) = (PARTS, Bias::Given);
    let mut attention = plain_attention(config, "PhiAttention")?;
    attention.names = NAMES;
    (attention.qkv_bias, attention.o_bias) = (Bias::Given, Bias::Given);
    if config.flag_or("qk_layernorm", Flag::Off)? {
        attention.norms = HeadNorms::PerHead(plan.norm);
    }
    let turning = config.rotary_dim(attention.head_dim, 0.5)?;
    plan.frequencies = vec![Frequencies::from_config(config, turning, DEFAULTS.rope_theta)?];
    let mut mlp = mlp_of(config, "PhiMLP", config.size("intermediate_size")?, "gelu_new")?;
    (mlp.bias, mlp.act) = (Bias::Given, "activation_fn");
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let feed = Feed::Plain(mlp.clone(), PlainNames(["fc1", "fc2"], ActPlace::First));
        let layer = LayerPlan::pre_norm(norm, attention.clone(), feed);
        let layer = LayerPlan { listed: LISTED, shape: Branches::ParallelSum, ..layer };
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
