//! Qwen3-Next: gated delta nets in three of four layers, gated attention in the fourth, routed experts beside a shared one.

use tensor::{Activation, Normalize, Presence};

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Dialect, Flag};
use crate::error::{Error, Result};
use crate::layers::{
    AttentionPlan, Classes, Defaults, DeltaPlan, ExpertNames, Feed, HeadNorms, Item, LayerPlan, Mixer, MlpPlan,
    NormKind, NormPlan, SharedPlan, Slot, causal_lm, decoder_layer, plain_attention, plain_causal, plain_mlp,
    plain_moe,
};
use crate::rope::Frequencies;

const CLASSES: Classes = classes!("Qwen3Next");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-6, rope_theta: 10_000.0, tied: Flag::Off };
const DIALECT: Dialect = Dialect { names: &[], head_dim: Some(256) };
const DELTA: &[Item] = &[
    Item::Mixer("linear_attn"),
    Item::Feed("mlp"),
    Item::Norm(Slot::BeforeMixer, "input_layernorm"),
    Item::Norm(Slot::BeforeFeed, "post_attention_layernorm"),
];

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "qwen3_next", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let config = &config.speaking(&DIALECT);
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    plan.norm.kind = NormKind::RmsOffset;
    let attention = attention(config, plan.norm)?;
    let delta = delta(config, plan.norm)?;
    let turning = config.rotary_dim(attention.head_dim, 0.25)?;
    plan.frequencies = vec![Frequencies::from_config(config, turning, DEFAULTS.rope_theta)?];
    let mlp = plain_mlp(config, "Qwen3NextMLP")?;
    let names = ExpertNames {
        block: "Qwen3NextSparseMoeBlock",
        router: ("gate", "Qwen3NextTopKRouter"),
        experts: "Qwen3NextExperts",
        expert: "Qwen3NextMLP",
    };
    let mut moe = plain_moe(config, names, &mlp, "num_experts", config.size_or("moe_intermediate_size", 512)?)?;
    moe.route.normalize = Normalize::from_flag(config.flag_or("norm_topk_prob", Flag::On)?);
    let intermediate = config.size_or("shared_expert_intermediate_size", 512)?;
    moe.shared = Some(SharedPlan {
        name: "shared_expert",
        mlp: MlpPlan { intermediate, ..mlp.clone() },
        gate: Some("shared_expert_gate"),
    });
    moe.check()?;
    let kinds = kinds(config, plan.n_layers)?;
    let step = config.size_or("decoder_sparse_step", 1)?;
    let dense = config.sizes("mlp_only_layers")?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let is_sparse = !dense.contains(&idx) && (idx + 1) % step == 0;
        let feed = if is_sparse { Feed::Experts(moe.clone()) } else { Feed::Gated(mlp.clone()) };
        let layer = match kinds[idx] {
            Kind::Attention => LayerPlan::pre_norm(norm, attention.clone(), feed),
            Kind::Delta => {
                let layer = LayerPlan::with(norm, delta.width, Mixer::Delta(delta.clone()), feed);
                LayerPlan { listed: DELTA, ..layer }
            }
        };
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}

fn attention(config: &Config<'_>, norm: NormPlan) -> Result<AttentionPlan> {
    let mut attention = plain_attention(config, "Qwen3NextAttention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    attention.norms = HeadNorms::PerHead(norm);
    attention.gate = Presence::Given;
    Ok(attention)
}

fn delta(config: &Config<'_>, norm: NormPlan) -> Result<DeltaPlan> {
    let plan = DeltaPlan {
        class: "Qwen3NextGatedDeltaNet",
        width: config.size("hidden_size")?,
        key_heads: config.size_or("linear_num_key_heads", 16)?,
        value_heads: config.size_or("linear_num_value_heads", 32)?,
        key_dim: config.size_or("linear_key_head_dim", 128)?,
        value_dim: config.size_or("linear_value_head_dim", 128)?,
        taps: config.size_or("linear_conv_kernel_dim", 4)?,
        activation: config.activation("hidden_act", "silu")?,
        norm: NormPlan { class: "Qwen3NextRMSNormGated", ..norm },
    };
    if plan.activation != Activation::Silu {
        return Err(Error::config(config.text("hidden_act")?.unwrap_or_default(), "silu").at("config.json: hidden_act"));
    }
    if !plan.value_heads.is_multiple_of(plan.key_heads) {
        let error = Error::config(plan.key_heads, format!("a divisor of the {} value heads", plan.value_heads));
        return Err(error.at("config.json: linear_num_key_heads"));
    }
    Ok(plan)
}

/// How a layer mixes positions.
#[derive(Clone, Copy)]
enum Kind {
    Attention,
    Delta,
}

fn kinds(config: &Config<'_>, n_layers: usize) -> Result<Vec<Kind>> {
    let interval = config.size_or("full_attention_interval", 4)?;
    let Some(types) = config.texts("layer_types")? else {
        let kind = |idx: usize| if (idx + 1).is_multiple_of(interval) { Kind::Attention } else { Kind::Delta };
        return Ok((0..n_layers).map(kind).collect());
    };
    if types.len() < n_layers {
        let error = Error::config(format_args!("{} entries", types.len()), format!("{n_layers}, one a layer"));
        return Err(error.at("config.json: layer_types"));
    }
    let kind = |kind: &&str| match *kind {
        "full_attention" => Ok(Kind::Attention),
        "linear_attention" => Ok(Kind::Delta),
        found => Err(Error::config(found, "full_attention or linear_attention").at("config.json: layer_types")),
    };
    types.iter().take(n_layers).map(kind).collect()
}
