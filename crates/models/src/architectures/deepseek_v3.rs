//! DeepSeek V3: attention over latents, experts chosen by corrected sigmoids among groups, beside shared ones.

use tensor::Pairing;

use super::{Architecture, classes};
use crate::build::Builder;
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    Classes, Defaults, ExpertNames, Feed, LayerPlan, Mixer, causal_lm, corrected_moe, decoder_layer, latent_plan,
    plain_causal, plain_mlp,
};
use crate::rope::Frequencies;

const CLASSES: Classes = classes!("DeepseekV3");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-6, rope_theta: 10_000.0, tied: Flag::Off };

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "deepseek_v3", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let is_interleaved = config.flag_or("rope_interleave", Flag::On)?;
    let pairing = if is_interleaved { Pairing::Interleaved } else { Pairing::Half };
    let latent = latent_plan(config, "DeepseekV3Attention", plan.norm, pairing)?;
    plan.frequencies = vec![Frequencies::from_config(config, latent.rope_dim, DEFAULTS.rope_theta)?];
    let mlp = plain_mlp(config, "DeepseekV3MLP")?;
    let names = ExpertNames {
        block: "DeepseekV3MoE",
        router: ("gate", "DeepseekV3TopkRouter"),
        experts: "DeepseekV3Experts",
        expert: "DeepseekV3MLP",
    };
    let mut moe = corrected_moe(config, names, &mlp, [8, 4])?;
    moe.route.factor = config.number_or("routed_scaling_factor", 2.5)? as f32;
    let n_dense = config.whole_or("first_k_dense_replace", 3)?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let feed = if idx >= n_dense { Feed::Experts(moe.clone()) } else { Feed::Gated(mlp.clone()) };
        let layer = LayerPlan::with(norm, latent.width, Mixer::Latent(latent.clone()), feed);
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    Ok(b)
}
