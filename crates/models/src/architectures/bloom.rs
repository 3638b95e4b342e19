//! BLOOM: positions as ALiBi, a layer norm on the embedding, query, key and value as one linear.

use super::Architecture;
use crate::build::{Bias, Builder};
use crate::config::{Config, Dialect, Flag};
use crate::error::Result;
use crate::layers::{
    ActPlace, Alibi, AttentionNames, Classes, Defaults, Feed, Item, LLAMA_NAMES, LayerPlan, NormKind, NormPlan, Part,
    PlainNames, Slot, Source, alibi_slopes, causal_lm, decoder_layer, mlp_of, plain_attention, plain_causal, refuse,
};

const CLASSES: Classes =
    Classes { causal_lm: "BloomForCausalLM", model: "BloomModel", layer: "BloomBlock", norm: "LayerNorm", rotary: "" };
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::On };
const DIALECT: Dialect = Dialect {
    names: &[("num_attention_heads", "n_head"), ("num_hidden_layers", "n_layer"), ("hidden_size", "n_embed")],
    head_dim: None,
};
const NAMES: AttentionNames =
    AttentionNames { qkv: ["query_key_value", "", ""], o: "dense", dropouts: &["attention_dropout"], ..LLAMA_NAMES };
const PARTS: &[Part] = &[
    Part::Embedding("word_embeddings"),
    Part::EmbeddingNorm("word_embeddings_layernorm"),
    Part::Layers("h"),
    Part::Norm("ln_f"),
];
const LISTED: &[Item] = &[
    Item::Norm(Slot::BeforeMixer, "input_layernorm"),
    Item::Mixer("self_attention"),
    Item::Norm(Slot::BeforeFeed, "post_attention_layernorm"),
    Item::Feed("mlp"),
];

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "bloom", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let config = &config.speaking(&DIALECT);
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let eps = config.number_or("layer_norm_epsilon", DEFAULTS.norm_eps)?;
    plan.norm = NormPlan { class: CLASSES.norm, eps, kind: NormKind::LayerBias };
    (plan.body, plan.listed) = ("transformer", PARTS);
    refuse(config, "apply_residual_connection_post_layernorm")?;
    let mut attention = plain_attention(config, "BloomAttention")?;
    (attention.names, attention.source, attention.kv_heads) = (NAMES, Source::Groups, attention.heads);
    (attention.qkv_bias, attention.o_bias, attention.rope) = (Bias::Given, Bias::Given, None);
    plan.alibi = Some(Alibi { slopes: alibi_slopes(attention.heads).into(), rounded_to: None, factor: 1.0 });
    let mut mlp = mlp_of(config, "BloomMLP", 4 * plan.width, "gelu_pytorch_tanh")?;
    (mlp.bias, mlp.act, mlp.act_class) = (Bias::Given, "gelu_impl", Some("BloomGelu"));
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let names = PlainNames(["dense_h_to_4h", "dense_4h_to_h"], ActPlace::Between);
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Plain(mlp.clone(), names));
        decoder_layer(b, name, CLASSES.layer, &LayerPlan { listed: LISTED, ..layer })
    })?;
    Ok(b)
}
