//! GPT-2: learned positions, layer norms before attention and feed, and linears whose weights lie transposed.

use super::Architecture;
use crate::build::{Bias, Builder};
use crate::config::{Config, Dialect, Flag};
use crate::error::Result;
use crate::layers::{
    ActPlace, AttentionNames, Classes, Counted, Defaults, Feed, Item, LLAMA_NAMES, LayerPlan, LinearKind, NormKind,
    NormPlan, Part, PlainNames, PositionsPlan, Slot, Source, causal_lm, decoder_layer, mlp_of, plain_attention,
    plain_causal, refuse,
};

const CLASSES: Classes =
    Classes { causal_lm: "GPT2LMHeadModel", model: "GPT2Model", layer: "GPT2Block", norm: "LayerNorm", rotary: "" };
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::On };
const DIALECT: Dialect = Dialect {
    names: &[
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
        ("hidden_act", "activation_function"),
    ],
    head_dim: None,
};
const NAMES: AttentionNames = AttentionNames {
    qkv: ["c_attn", "", ""],
    o: "c_proj",
    dropouts: &["attn_dropout", "resid_dropout"],
    ..LLAMA_NAMES
};
const PARTS: &[Part] =
    &[Part::Embedding("wte"), Part::Positions("wpe"), Part::Dropout("drop"), Part::Layers("h"), Part::Norm("ln_f")];
const LISTED: &[Item] = &[
    Item::Norm(Slot::BeforeMixer, "ln_1"),
    Item::Mixer("attn"),
    Item::Norm(Slot::BeforeFeed, "ln_2"),
    Item::Feed("mlp"),
];

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "gpt2", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let config = &config.speaking(&DIALECT);
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let eps = config.number_or("layer_norm_epsilon", DEFAULTS.norm_eps)?;
    plan.norm = NormPlan { class: CLASSES.norm, eps, kind: NormKind::LayerBias };
    (plan.body, plan.listed) = ("transformer", PARTS);
    let rows = config.size_or("max_position_embeddings", 1024)?;
    plan.positions = Some(PositionsPlan { class: "Embedding", rows, offset: 0, counted: Counted::All });
    refuse(config, "add_cross_attention")?;
    let mut attention = plain_attention(config, "GPT2Attention")?;
    (attention.names, attention.source, attention.linear) = (NAMES, Source::Blocks, LinearKind::Conv1d);
    (attention.kv_heads, attention.rope) = (attention.heads, None);
    (attention.qkv_bias, attention.o_bias) = (Bias::Given, Bias::Given);
    if !config.flag_or("scale_attn_weights", Flag::On)? {
        attention.scale = 1.0;
    }
    let is_by_depth = config.flag_or("scale_attn_by_inverse_layer_idx", Flag::Off)?;
    let intermediate = config.size_or("n_inner", 4 * plan.width)?;
    let mut mlp = mlp_of(config, "GPT2MLP", intermediate, "gelu_new")?;
    (mlp.bias, mlp.act, mlp.linear, mlp.dropout) = (Bias::Given, "act", LinearKind::Conv1d, Some("dropout"));
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let mut attention = attention.clone();
        if is_by_depth {
            attention.scale /= (idx + 1) as f32;
        }
        let feed = Feed::Plain(mlp.clone(), PlainNames(["c_fc", "c_proj"], ActPlace::Last));
        let layer = LayerPlan::pre_norm(norm, attention, feed);
        decoder_layer(b, name, CLASSES.layer, &LayerPlan { listed: LISTED, ..layer })
    })?;
    Ok(b)
}
