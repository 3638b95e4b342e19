//! Modules that engines expect in full precision, ignored unless the user includes them.

/// A reason to leave a module alone, with the pattern that finds it.
#[derive(Clone, Copy, Debug)]
pub struct DefaultIgnore {
    /// What kind of module it is, for the report.
    pub reason: &'static str,
    /// A `re:` pattern over module names.
    pub pattern: &'static str,
}

/// Patterns over on-disk module names, tried in order; the first that matches names the reason.
pub const DEFAULT_IGNORE: &[DefaultIgnore] = &[
    DefaultIgnore {
        reason: "multi-token-prediction head",
        pattern: r"re:(.*\.)?(mtp|nextn|mtp_layers|mtp_block)(\.|$)",
    },
    DefaultIgnore {
        reason: "vision or audio tower",
        pattern: r"re:(.*\.)?(visual|vision|vit|vision_[a-z_]*|image_[a-z_]*|img_[a-z_]*|audio|audio_[a-z_]*|speech_[a-z_]*)(\.|$)",
    },
    DefaultIgnore {
        reason: "projector between modalities",
        pattern: r"re:(.*\.)?([a-z_]*projector|mm_[a-z_]*|multi_modal_[a-z_]*|embed_vision|embed_audio|aligner|connector)(\.|$)",
    },
    DefaultIgnore { reason: "embedding", pattern: r"re:(.*\.)?([a-z_]*embed[a-z_0-9]*|wte|wpe|tok_embeddings)$" },
    DefaultIgnore { reason: "output head", pattern: r"re:(.*\.)?(lm_head|embed_out|output|score|classifier|v_head)$" },
    DefaultIgnore {
        reason: "router or gate",
        pattern: r"re:(.*\.)?(gate|router|[a-z_]*router|shared_expert_gate|gate\.wg|(router|gate)\.[a-z_]+)$",
    },
    DefaultIgnore { reason: "norm", pattern: r"re:(.*\.)?([a-z_0-9]*norm[a-z_0-9]*|ln_[a-z0-9]+|ln)$" },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The reason for which `module` is ignored.
    fn check(module: &str) -> Option<&'static str> {
        DEFAULT_IGNORE
            .iter()
            .find(|it| {
                let pattern = it.pattern.strip_prefix("re:").unwrap();
                regex::Regex::new(&format!("^(?:{pattern})")).unwrap().is_match(module)
            })
            .map(|it| it.reason)
    }

    #[test]
    fn linears_of_decoders_are_not_ignored() {
        for module in [
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.mlp.gate_proj",
            "model.layers.0.mlp.gate_up_proj",
            "model.layers.0.mlp.experts.3.down_proj",
            "model.layers.0.block_sparse_moe.experts.7.w1",
            "transformer.h.0.attn.c_attn",
            "gpt_neox.layers.0.attention.query_key_value",
            "model.layers.3.self_attn.kv_a_proj_with_mqa",
            "model.layers.0.mlp.shared_expert.gate_proj",
            "model.decoder.layers.0.fc1",
            "model.layers.0.linear_attn.in_proj_qkvz",
            "model.language_model.layers.0.mlp.up_proj",
            "model.layers.0.attention.output.dense",
            "model.layers.1.mixer.out_proj",
            "model.layers.0.self_attn.g_proj.gate_up",
        ] {
            assert_eq!(check(module), None, "{module}");
        }
    }

    #[test]
    fn what_engines_keep_in_full_precision_is_ignored_with_its_reason() {
        for (module, reason) in [
            ("model.embed_tokens", "embedding"),
            ("backbone.embeddings", "embedding"),
            ("transformer.wte", "embedding"),
            ("lm_head", "output head"),
            ("embed_out", "embedding"),
            ("model.layers.0.mlp.gate", "router or gate"),
            ("model.layers.0.mlp.router", "router or gate"),
            ("model.layers.0.feed_forward.router", "router or gate"),
            ("model.layers.0.router.proj", "router or gate"),
            ("model.layers.0.mlp.shared_expert_gate", "router or gate"),
            ("model.layers.0.input_layernorm", "norm"),
            ("transformer.h.0.ln_1", "norm"),
            ("model.visual.blocks.0.attn.qkv", "vision or audio tower"),
            ("vision_tower.encoder.layers.0.fc1", "vision or audio tower"),
            ("multi_modal_projector.linear_1", "projector between modalities"),
            ("mtp.layers.0.mlp.up_proj", "multi-token-prediction head"),
        ] {
            assert_eq!(check(module), Some(reason), "{module}");
        }
    }
}
