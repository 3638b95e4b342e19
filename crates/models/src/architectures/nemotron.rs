//! Nemotron: layer norms with an offset weight, squared ReLU, no gate; half of the channels turn.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    ActPlace, Classes, Defaults, Feed, LayerPlan, NormKind, NormPlan, PlainNames, causal_lm, decoder_layer, mlp_of,
    plain_attention, plain_causal,
};
use crate::rope::Frequencies;

const CLASSES: Classes = classes!("Nemotron");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "nemotron", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let eps = config.number_or("norm_eps", DEFAULTS.norm_eps)?;
    plan.norm = NormPlan { class: "NemotronLayerNorm1P", eps, kind: NormKind::LayerOffset };
    let mut attention = plain_attention(config, "NemotronAttention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    let turning = config.rotary_dim(attention.head_dim, 0.5)?;
    plan.frequencies = vec![Frequencies::from_config(config, turning, DEFAULTS.rope_theta)?];
    let mut mlp = mlp_of(config, "NemotronMLP", config.size("intermediate_size")?, "relu2")?;
    mlp.bias = Bias::from_flag(config.flag_or("mlp_bias", Flag::Off)?);
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let feed = Feed::Plain(mlp.clone(), PlainNames(["up_proj", "down_proj"], ActPlace::Last));
        decoder_layer(b, name, CLASSES.layer, &LayerPlan::pre_norm(norm, attention.clone(), feed))
    })?;
    Ok(b)
}
