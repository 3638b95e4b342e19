//! EXAONE 4: norms after each branch and on the heads of query and key; full layers among windows have no positions.

use super::{Architecture, classes};
use crate::build::Builder;
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    AttentionPlan, Classes, Defaults, Feed, HeadNorms, LayerPlan, POST_NORMS, causal_lm, decoder_layer, layer_types,
    plain_attention, plain_causal, plain_mlp, windows_of,
};

const CLASSES: Classes = classes!("Exaone4");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "exaone4", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let mut attention = plain_attention(config, "Exaone4Attention")?;
    attention.norms = HeadNorms::PerHead(plan.norm);
    let mlp = plain_mlp(config, "Exaone4MLP")?;
    let window = config.number_unless_null("sliding_window", 4096.0)?.map(|width| width as usize);
    let types = match window {
        Some(_) => layer_types(config, plan.n_layers, config.size_or("sliding_window_pattern", 4)?)?,
        None => vec!["full_attention"; plan.n_layers],
    };
    let windows = windows_of(&types, window, plan.n_layers)?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let has_positions = window.is_none() || windows[idx].is_some();
        let rope = attention.rope.filter(|_| has_positions);
        let attention = AttentionPlan { window: windows[idx], rope, ..attention.clone() };
        let layer = LayerPlan::pre_norm(norm, attention, Feed::Gated(mlp.clone()));
        let layer = LayerPlan { listed: POST_NORMS, ..layer };
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
