//! StarCoder2: layer norms, biases everywhere, and a feed-forward block without a gate.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    ActPlace, Classes, Defaults, Feed, LayerPlan, NormKind, NormPlan, PlainNames, causal_lm, decoder_layer,
    plain_attention, plain_causal, plain_mlp,
};

const CLASSES: Classes = classes!("Starcoder2");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::On };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "starcoder2", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let eps = config.number_or("norm_epsilon", DEFAULTS.norm_eps)?;
    plan.norm = NormPlan { class: "LayerNorm", eps, kind: NormKind::LayerBias };
    let bias = Bias::from_flag(config.flag_or("use_bias", Flag::On)?);
    let mut attention = plain_attention(config, "Starcoder2Attention")?;
    (attention.qkv_bias, attention.o_bias) = (bias, bias);
    attention.window = config.size_of("sliding_window")?;
    let mut mlp = plain_mlp(config, "Starcoder2MLP")?;
    mlp.activation = config.activation("hidden_act", "gelu_pytorch_tanh")?;
    (mlp.bias, mlp.act) = (bias, "act");
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let feed = Feed::Plain(mlp.clone(), PlainNames(["c_fc", "c_proj"], ActPlace::Last));
        decoder_layer(b, name, CLASSES.layer, &LayerPlan::pre_norm(norm, attention.clone(), feed))
    })?;
    Ok(b)
}
