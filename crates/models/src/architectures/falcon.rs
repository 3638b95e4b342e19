//! Falcon: attention and feed side by side, query, key and value as one linear, rotation or ALiBi.

use tensor::DType;

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Dialect, Flag};
use crate::error::{Error, Result};
use crate::layers::{
    ActPlace, Alibi, AttentionNames, Branches, Classes, Defaults, Feed, Item, LLAMA_NAMES, LayerPlan, LinearKind,
    NormKind, NormPlan, Part, PlainNames, Slot, Source, alibi_slopes, causal_lm, decoder_layer, mlp_of,
    plain_attention, plain_causal,
};
use half::bf16;

const CLASSES: Classes = classes!("Falcon");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::On };
const DIALECT: Dialect = Dialect {
    names: &[
        ("hidden_act", "activation"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
        ("num_kv_heads", "n_head_kv"),
    ],
    head_dim: None,
};
const NAMES: AttentionNames =
    AttentionNames { qkv: ["query_key_value", "", ""], o: "dense", dropouts: &["attention_dropout"], ..LLAMA_NAMES };
const PARTS: &[Part] =
    &[Part::Embedding("word_embeddings"), Part::Layers("h"), Part::Norm("ln_f"), Part::Rotary("rotary_emb")];
const ONE_NORM: &[Item] =
    &[Item::Mixer("self_attention"), Item::Feed("mlp"), Item::Norm(Slot::BeforeMixer, "input_layernorm")];
const NORM_EACH: &[Item] = &[
    Item::Mixer("self_attention"),
    Item::Feed("mlp"),
    Item::Norm(Slot::BeforeMixer, "ln_attn"),
    Item::Norm(Slot::BeforeFeed, "ln_mlp"),
];
const IN_TURN: &[Item] = &[
    Item::Mixer("self_attention"),
    Item::Feed("mlp"),
    Item::Norm(Slot::BeforeFeed, "post_attention_layernorm"),
    Item::Norm(Slot::BeforeMixer, "input_layernorm"),
];

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "falcon", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let config = &config.speaking(&DIALECT);
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let eps = config.number_or("layer_norm_epsilon", DEFAULTS.norm_eps)?;
    plan.norm = NormPlan { class: "LayerNorm", eps, kind: NormKind::LayerBias };
    (plan.body, plan.listed) = ("transformer", PARTS);
    let is_new = config.flag_or("new_decoder_architecture", Flag::Off)?;
    let mut attention = plain_attention(config, "FalconAttention")?;
    (attention.names, attention.source, attention.linear) = (NAMES, Source::Groups, LinearKind::Falcon);
    attention.kv_heads = match config.flag_or("multi_query", Flag::On)? {
        _ if is_new => config.size_or("num_kv_heads", attention.heads)?,
        true => 1,
        false => attention.heads,
    };
    if !attention.heads.is_multiple_of(attention.kv_heads) {
        let error = Error::config(attention.kv_heads, format!("a divisor of the {} heads", attention.heads));
        return Err(error.at("config.json: num_kv_heads"));
    }
    let bias = Bias::from_flag(config.flag_or("bias", Flag::Off)?);
    (attention.qkv_bias, attention.o_bias) = (bias, bias);
    if config.flag_or("alibi", Flag::Off)? {
        attention.rope = None;
        let slopes = alibi_slopes(attention.heads).into_iter().map(|slope| bf16::from_f32(slope).to_f32()).collect();
        plan.alibi = Some(Alibi { slopes, rounded_to: Some(DType::BF16), factor: attention.scale });
    }
    let intermediate = config.size_or("ffn_hidden_size", 4 * plan.width)?;
    let mut mlp = mlp_of(config, "FalconMLP", intermediate, "gelu")?;
    (mlp.bias, mlp.act, mlp.linear) = (bias, "act", LinearKind::Falcon);
    let n_norms = config.size_or("num_ln_in_parallel_attn", if is_new { 2 } else { 1 })?;
    let (listed, shape) = match config.flag_or("parallel_attn", Flag::On)? {
        false if !is_new => (IN_TURN, Branches::InTurn),
        _ if is_new && n_norms == 2 => (NORM_EACH, Branches::ParallelSum),
        _ => (ONE_NORM, Branches::ParallelSum),
    };
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let names = PlainNames(["dense_h_to_4h", "dense_4h_to_h"], ActPlace::Between);
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Plain(mlp.clone(), names));
        decoder_layer(b, name, CLASSES.layer, &LayerPlan { listed, shape, ..layer })
    })?;
    Ok(b)
}
