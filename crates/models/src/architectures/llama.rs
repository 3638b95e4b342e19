//! Llama, and what shares its shape (SmolLM2, TinyLlama): RMS norms before grouped-query attention and a gated block.
//!
//! ```text
//! x = embed_tokens(ids)                                (B, T, C)
//! x = x + o(attention(rope(q(n)), rope(k(n)), v(n)))   n = input_layernorm(x), per layer
//! x = x + down(silu(gate(n)) * up(n))                  n = post_attention_layernorm(x)
//! logits = lm_head(norm(x))                            (B, T, V)
//! ```

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    Classes, Defaults, Feed, LayerPlan, causal_lm, decoder_layer, plain_attention, plain_causal, plain_mlp,
};

const CLASSES: Classes = classes!("Llama");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-6, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "llama", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let mut attention = plain_attention(config, "LlamaAttention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    let mut mlp = plain_mlp(config, "LlamaMLP")?;
    mlp.bias = Bias::from_flag(config.flag_or("mlp_bias", Flag::Off)?);
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Gated(mlp.clone()));
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
