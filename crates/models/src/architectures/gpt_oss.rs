//! gpt-oss: attention with sinks, every second layer through a window, experts with clamped gates and biases.

use compressed_tensors::experts::ExpertLayout;
use serde_json::json;
use tensor::{Presence, Scores};

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Dialect, Flag};
use crate::error::Result;
use crate::layers::{
    AttentionPlan, Classes, Defaults, ExpertNames, Feed, Gating, LayerPlan, STACKED_ROWS, Stacked, causal_lm,
    decoder_layer, plain_attention, plain_causal, plain_mlp, plain_moe, windows_of,
};
use crate::rope::Frequencies;

const CLASSES: Classes = classes!("GptOss");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 150_000.0, tied: Flag::Off };
const DIALECT: Dialect = Dialect { names: &[], head_dim: Some(64) };
/// Factor inside of the gate's sigmoid.
const ALPHA: f32 = 1.702;

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "gpt_oss", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let config = &config.speaking(&DIALECT);
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let mut attention = plain_attention(config, "GptOssAttention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::On)?);
    (attention.o_bias, attention.sinks) = (attention.qkv_bias, Presence::Given);
    if config.part("rope_parameters").is_none() && !config.has("rope_scaling") {
        let theta = config.number_or("rope_theta", DEFAULTS.rope_theta)?;
        let implied = json!({"rope_parameters": {
            "rope_type": "yarn", "rope_theta": theta, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "truncate": false, "original_max_position_embeddings": 4096
        }});
        plan.frequencies = vec![Frequencies::from_config(&Config::new(&implied), attention.head_dim, theta)?];
    }
    let kind = |idx: usize| if idx.is_multiple_of(2) { "sliding_attention" } else { "full_attention" };
    let types = config.texts("layer_types")?.unwrap_or_else(|| (0..plan.n_layers).map(kind).collect());
    let windows = windows_of(&types, Some(config.size_or("sliding_window", 128)?), plan.n_layers)?;
    let mlp = plain_mlp(config, "GptOssMLP")?;
    let names = ExpertNames {
        block: "GptOssMLP",
        router: ("router", "GptOssTopKRouter"),
        experts: "GptOssExperts",
        expert: "GptOssMLP",
    };
    let mut moe = plain_moe(config, names, &mlp, "num_local_experts", mlp.intermediate)?;
    moe.route.scores = Scores::SoftmaxOfChosen;
    (moe.bias, moe.router_bias) = (Bias::Given, Bias::Given);
    moe.gating = Gating::Clamped { alpha: ALPHA, limit: config.number_or("swiglu_limit", 7.0)? as f32 };
    moe.stacked = Stacked { layout: ExpertLayout::InterleavedColumns, ..STACKED_ROWS };
    moe.check()?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let attention = AttentionPlan { window: windows[idx], ..attention.clone() };
        let layer = LayerPlan::pre_norm(norm, attention, Feed::Experts(moe.clone()));
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
