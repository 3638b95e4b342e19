//! DeepSeek V2: attention over latents, routed experts chosen by softmax beside shared ones.

use tensor::{GroupScore, Groups, Pairing};

use super::{Architecture, classes};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::error::{Error, Result};
use crate::layers::{
    Classes, Defaults, ExpertNames, Feed, LayerPlan, Mixer, MlpPlan, ModuleOrder, RouterType, SharedPlan, causal_lm,
    decoder_layer, every_layer, expect, latent_plan, plain_causal, plain_mlp, plain_moe, refuse,
};
use crate::rope::Frequencies;

const CLASSES: Classes = classes!("DeepseekV2");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-6, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "deepseek_v2", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let latent = latent_plan(config, "DeepseekV2Attention", plan.norm, Pairing::Interleaved)?;
    plan.frequencies = vec![Frequencies::from_config(config, latent.rope_dim, DEFAULTS.rope_theta)?];
    let mut mlp = plain_mlp(config, "DeepseekV2MLP")?;
    mlp.bias = Bias::from_flag(config.flag_or("mlp_bias", Flag::Off)?);
    let names = ExpertNames {
        block: "DeepseekV2Moe",
        router: ("gate", "DeepseekV2TopkRouter"),
        experts: "DeepseekV2Experts",
        expert: "DeepseekV2MLP",
    };
    refuse(config, "norm_topk_prob")?;
    expect(config, "scoring_func", "softmax")?;
    every_layer(config)?;
    let intermediate = config.size_or("moe_intermediate_size", 1407)?;
    let mut moe = plain_moe(config, names, &mlp, "n_routed_experts", intermediate)?;
    (moe.order, moe.router_type) = (ModuleOrder::ExpertsFirst, RouterType::Single);
    moe.route.factor = config.number_or("routed_scaling_factor", 1.0)? as f32;
    moe.route.groups = match config.text("topk_method")?.unwrap_or("greedy") {
        "greedy" => None,
        "group_limited_greedy" => {
            let (n_groups, n_chosen) = (config.size("n_group")?, config.size("topk_group")?);
            Some(Groups { n_groups, n_chosen, by: GroupScore::Best })
        }
        found => {
            return Err(Error::config(found, "greedy or group_limited_greedy").at("config.json: topk_method"));
        }
    };
    let intermediate = intermediate * config.count("n_shared_experts", 1 << 12)?;
    let shared = MlpPlan { intermediate, ..mlp.clone() };
    moe.shared = Some(SharedPlan { name: "shared_experts", mlp: shared, gate: None });
    moe.check()?;
    let n_dense = config.whole_or("first_k_dense_replace", 0)?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let feed = if idx >= n_dense { Feed::Experts(moe.clone()) } else { Feed::Gated(mlp.clone()) };
        let layer = LayerPlan::with(norm, latent.width, Mixer::Latent(latent.clone()), feed);
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
