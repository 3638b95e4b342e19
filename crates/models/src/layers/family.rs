//! What the config keys of the Llama family say in common.

use tensor::Pairing;

use super::decoder::{CausalPlan, Classes, Head};
use super::{AttentionPlan, EmbeddingPlan, Factor, HeadNorms, MlpPlan, NormKind, NormPlan};
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
        width: config.size("hidden_size")?,
        heads,
        kv_heads,
        head_dim,
        qkv_bias: Bias::Absent,
        o_bias: Bias::Absent,
        norms: HeadNorms::Absent,
        scale: inverse_root(head_dim as f64),
        softcap: None,
        window: None,
        rope: Some(Pairing::Half),
    })
}

/// `1 / sqrt(x)`, rounded once.
pub(crate) fn inverse_root(x: f64) -> f32 {
    (1.0 / x.sqrt()) as f32
}

/// A gated feed-forward block without biases.
pub(crate) fn plain_mlp(config: &Config<'_>, class: &'static str) -> Result<MlpPlan> {
    Ok(MlpPlan {
        class,
        width: config.size("hidden_size")?,
        intermediate: config.size("intermediate_size")?,
        activation: config.activation("hidden_act", "silu")?,
        bias: Bias::Absent,
    })
}

/// The model around the layers; all channels of a head turn.
pub(crate) fn plain_causal(config: &Config<'_>, classes: Classes, defaults: Defaults) -> Result<CausalPlan> {
    let is_tied = config.flag_or("tie_word_embeddings", defaults.tied)?;
    Ok(CausalPlan {
        classes,
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
        frequencies: vec![Frequencies::from_config(config, config.head_dim()?, defaults.rope_theta)?],
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

/// Refuses a switch that nobody computes.
pub(crate) fn refuse(config: &Config<'_>, key: &str) -> Result<()> {
    match config.get(key) {
        None => Ok(()),
        Some(value) if value.as_bool() == Some(false) => Ok(()),
        Some(value) => Err(Error::config(value, "nothing or false").at(format_args!("config.json: {key}"))),
    }
}
