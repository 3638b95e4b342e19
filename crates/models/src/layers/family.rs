//! What the config keys of the Llama family say in common.

use tensor::elementary::pow_f64;
use tensor::{GroupScore, Groups, Normalize, Pairing, Presence, Route, Scores};

use super::{
    AttentionPlan, CausalPlan, Classes, EmbeddingPlan, ExpertNames, Factor, Gating, Head, HeadNorms, LLAMA_NAMES,
    LLAMA_PARTS, LinearKind, MlpPlan, ModuleOrder, MoePlan, NormKind, NormPlan, RouterType, STACKED_ROWS, SharedPlan,
    Source, Weighted,
};
use crate::build::Bias;
use crate::config::{Config, Flag};
use crate::error::{Error, Result};
use crate::rope::Frequencies;

/// Causal attention over all positions, without biases or norms of heads.
pub(crate) fn plain_attention(config: &Config<'_>, class: &'static str) -> Result<AttentionPlan> {
    let heads = config.size("num_attention_heads")?;
    let kv_heads = config.size_or("num_key_value_heads", heads)?;
    if !heads.is_multiple_of(kv_heads) {
        let error = Error::config(kv_heads, format!("a divisor of num_attention_heads {heads}"));
        return Err(error.at("config.json: num_key_value_heads"));
    }
    let head_dim = config.head_dim()?;
    Ok(AttentionPlan {
        class,
        names: LLAMA_NAMES,
        source: Source::Apart,
        linear: LinearKind::Linear,
        width: config.size("hidden_size")?,
        heads,
        kv_heads,
        head_dim,
        qkv_bias: Bias::Absent,
        o_bias: Bias::Absent,
        norms: HeadNorms::Absent,
        gate: Presence::Absent,
        scale: inverse_root(head_dim as f64),
        softcap: None,
        window: None,
        rope: Some(Pairing::Half),
        sinks: Presence::Absent,
        chunk: None,
        growth: None,
    })
}

/// `1 / sqrt(x)`, rounded once.
pub(crate) fn inverse_root(x: f64) -> f32 {
    (1.0 / x.sqrt()) as f32
}

/// A gated feed-forward block without biases.
pub(crate) fn plain_mlp(config: &Config<'_>, class: &'static str) -> Result<MlpPlan> {
    mlp_of(config, class, config.size("intermediate_size")?, "silu")
}

/// A feed-forward block of `intermediate` channels without biases; `activation` where the config names none.
pub(crate) fn mlp_of(
    config: &Config<'_>,
    class: &'static str,
    intermediate: usize,
    activation: &'static str,
) -> Result<MlpPlan> {
    Ok(MlpPlan {
        class,
        width: config.size("hidden_size")?,
        intermediate,
        activation: config.activation("hidden_act", activation)?,
        bias: Bias::Absent,
        act: "act_fn",
        act_class: config.activation_class("hidden_act", activation)?,
        linear: LinearKind::Linear,
        dropout: None,
    })
}

/// Slopes of ALiBi for a number of heads: powers of `2^(-8 / n)` for the power of two below it, then every second of those of
/// twice as many.
pub(crate) fn alibi_slopes(heads: usize) -> Vec<f32> {
    let below = 1usize << heads.max(1).ilog2();
    let power = |of: usize, exponent: usize| {
        let base = pow_f64(2.0, -8.0 / of as f64) as f32;
        pow_f64(f64::from(base), exponent as f64) as f32
    };
    let first = (1..=below).map(|exponent| power(below, exponent));
    first.chain((0..heads.saturating_sub(below)).map(|idx| power(2 * below, 2 * idx + 1))).collect()
}

/// Experts like `mlp` of `intermediate` channels: softmax over all of `count` experts, then the choice.
pub(crate) fn plain_moe(
    config: &Config<'_>,
    names: ExpertNames,
    mlp: &MlpPlan,
    count: &str,
    intermediate: usize,
) -> Result<MoePlan> {
    let n_experts = config.count(count, 1 << 12)?;
    Ok(MoePlan {
        names,
        width: mlp.width,
        intermediate,
        n_experts,
        route: Route::new(config.count("num_experts_per_tok", 1 << 12)?, Scores::Softmax, Normalize::No),
        router_bias: Bias::Absent,
        router_type: RouterType::Model,
        gating: Gating::Plain(mlp.activation),
        bias: Bias::Absent,
        weighted: Weighted::Results,
        order: ModuleOrder::RouterFirst,
        shared: None,
        stacked: STACKED_ROWS,
    })
}

/// Experts chosen by sigmoids with a correction among the best groups, beside shared ones (DeepSeek V3); `groups`: how many
/// there are and how many are chosen where the config does not say.
pub(crate) fn corrected_moe(
    config: &Config<'_>,
    names: ExpertNames,
    mlp: &MlpPlan,
    groups: [usize; 2],
) -> Result<MoePlan> {
    let intermediate = config.size("moe_intermediate_size")?;
    let mut moe = plain_moe(config, names, mlp, "n_routed_experts", intermediate)?;
    (moe.order, moe.router_type) = (ModuleOrder::ExpertsFirst, RouterType::Single);
    moe.route.scores = Scores::Sigmoid;
    moe.route.normalize = Normalize::from_flag(config.flag_or("norm_topk_prob", Flag::On)?);
    moe.route.correction = Presence::Given;
    moe.route.groups = Some(Groups {
        n_groups: config.size_or("n_group", groups[0])?,
        n_chosen: config.size_or("topk_group", groups[1])?,
        by: GroupScore::SumOfTwo,
    });
    expect(config, "scoring_func", "sigmoid")?;
    expect(config, "topk_method", "noaux_tc")?;
    every_layer(config)?;
    let shared = intermediate * config.count("n_shared_experts", 1 << 12)?;
    moe.shared =
        Some(SharedPlan { name: "shared_experts", mlp: MlpPlan { intermediate: shared, ..mlp.clone() }, gate: None });
    moe.check()?;
    Ok(moe)
}

