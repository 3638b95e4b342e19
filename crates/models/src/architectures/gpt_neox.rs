//! GPT-NeoX: attention and feed side by side with a layer norm each; a quarter of the channels turns.

use super::Architecture;
use crate::build::{Bias, Builder};
use crate::config::{Config, Dialect, Flag};
use crate::error::Result;
use crate::layers::{
    ActPlace, AttentionNames, Branches, Classes, Defaults, Feed, Item, LLAMA_NAMES, LayerPlan, NormKind, NormPlan,
    Part, PlainNames, Slot, Source, causal_lm, decoder_layer, mlp_of, plain_attention, plain_causal,
};
use crate::rope::Frequencies;

const CLASSES: Classes = Classes {
    causal_lm: "GPTNeoXForCausalLM",
    model: "GPTNeoXModel",
    layer: "GPTNeoXLayer",
    norm: "LayerNorm",
    rotary: "GPTNeoXRotaryEmbedding",
};
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::Off };
const DIALECT: Dialect =
    Dialect { names: &[("partial_rotary_factor", "rotary_pct"), ("rope_theta", "rotary_emb_base")], head_dim: None };
const NAMES: AttentionNames = AttentionNames { qkv: ["query_key_value", "", ""], o: "dense", ..LLAMA_NAMES };
const PARTS: &[Part] = &[
    Part::Embedding("embed_in"),
    Part::Dropout("emb_dropout"),
    Part::Layers("layers"),
    Part::Norm("final_layer_norm"),
    Part::Rotary("rotary_emb"),
];
const LISTED: &[Item] = &[
    Item::Norm(Slot::BeforeMixer, "input_layernorm"),
    Item::Norm(Slot::BeforeFeed, "post_attention_layernorm"),
    Item::Dropout("post_attention_dropout"),
    Item::Dropout("post_mlp_dropout"),
    Item::Mixer("attention"),
    Item::Feed("mlp"),
];

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "gpt_neox", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let config = &config.speaking(&DIALECT);
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let eps = config.number_or("layer_norm_eps", DEFAULTS.norm_eps)?;
    plan.norm = NormPlan { class: CLASSES.norm, eps, kind: NormKind::LayerBias };
    (plan.body, plan.listed) = ("gpt_neox", PARTS);
    let mut attention = plain_attention(config, "GPTNeoXAttention")?;
    (attention.names, attention.source, attention.kv_heads) = (NAMES, Source::Groups, attention.heads);
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::On)?);
    attention.o_bias = attention.qkv_bias;
    let turning = config.rotary_dim(attention.head_dim, 0.25)?;
    plan.frequencies = vec![Frequencies::from_config(config, turning, DEFAULTS.rope_theta)?];
    let mut mlp = mlp_of(config, "GPTNeoXMLP", config.size("intermediate_size")?, "gelu")?;
    (mlp.bias, mlp.act) = (Bias::Given, "act");
    let is_parallel = config.flag_or("use_parallel_residual", Flag::On)?;
    let shape = if is_parallel { Branches::ParallelSum } else { Branches::InTurn };
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let names = PlainNames(["dense_h_to_4h", "dense_4h_to_h"], ActPlace::Last);
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Plain(mlp.clone(), names));
        decoder_layer(b, name, CLASSES.layer, &LayerPlan { listed: LISTED, shape, ..layer })
    })?;
    b.rename(|name| (name == "lm_head.weight").then(|| "embed_out.weight".to_owned()));
    Ok(b)
}
