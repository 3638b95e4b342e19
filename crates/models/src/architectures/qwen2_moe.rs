//! Qwen2 with routed experts beside one that every token sees, weighted by a sigmoid gate.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    AttentionPlan, Classes, Defaults, ExpertNames, Feed, LayerPlan, MlpPlan, SharedPlan, causal_lm, decoder_layer,
    plain_attention, plain_causal, plain_mlp, plain_moe, qwen_windows,
};
use tensor::Normalize;

const CLASSES: Classes = classes!("Qwen2Moe");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-6, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "qwen2_moe", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let mut attention = plain_attention(config, "Qwen2MoeAttention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("qkv_bias", Flag::On)?);
    let windows = qwen_windows(config, plan.n_layers)?;
    let mlp = plain_mlp(config, "Qwen2MoeMLP")?;
    let names = ExpertNames {
        block: "Qwen2MoeSparseMoeBlock",
        router: ("gate", "Qwen2MoeTopKRouter"),
        experts: "Qwen2MoeExperts",
        expert: "Qwen2MoeMLP",
    };
    let mut moe = plain_moe(config, names, &mlp, "num_experts", config.size("moe_intermediate_size")?)?;
    moe.route.normalize = Normalize::from_flag(config.flag_or("norm_topk_prob", Flag::Off)?);
    let intermediate = config.size("shared_expert_intermediate_size")?;
    moe.shared = Some(SharedPlan {
        name: "shared_expert",
        mlp: MlpPlan { intermediate, ..mlp.clone() },
        gate: Some("shared_expert_gate"),
    });
    moe.check()?;
    let step = config.size_or("decoder_sparse_step", 1)?;
    let dense = config.sizes("mlp_only_layers")?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let is_sparse = !dense.contains(&idx) && (idx + 1) % step == 0;
        let feed = if is_sparse { Feed::Experts(moe.clone()) } else { Feed::Gated(mlp.clone()) };
        let attention = AttentionPlan { window: windows[idx], ..attention.clone() };
        let layer = LayerPlan::pre_norm(norm, attention, feed);
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
