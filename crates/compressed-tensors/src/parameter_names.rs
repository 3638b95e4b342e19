//! Names of parameters that the format gives a meaning.

/// Prefix of the tensors of multi-token-prediction blocks.
pub const MTP_PREFIX: &str = "mtp";

/// File that such tensors are kept in beside the shards of a model without them.
pub const MTP_FILE: &str = "model_mtp.safetensors";

/// What keeps such blocks unquantized, as an entry of `ignore`.
pub const MTP_IGNORE: &str = "re:^mtp.*";

/// Whether a tensor is a scale or a zero point, by the end of its name.
pub fn is_quantization_param(name: &str) -> bool {
    name.ends_with("_scale") || name.ends_with("zero_point")
}

/// Whether a local name is a parameter that quantization gives to a module, and that is removed when the
/// module is quantized anew.
pub fn is_qparam(local: &str) -> bool {
    match local.split_once('_') {
        Some(("q" | "k" | "v", "scale")) => true,
        Some(("input" | "weight" | "output", rest)) => {
            matches!(rest, "global_scale" | "scale" | "shape" | "zero_point")
        }
        _ => false,
    }
}

/// Whether a tensor belongs to a multi-token-prediction block.
pub fn is_mtp(name: &str) -> bool {
    name.starts_with(MTP_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_and_zero_points_are_told_by_their_ends() {
        for name in ["l.weight_scale", "l.k_scale", "l.weight_zero_point", "zero_point"] {
            assert!(is_quantization_param(name), "{name}");
        }
        for name in ["l.weight", "l.weight_shape", "l.weight_scale_inv", "scale"] {
            assert!(!is_quantization_param(name), "{name}");
        }
    }

    #[test]
    fn parameters_of_quantization_are_told_by_their_whole_name() {
        let stems = ["input", "weight", "output"];
        for stem in stems {
            for rest in ["global_scale", "scale", "shape", "zero_point"] {
                assert!(is_qparam(&format!("{stem}_{rest}")));
            }
        }
        for name in ["q_scale", "k_scale", "v_scale"] {
            assert!(is_qparam(name));
        }
        for name in ["weight", "bias", "weight_packed", "k_zero_point", "q_norm"] {
            assert!(!is_qparam(name), "{name}");
        }
        assert!(is_mtp("mtp.layers.0.weight") && !is_mtp("model.mtp.weight"));
    }
}
