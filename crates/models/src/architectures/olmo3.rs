//! OLMo 3: OLMo 2 with windows by layer; only full layers rescale their rotation.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    AttentionPlan, Classes, Defaults, Feed, HeadNorms, LayerPlan, NormKind, POST_NORMS, causal_lm, decoder_layer,
    layer_types, plain_attention, plain_causal, plain_mlp, windows_of,
};
use crate::rope::Frequencies;

const CLASSES: Classes = classes!("Olmo3");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "olmo3", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    plan.norm.kind = NormKind::RmsRoundedLate;
    let mut attention = plain_attention(config, "Olmo3Attention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    attention.norms = HeadNorms::WholeWidth(plan.norm);
    let mlp = plain_mlp(config, "Olmo3MLP")?;
    let types = layer_types(config, plan.n_layers, 4)?;
    let windows = windows_of(&types, Some(config.size_or("sliding_window", 4096)?), plan.n_layers)?;
    let theta = config.number_or("rope_theta", DEFAULTS.rope_theta)?;
    plan.frequencies = Frequencies::by_layer_type(config, attention.head_dim, [theta, theta])?;
    plan.table_of_layer = windows.iter().map(|window| usize::from(window.is_some())).collect();
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let attention = AttentionPlan { window: windows[idx], ..attention.clone() };
        let layer = LayerPlan::pre_norm(norm, attention, Feed::Gated(mlp.clone()));
        let layer = LayerPlan { listed: POST_NORMS, ..layer };
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
