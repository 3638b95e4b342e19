//! ERNIE 4.5: Llama with neighbouring channels turning together, and one switch for all biases.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    Classes, Defaults, Feed, LayerPlan, causal_lm, decoder_layer, plain_attention, plain_causal, plain_mlp,
};
use tensor::Pairing;

const CLASSES: Classes = classes!("Ernie4_5");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 500_000.0, tied: Flag::On };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "ernie4_5", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let bias = Bias::from_flag(config.flag_or("use_bias", Flag::Off)?);
    let mut attention = plain_attention(config, "Ernie4_5Attention")?;
    (attention.qkv_bias, attention.o_bias) = (bias, bias);
    attention.rope = Some(Pairing::Interleaved);
    let mut mlp = plain_mlp(config, "Ernie4_5MLP")?;
    mlp.bias = bias;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Gated(mlp.clone()));
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
