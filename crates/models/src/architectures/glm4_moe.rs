//! GLM-4.5: routed experts chosen by corrected sigmoids among groups, beside a shared one; half of the channels turn.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    Classes, Defaults, ExpertNames, Feed, HeadNorms, LayerPlan, causal_lm, corrected_moe, decoder_layer,
    plain_attention, plain_causal, plain_mlp,
};
use crate::rope::Frequencies;

const CLASSES: Classes = classes!("Glm4Moe");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "glm4_moe", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let mut attention = plain_attention(config, "Glm4MoeAttention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    if config.flag_or("use_qk_norm", Flag::Off)? {
        attention.norms = HeadNorms::PerHead(plan.norm);
    }
    let turning = config.rotary_dim(attention.head_dim, 0.5)?;
    plan.frequencies = vec![Frequencies::from_config(config, turning, DEFAULTS.rope_theta)?];
    let mlp = plain_mlp(config, "Glm4MoeMLP")?;
    let names = ExpertNames {
        block: "Glm4MoeMoE",
        router: ("gate", "Glm4MoeTopkRouter"),
        experts: "Glm4MoeExperts",
        expert: "Glm4MoeMLP",
    };
    let mut moe = corrected_moe(config, names, &mlp, [1, 1])?;
    moe.route.factor = config.number_or("routed_scaling_factor", 1.0)? as f32;
    let n_dense = config.whole_or("first_k_dense_replace", 1)?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let feed = if idx >= n_dense { Feed::Experts(moe.clone()) } else { Feed::Gated(mlp.clone()) };
        decoder_layer(b, name, CLASSES.layer, &LayerPlan::pre_norm(norm, attention.clone(), feed))
    })?;
    Ok(b)
}
