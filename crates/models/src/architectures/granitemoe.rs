//! Granite with routed experts: softmax over the chosen, all experts of a layer in one tensor.

use compressed_tensors::experts::ExpertLayout;
use tensor::Scores;

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    Classes, Defaults, ExpertNames, Factor, Feed, Item, LayerPlan, Slot, Stacked, causal_lm, decoder_layer,
    plain_attention, plain_causal, plain_mlp, plain_moe,
};

const CLASSES: Classes = classes!("GraniteMoe");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-6, rope_theta: 10_000.0, tied: Flag::Off };
const LISTED: &[Item] = &[
    Item::Mixer("self_attn"),
    Item::Norm(Slot::BeforeMixer, "input_layernorm"),
    Item::Norm(Slot::BeforeFeed, "post_attention_layernorm"),
    Item::Feed("block_sparse_moe"),
];

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "granitemoe", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    plan.embedding.factor = Factor::Exact(config.number_or("embedding_multiplier", 1.0)? as f32);
    plan.logits_factor = Some((1.0 / config.number_or("logits_scaling", 1.0)?) as f32);
    let mut attention = plain_attention(config, "GraniteMoeAttention")?;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    attention.scale = config.number_or("attention_multiplier", 1.0)? as f32;
    let residual_factor = Some(config.number_or("residual_multiplier", 1.0)? as f32);
    let mlp = plain_mlp(config, "GraniteMoeMLP")?;
    let names = ExpertNames {
        block: "GraniteMoeMoE",
        router: ("router", "GraniteMoeTopKRouter"),
        experts: "GraniteMoeExperts",
        expert: "GraniteMoeMLP",
    };
    let mut moe = plain_moe(config, names, &mlp, "num_local_experts", mlp.intermediate)?;
    moe.route.scores = Scores::SoftmaxOfChosen;
    moe.stacked = Stacked { layout: ExpertLayout::Rows, tensors: ["input_linear.weight", "output_linear.weight"] };
    moe.check()?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Experts(moe.clone()));
        decoder_layer(b, name, CLASSES.layer, &LayerPlan { listed: LISTED, residual_factor, ..layer })
    })?;
    b.rename(|name| name.strip_suffix("router.weight").map(|prefix| format!("{prefix}router.layer.weight")));
    Ok(b)
}
