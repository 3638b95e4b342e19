//! Mistral: Llama with a sliding window over all layers.

use super::{Architecture, classes};
use crate::build::Builder;
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    Classes, Defaults, Feed, LayerPlan, causal_lm, decoder_layer, plain_attention, plain_causal, plain_mlp,
};

const CLASSES: Classes = classes!("Mistral");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-6, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "mistral", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let mut attention = plain_attention(config, "MistralAttention")?;
    attention.window = config.size_of("sliding_window")?;
    let mlp = plain_mlp(config, "MistralMLP")?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Gated(mlp.clone()));
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
