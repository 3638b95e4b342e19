//! Mixtral: Mistral with routed experts, whose weights are made to sum to one.

use tensor::Normalize;

use super::{Architecture, classes};
use crate::build::Builder;
use crate::config::{Config, Flag};
use crate::error::Result;
use crate::layers::{
    Classes, Defaults, ExpertNames, Feed, LayerPlan, causal_lm, decoder_layer, plain_attention, plain_causal,
    plain_mlp, plain_moe,
};

const CLASSES: Classes = classes!("Mixtral");
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 1_000_000.0, tied: Flag::Off };

/// Names of an expert's linears, and those of its first release.
const LINEARS: [(&str, &str); 3] = [("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")];

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "mixtral", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let mut b = Builder::new(CLASSES.causal_lm);
    let plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let mut attention = plain_attention(config, "MixtralAttention")?;
    attention.window = config.size_of("sliding_window")?;
    let mlp = plain_mlp(config, "MixtralMLP")?;
    let names = ExpertNames {
        block: "MixtralSparseMoeBlock",
        router: ("gate", "MixtralTopKRouter"),
        experts: "MixtralExperts",
        expert: "MixtralMLP",
    };
    let mut moe = plain_moe(config, names, &mlp, "num_local_experts", mlp.intermediate)?;
    moe.route.normalize = Normalize::ToOne;
    moe.check()?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| {
        let layer = LayerPlan::pre_norm(norm, attention.clone(), Feed::Experts(moe.clone()));
        decoder_layer(b, name, CLASSES.layer, &layer)
    })?;
    b.rename(|name| name.contains(".mlp.").then(|| name.replace(".mlp.", ".block_sparse_moe.")));
    b.alias(|name| {
        let (new, old) = LINEARS.iter().find(|(new, _)| name.contains(&format!(".{new}.")))?;
        Some(name.replace(new, old))
    });
    Ok(b)
}
