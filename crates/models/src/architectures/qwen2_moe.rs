//! Qwen2 with routed experts beside one that every token sees, weighted by a sigmoid gate.

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    AttentionPlan, Classes, Defaults, ExpertNames, Feed, LayerPlan, MlpPlan, ModuleOrder, MoePlan, causal_lm,
    decoder_layer, plain_attention, plain_causal, plain_mlp, qwen_windows,
};
use tensor::{Normalize, Scores};

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
    let moe = MoePlan {
        names: ExpertNames {
            block: "Qwen2MoeSparseMoeBlock",
            router: "Qwen2MoeTopKRouter",
            experts: "Qwen2MoeExperts",
            expert: "Qwen2MoeMLP",
            gate: "gate_proj",
            up: "up_proj",
            down: "down_proj",
        },
        width: mlp.width,
        intermediate: config.size("moe_intermediate_size")?,
        n_experts: config.count("num_experts", 1 << 12)?,
        n_chosen: config.size("num_experts_per_tok")?,
        scores: Scores::Softmax,
        normalize: if config.flag_or("norm_topk_prob", Flag::Off)? { Normalize::ToOne } else { Normalize::No },
        activation: mlp.activation,
        order: ModuleOrder::RouterFirst,
        shared: Some(MlpPlan { intermediate: config.size("shared_expert_intermediate_size")?, ..mlp.clone() }),
    };
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