/// The model around the layers; all channels of a head turn unless the config says how many.
pub(crate) fn plain_causal(config: &Config<'_>, classes: Classes, defaults: Defaults) -> Result<CausalPlan> {
    let is_tied = config.flag_or("tie_word_embeddings", defaults.tied)?;
    Ok(CausalPlan {
        classes,
        nesting: config.nesting(),
        body: "model",
        inner: None,
        listed: LLAMA_PARTS,
        positions: None,
        projected: None,
        width: config.size("hidden_size")?,
        alibi: None,
        head_bias: Bias::Absent,
        embedding: EmbeddingPlan {
            class: "Embedding",
            vocab_size: config.size("vocab_size")?,
            width: config.size("hidden_size")?,
            factor: Factor::One,
        },
        n_layers: config.count("num_hidden_layers", 1 << 12)?,
        norm: NormPlan {
            class: classes.norm,
            eps: config.number_or("rms_norm_eps", defaults.norm_eps)?,
            kind: NormKind::Rms,
        },
        frequencies: vec![Frequencies::from_config(
            config,
            config.rotary_dim(config.head_dim()?, 1.0)?,
            defaults.rope_theta,
        )?],
        table_of_layer: Vec::new(),
        head: if is_tied { Head::Tied } else { Head::Own },
        logits_factor: None,
        logits_cap: None,
    })
}

/// What a config class of Hugging Face fills in for keys that are absent.
#[derive(Clone, Copy)]
pub(crate) struct Defaults {
    pub(crate) norm_eps: f64,
    pub(crate) rope_theta: f64,
    pub(crate) tied: Flag,
}

/// Per layer the keys that a query sees at most, from `layer_types`, `sliding_window` and Qwen's older switches.
pub(crate) fn qwen_windows(config: &Config<'_>, n_layers: usize) -> Result<Vec<Option<usize>>> {
    let window = match config.flag_or("use_sliding_window", Flag::Off)? {
        true => config.size_of("sliding_window")?,
        false => None,
    };
    if let Some(types) = config.texts("layer_types")? {
        return windows_of(&types, window, n_layers);
    }
    let full_layers = config.size_or("max_window_layers", 28)?;
    Ok((0..n_layers).map(|idx| window.filter(|_| idx >= full_layers)).collect())
}

/// Windows by `layer_types`.
pub(crate) fn windows_of(types: &[&str], window: Option<usize>, n_layers: usize) -> Result<Vec<Option<usize>>> {
    if types.len() < n_layers {
        let error = Error::config(format_args!("{} entries", types.len()), format!("{n_layers}, one a layer"));
        return Err(error.at("config.json: layer_types"));
    }
    let window_of = |kind: &&str| match *kind {
        "full_attention" => Ok(None),
        "sliding_attention" => match window {
            Some(width) => Ok(Some(width)),
            None => Err(Error::config("nothing", "a positive integer").at("config.json: sliding_window")),
        },
        found => Err(Error::config(found, "full_attention or sliding_attention").at("config.json: layer_types")),
    };
    types.iter().take(n_layers).map(window_of).collect()
}

/// The kinds of the layers: `layer_types`, else every `period`-th is full and the others slide.
pub(crate) fn layer_types<'a>(config: &Config<'a>, n_layers: usize, period: usize) -> Result<Vec<&'a str>> {
    let kind =
        |idx: usize| if (idx + 1).is_multiple_of(period.max(1)) { "full_attention" } else { "sliding_attention" };
    Ok(config.texts("layer_types")?.unwrap_or_else(|| (0..n_layers).map(kind).collect()))
}

/// Refuses any choice but one.
pub(crate) fn expect(config: &Config<'_>, key: &str, known: &str) -> Result<()> {
    match config.text(key)?.filter(|found| *found != known) {
        Some(found) => Err(Error::config(found, known).at(format_args!("config.json: {key}"))),
        None => Ok(()),
    }
}

/// Refuses experts in some of the layers behind the first dense ones.
pub(crate) fn every_layer(config: &Config<'_>) -> Result<()> {
    let key = "moe_layer_freq";
    match config.get(key).filter(|found| found.as_u64() != Some(1)) {
        Some(found) => Err(Error::config(found, "1").at(format_args!("config.json: {key}"))),
        None => Ok(()),
    }
}

/// Refuses a switch that nobody computes.
pub(crate) fn refuse(config: &Config<'_>, key: &str) -> Result<()> {
    match config.get(key) {
        None => Ok(()),
        Some(value) if value.as_bool() == Some(false) => Ok(()),
        Some(value) => Err(Error::config(value, "nothing or false").at(format_args!("config.json: {key}"))),
    }
}
