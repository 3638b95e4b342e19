//! OLMo 2: norms after each branch, and over all heads of query and key.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    Classes, Defaults, Feed, HeadNorms, LayerPlan, NormKind, POST_NORMS, causal_lm, decoder_layer, plain_attention,
    plain_causal, plain_mlp,
};

const CLASSES: Classes = classes!("Olmo2");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "olmo2", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    plan.norm.kind = NormKind::RmsRoundedLate;
    let mut attention = plain_attention(config, "Olmo2Attention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    attention.norms = HeadNorms::WholeWidth(plan.norm);
    let mlp = plain_mlp(config, "Olmo2MLP")?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Gated(mlp.clone()));
        let layer = LayerPlan { listed: POST_NORMS, ..layer };
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
