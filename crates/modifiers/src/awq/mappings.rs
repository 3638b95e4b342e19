//! The reference's tables of AWQ mappings, and the builders for models whose layers differ.

use compressed_tensors::target::NamedModule;

use crate::{
    error::Result,
    smoothquant::mappings::{LayerKinds, Mapping, NamedMapping, of_class},
};

/// The mappings of a class of model.
///
/// Hybrid models (Qwen3-Next, Qwen 3.5) and Step 3.5 get mappings by what their layers hold, told from the modules' names;
/// where that gives none, and for all other classes, [`MAPPINGS`] counts.
///
/// # Errors
/// Patterns that are no regular expressions.
pub fn mappings_for(class: &str, modules: &[NamedModule<'_>]) -> Result<Vec<Mapping>> {
    let built = match class {
        "Qwen3NextForCausalLM"
        | "Qwen3_5ForCausalLM"
        | "Qwen3_5ForConditionalGeneration"
        | "Qwen3_5MoeForCausalLM"
        | "Qwen3_5MoeForConditionalGeneration" => hybrid(modules),
        "Step3p5ForCausalLM" => step3p5(modules),
        _ => None,
    };
    built.map_or_else(|| of_class(MAPPINGS, class, modules), Ok)
}

/// Layers with full and with linear attention.
fn hybrid(modules: &[NamedModule<'_>]) -> Option<Vec<Mapping>> {
    let names = || modules.iter().map(|it| it.name);
    let full = LayerKinds::with_child(names(), &["self_attn"]).alternatives;
    let linear = LayerKinds::with_child(names(), &["linear_attn"]).alternatives;
    if full.is_empty() || linear.is_empty() {
        return None;
    }
    let mut projections: Vec<String> = Vec::new();
    for name in names() {
        let Some((_, projection)) = name.rsplit_once("linear_attn.") else { continue };
        let pattern = format!("re:.*linear_attn.{projection}$");
        if projection.starts_with("in_proj_") && !projections.contains(&pattern) {
            projections.push(pattern);
        }
    }
    let norm = |alternatives: &str| format!("re:.*layers\\.({alternatives})\\.input_layernorm$");
    let attention = ["re:.*self_attn.q_proj$", "re:.*self_attn.k_proj$", "re:.*self_attn.v_proj$"];
    let mut mappings = vec![Mapping::new(&norm(&full), attention)];
    if !projections.is_empty() {
        mappings.push(Mapping::new(&norm(&linear), projections.iter().map(String::as_str)));
    }
    let mlp: &[&str] = match names().any(|it| it.contains(".experts.")) {
        true => &[
            // The reference leaves the router out, which reads the norm, too.
            "re:.*mlp.gate$",
            "re:.*mlp.experts.*.gate_proj$",
            "re:.*mlp.experts.*.up_proj$",
            "re:.*mlp.shared_expert_gate$",
            "re:.*mlp.shared_expert.gate_proj$",
            "re:.*mlp.shared_expert.up_proj$",
        ],
        false => &["re:.*gate_proj$", "re:.*up_proj$"],
    };
    mappings.push(Mapping::new("re:.*post_attention_layernorm$", mlp.iter().copied()));
    mappings.push(Mapping::new("re:.*up_proj$", ["re:.*down_proj$"]));
    Some(mappings)
}

/// Dense layers and layers with experts.
fn step3p5(modules: &[NamedModule<'_>]) -> Option<Vec<Mapping>> {
    let names = || modules.iter().map(|it| it.name);
    let dense = LayerKinds::with_child(names(), &["mlp"]).alternatives;
    let moe = LayerKinds::with_child(names(), &["moe", "share_expert"]).alternatives;
    if dense.is_empty() && moe.is_empty() {
        return None;
    }
    let mut mappings = vec![
        Mapping::new(
            "re:.*input_layernorm$",
            ["re:.*self_attn.q_proj$", "re:.*self_attn.k_proj$", "re:.*self_attn.v_proj$", "re:.*self_attn.g_proj$"],
        ),
        Mapping::new("re:.*self_attn.v_proj$", ["re:.*self_attn.o_proj$"]),
    ];
    let norm = |alternatives: &str| format!("re:.*layers\\.({alternatives})\\.post_attention_layernorm$");
    if !dense.is_empty() {
        mappings.push(Mapping::new(&norm(&dense), ["re:.*mlp.gate_proj$", "re:.*mlp.up_proj$"]));
    }
    if !moe.is_empty() {
        let balance = [
            "re:.*moe.gate$",
            "re:.*moe.gate_proj$",
            "re:.*moe.up_proj$",
            "re:.*share_expert.gate_proj$",
            "re:.*share_expert.up_proj$",
        ];
        mappings.push(Mapping::new(&norm(&moe), balance));
    }
    mappings.push(Mapping::new("re:.*(mlp|share_expert).up_proj$", ["re:.*(mlp|share_expert).down_proj$"]));
    Some(mappings)
}

/// The norm before attention.
const ATTENTION: NamedMapping =
    NamedMapping { smooth: "re:.*input_layernorm$", balance: &["re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"] };

/// Values, behind which attention is linear.
const VALUES: NamedMapping = NamedMapping { smooth: "re:.*v_proj$", balance: &["re:.*o_proj$"] };

/// The norm before a dense MLP.
const MLP: NamedMapping =
    NamedMapping { smooth: "re:.*post_attention_layernorm$", balance: &["re:.*gate_proj$", "re:.*up_proj$"] };

/// What a gate multiplies.
const UP: NamedMapping = NamedMapping { smooth: "re:.*up_proj$", balance: &["re:.*down_proj$"] };

const DEFAULT: &[NamedMapping] = &[ATTENTION, VALUES, MLP, UP];

const AFMOE: &[NamedMapping] = &[
    NamedMapping {
        smooth: "re:.*input_layernorm$",
        balance: &[
            "re:.*self_attn.q_proj$",
            "re:.*self_attn.k_proj$",
            "re:.*self_attn.v_proj$",
            "re:.*self_attn.gate_proj$",
        ],
    },
    VALUES,
    NamedMapping {
        smooth: "re:.*pre_mlp_layernorm$",
        balance: &["re:.*mlp.router$", "re:.*mlp.*gate_proj$", "re:.*mlp.*up_proj$"],
    },
    UP,
];

const BLOOM: &[NamedMapping] = &[
    NamedMapping { smooth: "re:.*input_layernorm$", balance: &["re:.*query_key_value$"] },
    NamedMapping { smooth: "re:.*post_attention_layernorm$", balance: &["re:.*dense_h_to_4h$"] },
    NamedMapping { smooth: "re:.*gelu_impl$", balance: &["re:.*dense_4h_to_h$"] },
];

const COHERE: &[NamedMapping] = &[
    NamedMapping {
        smooth: "re:.*input_layernorm$",
        balance: &[
            "re:.*self_attn.q_proj$",
            "re:.*self_attn.k_proj$",
            "re:.*self_attn.v_proj$",
            "re:.*mlp.gate_proj$",
            "re:.*mlp.up_proj$",
        ],
    },
    VALUES,
    UP,
];

const COHERE2_MOE: &[NamedMapping] = &[
    NamedMapping {
        smooth: "re:.*input_layernorm$",
        balance: &[
            "re:.*self_attn.q_proj$",
            "re:.*self_attn.k_proj$",
            "re:.*self_attn.v_proj$",
            "re:.*gate_proj$",
            "re:.*up_proj$",
        ],
    },
    VALUES,
    UP,
];

/// The reference leaves the router out of all but V3, whose norm it reads, too.
const DEEPSEEK: &[NamedMapping] = &[
    NamedMapping { smooth: "re:.*input_layernorm$", balance: &["re:.*(q|q_a)_proj$", "re:.*kv_a_proj_with_mqa$"] },
    NamedMapping { smooth: "re:.*q_a_layernorm$", balance: &["re:.*q_b_proj$"] },
    NamedMapping { smooth: "re:.*kv_a_layernorm$", balance: &["re:.*kv_b_proj$"] },
    NamedMapping {
        smooth: "re:.*post_attention_layernorm$",
        balance: &["re:.*mlp.gate$", "re:.*gate_proj$", "re:.*up_proj$"],
    },
    UP,
];

const ATTENTION_AND_MLP_OUTPUTS: &[NamedMapping] = &[VALUES, UP];

const GEMMA2: &[NamedMapping] = &[
    ATTENTION,
    VALUES,
    NamedMapping { smooth: "re:.*pre_feedforward_layernorm$", balance: &["re:.*gate_proj$", "re:.*up_proj$"] },
    UP,
];

const GEMMA3: &[NamedMapping] = &[
    VALUES,
    NamedMapping { smooth: "re:.*pre_feedforward_layernorm$", balance: &["re:.*gate_proj$", "re:.*up_proj$"] },
    UP,
];

const MOE: &[NamedMapping] = &[
    ATTENTION,
    VALUES,
    NamedMapping {
        smooth: "re:.*post_attention_layernorm$",
        balance: &["re:.*mlp.gate$", "re:.*mlp.experts.*.gate_proj$", "re:.*mlp.experts.*.up_proj$"],
    },
    UP,
];

/// As [`MOE`], with what else reads the norm, which the reference leaves out.
const GLM4_MOE: &[NamedMapping] = &[
    ATTENTION,
    VALUES,
    NamedMapping {
        smooth: "re:.*post_attention_layernorm$",
        balance: &[
            "re:.*mlp.gate$",
            "re:.*mlp.experts.*.gate_proj$",
            "re:.*mlp.experts.*.up_proj$",
            "re:.*mlp.shared_experts.gate_proj$",
            "re:.*mlp.shared_experts.up_proj$",
        ],
    },
    UP,
];

/// As [`MOE`], with what else reads the norm, which the reference leaves out.
const QWEN2_MOE: &[NamedMapping] = &[
    ATTENTION,
    VALUES,
    NamedMapping {
        smooth: "re:.*post_attention_layernorm$",
        balance: &[
            "re:.*mlp.gate$",
            "re:.*mlp.experts.*.gate_proj$",
            "re:.*mlp.experts.*.up_proj$",
            "re:.*mlp.shared_expert.gate_proj$",
            "re:.*mlp.shared_expert.up_proj$",
            "re:.*mlp.shared_expert_gate$",
        ],
    },
    UP,
];

/// Without the norm that routers read, too: the reference smooths it and changes which experts are chosen.
const UNROUTED: &[NamedMapping] = &[ATTENTION, VALUES, UP];

/// As [`UNROUTED`]; what the experts' gates give is clamped, which no scale passes.
const GPT_OSS: &[NamedMapping] = &[ATTENTION, VALUES];

const LLAMA4: &[NamedMapping] = &[
    ATTENTION,
    VALUES,
    NamedMapping {
        smooth: "re:.*post_attention_layernorm$",
        balance: &["re:.*feed_forward.router$", "re:.*feed_forward.*.gate_proj$", "re:.*feed_forward.*.up_proj$"],
    },
    UP,
];

const MUSE_GLIMMER: &[NamedMapping] = &[
    NamedMapping {
        smooth: "re:.*language_model.layers.\\d+.input_layernorm$",
        balance: &[
            "re:.*language_model.layers.\\d+.self_attn.q_proj$",
            "re:.*language_model.layers.\\d+.self_attn.k_proj$",
            "re:.*language_model.layers.\\d+.self_attn.v_proj$",
            "re:.*language_model.layers.\\d+.self_attn.gate_proj$",
        ],
    },
    NamedMapping {
        smooth: "re:.*language_model.layers.\\d+.self_attn.v_proj$",
        balance: &["re:.*language_model.layers.\\d+.self_attn.o_proj$"],
    },
    NamedMapping {
        smooth: "re:.*language_model.layers.\\d+.pre_feedforward_layernorm$",
        balance: &["re:.*language_model.layers.\\d+.mlp.gate_proj$", "re:.*language_model.layers.\\d+.mlp.up_proj$"],
    },
    NamedMapping {
        smooth: "re:.*language_model.layers.\\d+.mlp.up_proj$",
        balance: &["re:.*language_model.layers.\\d+.mlp.down_proj$"],
    },
];

const PHI3: &[NamedMapping] = &[
    NamedMapping { smooth: "re:.*input_layernorm$", balance: &["re:.*qkv_proj$"] },
    NamedMapping { smooth: "re:.*qkv_proj$", balance: &["re:.*o_proj$"] },
    NamedMapping { smooth: "re:.*post_attention_layernorm$", balance: &["re:.*gate_up_proj$"] },
    NamedMapping { smooth: "re:.*gate_up_proj$", balance: &["re:.*down_proj$"] },
];

const QWEN2_5_VL: &[NamedMapping] = &[
    ATTENTION,
    VALUES,
    NamedMapping {
        smooth: "re:.*language_model\\.layers\\.\\d+\\.post_attention_layernorm$",
        balance: &[
            "re:.*language_model\\.layers\\.\\d+\\.mlp\\.gate_proj$",
            "re:.*language_model\\.layers\\.\\d+\\.mlp\\.up_proj$",
        ],
    },
    NamedMapping {
        smooth: "re:.*language_model\\.layers\\.\\d+\\.mlp\\.up_proj$",
        balance: &["re:.*language_model\\.layers\\.\\d+\\.mlp\\.down_proj$"],
    },
];

/// Mappings by class of model, in alphabetical order; classes that are not listed take those of `LlamaForCausalLM`.
pub const MAPPINGS: &[(&str, &[NamedMapping])] = &[
    ("AfmoeForCausalLM", AFMOE),
    ("BloomForCausalLM", BLOOM),
    ("Cohere2ForCausalLM", COHERE),
    ("Cohere2MoeForCausalLM", COHERE2_MOE),
    ("Cohere2VisionForConditionalGeneration", COHERE),
    ("CohereForCausalLM", COHERE),
    ("DeepseekV2ForCausalLM", DEEPSEEK),
    ("DeepseekV3ForCausalLM", DEEPSEEK),
    ("Ernie4_5_MoeForCausalLM", UNROUTED),
    ("Exaone4ForCausalLM", ATTENTION_AND_MLP_OUTPUTS),
    ("Gemma2ForCausalLM", GEMMA2),
    ("Gemma3ForCausalLM", GEMMA3),
    ("Gemma3ForConditionalGeneration", GEMMA3),
    ("Glm4MoeForCausalLM", GLM4_MOE),
    ("Glm4MoeLiteForCausalLM", DEEPSEEK),
    ("GlmMoeDsaForCausalLM", DEEPSEEK),
    ("GptOssForCausalLM", GPT_OSS),
    ("GraniteForCausalLM", DEFAULT),
    ("GraniteMoeForCausalLM", UNROUTED),
    ("Llama4ForCausalLM", LLAMA4),
    ("Llama4ForConditionalGeneration", LLAMA4),
    ("LlamaForCausalLM", DEFAULT),
    ("Mistral3ForConditionalGeneration", DEFAULT),
    ("MistralForCausalLM", DEFAULT),
    ("MixtralForCausalLM", UNROUTED),
    ("MuseGlimmerForConditionalGeneration", MUSE_GLIMMER),
    ("NanbeigeForCausalLM", DEFAULT),
    ("Olmo3ForCausalLM", ATTENTION_AND_MLP_OUTPUTS),
    ("OlmoForCausalLM", ATTENTION_AND_MLP_OUTPUTS),
    ("Phi3ForCausalLM", PHI3),
    ("Phi3VForCausalLM", PHI3),
    ("Qwen2ForCausalLM", DEFAULT),
    ("Qwen2MoeForCausalLM", QWEN2_MOE),
    ("Qwen2_5OmniModel", DEFAULT),
    ("Qwen2_5OmniThinkerForConditionalGeneration", DEFAULT),
    ("Qwen2_5_VLForConditionalGeneration", QWEN2_5_VL),
    ("Qwen3ForCausalLM", DEFAULT),
    ("Qwen3MoeForCausalLM", MOE),
    ("SeedOssForCausalLM", DEFAULT),
];
