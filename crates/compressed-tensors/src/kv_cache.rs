//! Quantized attention: which modules have a cache, how many heads, which scales.

use serde_json::Value;

use crate::{
    ErrorKind, Result,
    args::{QuantizationArgs, QuantizationStrategy},
    scheme::QuantizationScheme,
    wire::{self, refuse},
};

/// Local names of the scales of an attention module: keys, values, queries.
pub const KV_SCALES: [&str; 3] = ["k_scale", "v_scale", "q_scale"];

/// Whether a class with these children is attention that keeps keys and values.
///
/// The reference also asks whether its forward takes a cache, which every attention block with these
/// projections does.
pub fn is_cached_attention(class: &str, children: &[&str]) -> bool {
    let projections = ["k_proj", "v_proj", "qkv_proj", "kv_b_proj"];
    class.to_ascii_lowercase().contains("attention") && projections.iter().any(|it| children.contains(it))
}

/// The scheme of an attention module whose cache is quantized by `args`.
pub fn cache_scheme(args: QuantizationArgs) -> QuantizationScheme {
    QuantizationScheme { input_activations: Some(args), ..QuantizationScheme::unquantized(Vec::new()) }
}

/// Refuses an attention scheme with weights or outputs, or without inputs.
///
/// # Errors
/// `Unsupported`.
pub fn check_attention_scheme(scheme: &QuantizationScheme) -> Result<()> {
    let what = if scheme.input_activations.is_none() {
        "an attention scheme without `input_activations`"
    } else if scheme.weights.is_some() {
        "an attention scheme with `weights`"
    } else if scheme.output_activations.is_some() {
        "an attention scheme with `output_activations`"
    } else {
        return Ok(());
    };
    Err(ErrorKind::Unsupported { what: what.to_owned() }.into())
}

/// Shape of the scale of queries, keys or values with this many heads.
pub fn attention_scale_shape(args: &QuantizationArgs, n_heads: usize) -> Vec<usize> {
    match args.strategy {
        QuantizationStrategy::AttnHead => vec![n_heads, 1, 1],
        _ => vec![1],
    }
}

/// Heads of an attention block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadCounts {
    /// Of queries.
    pub n_heads: usize,
    /// Of keys and values.
    pub n_kv_heads: usize,
    /// Width of one.
    pub head_dim: usize,
}

impl HeadCounts {
    /// Reads a text model's `config.json`: what is missing follows from `hidden_size`.
    ///
    /// # Errors
    /// `InvalidField` for a number that is missing, no positive integer, or does not divide.
    pub fn from_config(config: &Value) -> Result<Self> {
        let map = wire::object("config", config)?;
        let count = |key: &str| {
            wire::given(map, key)
                .map(|it| match wire::integer(key, it).map(usize::try_from) {
                    Ok(Ok(n @ 1..)) => Ok(n),
                    _ => Err(refuse(key, it, "a positive integer")),
                })
                .transpose()
        };
        let needed = |key: &str| count(key)?.ok_or_else(|| refuse(key, &Value::Null, "a positive integer"));
        let share = |by: usize, key: &str| {
            let hidden = needed("hidden_size")?;
            let fits = hidden.is_multiple_of(by);
            fits.then_some(hidden / by)
                .ok_or_else(|| refuse("hidden_size", &hidden.into(), format!("a multiple of `{key}` ({by})")))
        };
        let n_kv_heads = needed("num_key_value_heads")?;
        let (n_heads, head_dim) = match (count("num_attention_heads")?, count("head_dim")?) {
            (Some(n_heads), Some(head_dim)) => (n_heads, head_dim),
            (Some(n_heads), None) => (n_heads, share(n_heads, "num_attention_heads")?),
            (None, Some(head_dim)) => (share(head_dim, "head_dim")?, head_dim),
            (None, None) => return Err(refuse("num_attention_heads", &Value::Null, "a positive integer")),
        };
        Ok(Self { n_heads, n_kv_heads, head_dim })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn attention_is_known_by_its_class_and_a_key_or_value_projection() {
        assert!(is_cached_attention("LlamaAttention", &["q_proj", "k_proj"]));
        assert!(is_cached_attention("selfattentionlayer", &["kv_b_proj"]));
        assert!(!is_cached_attention("LlamaMLP", &["k_proj"]));
        assert!(!is_cached_attention("LlamaAttention", &["c_attn"]));
    }

    #[test]
    fn missing_head_counts_follow_from_the_hidden_size() {
        let counts = |value: Value| HeadCounts::from_config(&value);
        let full = HeadCounts { n_heads: 4, n_kv_heads: 2, head_dim: 32 };
        let base = json!({"hidden_size": 128, "num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 32});
        for absent in [None, Some("head_dim"), Some("num_attention_heads")] {
            let mut config = base.clone();
            absent.map(|key| config.as_object_mut().unwrap().remove(key));
            assert_eq!(counts(config).unwrap(), full, "{absent:?}");
        }
        let error = counts(json!({"hidden_size": 128, "num_attention_heads": 4})).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidField { field, .. } if field == "num_key_value_heads"));
        let error = counts(json!({"hidden_size": 130, "num_key_value_heads": 2, "num_attention_heads": 4}));
        assert!(matches!(error.unwrap_err().kind(), ErrorKind::InvalidField { field, .. } if field == "hidden_size"));
    }

    #[test]
    fn an_attention_scheme_has_inputs_and_nothing_else() {
        let args = QuantizationArgs::default();
        assert!(check_attention_scheme(&cache_scheme(args.clone())).is_ok());
        assert!(check_attention_scheme(&QuantizationScheme::unquantized(vec![])).is_err());
        for with_more in [
            QuantizationScheme { weights: Some(args.clone()), ..cache_scheme(args.clone()) },
            QuantizationScheme { output_activations: Some(args.clone()), ..cache_scheme(args.clone()) },
        ] {
            assert!(check_attention_scheme(&with_more).is_err());
        }
    }
}
