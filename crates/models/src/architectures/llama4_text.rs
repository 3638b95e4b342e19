//! Llama 4, text: layers that see a chunk and turn, layers that see all and do not; one routed expert beside a shared one.

use compressed_tensors::experts::ExpertLayout;
use tensor::{Pairing, Scores};

use super::Architecture;
use crate::build::{Bias, Builder};
use crate::config::{Config, Dialect, Flag};
use crate::error::{Error, Result};
use crate::layers::{
    AttentionNames, Classes, Defaults, ExpertNames, Feed, HeadNorms, Item, LLAMA_NAMES, LayerPlan, MlpPlan,
    ModuleOrder, NormKind, NormPlan, STACKED_ROWS, SharedPlan, Slot, Stacked, Weighted, causal_lm, decoder_layer,
    plain_attention, plain_causal, plain_mlp, plain_moe,
};

const CLASSES: Classes = Classes {
    causal_lm: "Llama4ForCausalLM",
    model: "Llama4TextModel",
    layer: "Llama4TextDecoderLayer",
    norm: "Llama4TextRMSNorm",
    rotary: "Llama4TextRotaryEmbedding",
};
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 500_000.0, tied: Flag::Off };
const DIALECT: Dialect = Dialect { names: &[], head_dim: Some(128) };
const NAMES: AttentionNames = AttentionNames { norms: ["qk_norm", ""], ..LLAMA_NAMES };
const LISTED: &[Item] = &[
    Item::Mixer("self_attn"),
    Item::Feed("feed_forward"),
    Item::Norm(Slot::BeforeMixer, "input_layernorm"),
    Item::Norm(Slot::BeforeFeed, "post_attention_layernorm"),
];

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "llama4_text", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let config = &config.speaking(&DIALECT);
    let mut b = Builder::new(CLASSES.causal_lm);
    let plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let layers = layers(config, plan.n_layers)?;
    let mut attention = plain_attention(config, "Llama4TextAttention")?;
    attention.names = NAMES;
    attention.qkv_bias = Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?);
    attention.o_bias = attention.qkv_bias;
    let qk_norm = NormPlan { class: "Llama4TextL2Norm", eps: plan.norm.eps, kind: NormKind::RmsPlain };
    let has_qk_norm = config.flag_or("use_qk_norm", Flag::On)?;
    let growth = match config.flag_or("attn_temperature_tuning", Flag::On)? {
        true => {
            let period = config.number_or("floor_scale", 8192.0)? as f32;
            Some([period, config.number_or("attn_scale", 0.1)? as f32])
        }
        false => None,
    };
    let mut mlp = plain_mlp(config, "Llama4TextMLP")?;
    mlp.act = "activation_fn";
    let dense = MlpPlan { intermediate: config.size_or("intermediate_size_mlp", 16384)?, ..mlp.clone() };
    let names = ExpertNames {
        block: "Llama4TextMoe",
        router: ("router", "Llama4Router"),
        experts: "Llama4TextExperts",
        expert: "Llama4TextMLP",
    };
    let mut moe = plain_moe(config, names, &mlp, "num_local_experts", mlp.intermediate)?;
    moe.route.scores = Scores::SigmoidOfChosen;
    (moe.order, moe.weighted) = (ModuleOrder::ExpertsFirst, Weighted::Inputs);
    moe.shared = Some(SharedPlan { name: "shared_expert", mlp, gate: None });
    moe.stacked = Stacked { layout: ExpertLayout::Columns, ..STACKED_ROWS };
    moe.check()?;
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, idx, name| {
        let Kind { turns, chunk, is_sparse } = layers[idx];
        let mut attention = attention.clone();
        attention.chunk = chunk;
        attention.rope = turns.then_some(Pairing::Interleaved);
        attention.growth = growth.filter(|_| !turns);
        if has_qk_norm && turns {
            attention.norms = HeadNorms::AfterRotation(qk_norm);
        }
        let feed = if is_sparse { Feed::Experts(moe.clone()) } else { Feed::Gated(dense.clone()) };
        let layer = LayerPlan::pre_norm(norm, attention, feed);
        decoder_layer(b, name, CLASSES.layer, &LayerPlan { listed: LISTED, ..layer })
    })?;
    Ok(b)
}

/// What a layer does.
#[derive(Clone, Copy)]
struct Kind {
    turns: bool,
    chunk: Option<usize>,
    is_sparse: bool,
}

fn layers(config: &Config<'_>, n_layers: usize) -> Result<Vec<Kind>> {
    let interval = config.size_or("no_rope_layer_interval", 4)?;
    let turning = config.sizes("no_rope_layers")?;
    let types = config.texts("layer_types")?;
    let step = config.size_or("interleave_moe_layer_step", 1)?;
    let sparse = match config.get("moe_layers") {
        Some(_) => Some(config.sizes("moe_layers")?),
        None => None,
    };
    let chunk_size = config.size_or("attention_chunk_size", 8192)?;
    let kind = |idx: usize| {
        let is_other = (idx + 1).is_multiple_of(interval);
        let turns = if turning.is_empty() { Some(!is_other) } else { turning.get(idx).map(|&it| it != 0) };
        let Some(turns) = turns else {
            return Err(Error::config(turning.len(), format!("{n_layers} entries")).at("config.json: no_rope_layers"));
        };
        let implied = if turns { "chunked_attention" } else { "full_attention" };
        let chunk = match types.as_ref().map_or(Some(implied), |types| types.get(idx).copied()) {
            Some("chunked_attention") => Some(chunk_size),
            Some("full_attention") => None,
            found => {
                let found = found.unwrap_or("nothing");
                let error = Error::config(found, format!("chunked_attention or full_attention for {n_layers} layers"));
                return Err(error.at("config.json: layer_types"));
            }
        };
        let is_sparse = sparse.as_ref().map_or((idx + 1).is_multiple_of(step), |sparse| sparse.contains(&idx));
        Ok(Kind { turns, chunk, is_sparse })
    };
    (0..n_layers).map(kind).collect()
}
