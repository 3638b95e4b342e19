//! Which layers belong together: the reference's name tables as data, and their resolution over a model's names.

use compressed_tensors::target::{NamedModule, Patterns};
use lifecycle::ModuleStore;

use crate::error::{Error, ErrorKind, Result};

/// A smoothed layer and the layers that read it, as patterns in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamedMapping {
    /// The layer whose output is divided.
    pub smooth: &'static str,
    /// The layers whose columns are multiplied.
    pub balance: &'static [&'static str],
}

/// A mapping as a recipe or a table says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Pattern of the layer whose output is divided.
    pub smooth: String,
    /// Patterns of the layers whose columns are multiplied.
    pub balance: Vec<String>,
    /// Path below the parent at which activations are taken, where that is not the first balance layer.
    pub activation_hook_target: Option<String>,
}

/// A mapping in one place of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Name of the layer whose output is divided.
    pub smooth: String,
    /// Names of the layers whose columns are multiplied, in order of the patterns, then of definition.
    pub balance: Vec<String>,
    /// See [`Mapping::activation_hook_target`].
    pub activation_hook_target: Option<String>,
}

impl Resolved {
    /// Whether the run leaves all its layers as they are.
    ///
    /// # Errors
    /// `Mapping` where it leaves some of them, for a scale that one side has alone changes what the model computes.
    pub(crate) fn is_frozen(&self, model: &dyn ModuleStore) -> lifecycle::Result<bool> {
        let (mut frozen, mut free) = (None, None);
        for name in std::iter::once(&self.smooth).chain(&self.balance) {
            let found = if model.module(name)?.frozen { &mut frozen } else { &mut free };
            found.get_or_insert(name);
        }
        if let (Some(frozen), Some(free)) = (frozen, free) {
            let reason = format!("`{free}` is chosen and `{frozen}` is not, expected all layers of a mapping or none");
            return Err(Error::from(ErrorKind::Mapping { smooth: self.smooth.clone(), reason }).into());
        }
        Ok(free.is_none())
    }
}

/// Classes of norms that multiply by `1 + w`.
pub const OFFSET_NORM_CLASSES: &[&str] = &[
    "GemmaRMSNorm",
    "Gemma2RMSNorm",
    "Gemma3RMSNorm",
    "MuseGlimmerTextCenteredRMSNorm",
    "NemotronLayerNorm1P",
    "Qwen3NextRMSNorm",
    "Qwen3_5RMSNorm",
    "Qwen3_5MoeRMSNorm",
];

impl From<&NamedMapping> for Mapping {
    fn from(named: &NamedMapping) -> Self {
        Self::new(named.smooth, named.balance.iter().copied())
    }
}

impl Mapping {
    /// A mapping whose activations are taken at its first balance layer.
    pub fn new<'a>(smooth: &str, balance: impl IntoIterator<Item = &'a str>) -> Self {
        let balance = balance.into_iter().map(str::to_owned).collect();
        Self { smooth: smooth.to_owned(), balance, activation_hook_target: None }
    }

    /// The places of a model where the mapping applies, in the order of the smoothed layers.
    ///
    /// A smoothed layer is paired with the matching layers in the nearest module around it that has any, as long as that
    /// module holds no other layer that the smooth pattern matches. A pattern that is absent there (the router of a dense
    /// layer) is left out. Smoothed layers without a partner are left out as well.
    ///
    /// # Errors
    /// Patterns that are no regular expressions, and patterns that match nothing in the whole model.
    pub fn resolve(&self, modules: &[NamedModule<'_>]) -> Result<Vec<Resolved>> {
        let smooth = Patterns::compile(std::slice::from_ref(&self.smooth))?;
        let matching = |patterns: &Patterns| -> Result<Vec<&str>> {
            let mut names = Vec::new();
            for module in modules {
                if patterns.matches_module(*module)? {
                    names.push(module.name);
                }
            }
            Ok(names)
        };
        let smoothed = matching(&smooth)?;
        let mut balance = Vec::new();
        for pattern in &self.balance {
            balance.push(matching(&Patterns::compile(std::slice::from_ref(pattern))?)?);
        }
        if smoothed.is_empty() || self.balance.is_empty() {
            return Err(self.refuse("no layer has that name"));
        }
        if let Some(idle) = self.balance.iter().zip(&balance).find(|it| it.1.is_empty()) {
            return Err(self.refuse(&format!("no layer matches the balance pattern `{}`", idle.0)));
        }
        let mut resolved = Vec::new();
        for &name in &smoothed {
            let mut scope = name;
            let found = loop {
                let Some(parent) = parent(scope) else { break Vec::new() };
                scope = parent;
                let partners = |it: &&&str| is_below(it, scope) && **it != name;
                let mut found: Vec<String> = Vec::new();
                for partner in balance.iter().flat_map(|it| it.iter().filter(partners)) {
                    if !found.iter().any(|it| it == partner) {
                        found.push((*partner).to_owned());
                    }
                }
                let has_rival = smoothed.iter().any(|it| *it != name && is_below(it, scope));
                if !found.is_empty() || has_rival {
                    break if has_rival { Vec::new() } else { found };
                }
            };
            if !found.is_empty() {
                let activation_hook_target = self.activation_hook_target.clone();
                resolved.push(Resolved { smooth: name.to_owned(), balance: found, activation_hook_target });
            }
        }
        Ok(resolved)
    }

    fn refuse(&self, reason: &str) -> Error {
        ErrorKind::Mapping { smooth: self.smooth.clone(), reason: reason.to_owned() }.into()
    }
}

/// The enclosing module; the root's name is empty and has none.
pub(crate) fn parent(name: &str) -> Option<&str> {
    match name.rsplit_once('.') {
        Some((parent, _)) => Some(parent),
        None => (!name.is_empty()).then_some(""),
    }
}

/// Whether a module lies within another.
pub(crate) fn is_below(name: &str, scope: &str) -> bool {
    scope.is_empty() || name.strip_prefix(scope).is_some_and(|rest| rest.starts_with('.'))
}

/// Decoder layers by what they hold, told from names alone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LayerKinds {
    /// Those with `child` right below `layers.<index>`, as alternatives of a regular expression.
    pub(crate) alternatives: String,
}

impl LayerKinds {
    /// Indices of the layers that have one of the children, in rising order.
    pub(crate) fn with_child<'a>(names: impl IntoIterator<Item = &'a str>, children: &[&str]) -> Self {
        let mut indices: Vec<u64> = Vec::new();
        for name in names {
            let mut parts = name.split('.');
            while let Some(part) = parts.next() {
                if part != "layers" {
                    continue;
                }
                let index = parts.next().and_then(|it| it.parse().ok());
                if let (Some(index), Some(child)) = (index, parts.next())
                    && children.contains(&child)
                {
                    indices.push(index);
                }
                break;
            }
        }
        indices.sort_unstable();
        indices.dedup();
        Self { alternatives: indices.iter().map(ToString::to_string).collect::<Vec<_>>().join("|") }
    }
}

/// The mappings of a class of model.
///
/// The hybrid Qwen 3.5 models get mappings for the layers that have a `self_attn`; all other classes are looked up in
/// [`MAPPINGS`]. Norms that routers read, too, are left out: the reference smooths them and changes which experts are chosen.
///
/// # Errors
/// A hybrid model without such a layer.
pub fn mappings_for(class: &str, modules: &[NamedModule<'_>]) -> Result<Vec<Mapping>> {
    let mlp: &[&str] = match class {
        "Qwen3_5ForCausalLM" | "Qwen3_5ForConditionalGeneration" => &["re:.*mlp\\.gate_proj$", "re:.*mlp\\.up_proj$"],
        "Qwen3_5MoeForCausalLM" | "Qwen3_5MoeForConditionalGeneration" => &[],
        _ => return of_class(MAPPINGS, class, modules),
    };
    let full = LayerKinds::with_child(modules.iter().map(|it| it.name), &["self_attn"]).alternatives;
    let smooth = format!("re:.*layers\\.({full})\\.input_layernorm$");
    if full.is_empty() {
        return Err(ErrorKind::Mapping { smooth, reason: "no layer has full attention".to_owned() }.into());
    }
    let attention = ["re:.*self_attn\\.q_proj$", "re:.*self_attn\\.k_proj$", "re:.*self_attn\\.v_proj$"];
    let mlp = (!mlp.is_empty()).then(|| Mapping::new("re:.*post_attention_layernorm$", mlp.iter().copied()));
    Ok(std::iter::once(Mapping::new(&smooth, attention)).chain(mlp).collect())
}

/// The mappings of a class in a table.
///
/// Of its own entry counts what the model has (DeepSeek V2 Lite has no `q_a_layernorm`); a class that is not listed takes all of
/// `LlamaForCausalLM`.
///
/// # Errors
/// Patterns that are no regular expressions.
pub(crate) fn of_class(
    table: &[(&str, &'static [NamedMapping])],
    class: &str,
    modules: &[NamedModule<'_>],
) -> Result<Vec<Mapping>> {
    let entry = |class: &str| table.iter().find(|it| it.0 == class).map(|it| it.1);
    let all = |entry: &[NamedMapping]| entry.iter().map(Mapping::from).collect();
    let Some(listed) = entry(class) else { return Ok(entry("LlamaForCausalLM").map(all).unwrap_or_default()) };
    let is_there = |pattern: &str| -> Result<bool> {
        let pattern = Patterns::compile(&[pattern])?;
        modules.iter().try_fold(false, |any, it| Ok(any || pattern.matches_module(*it)?))
    };
    let mut there = Vec::new();
    for NamedMapping { smooth, balance } in listed {
        let mut found = Vec::new();
        for &pattern in *balance {
            if is_there(pattern)? {
                found.push(pattern);
            }
        }
        if !found.is_empty() && is_there(smooth)? {
            there.push(Mapping::new(smooth, found));
        }
    }
    // Where there is none of them, they are refused by name.
    Ok(if there.is_empty() { all(listed) } else { there })
}

const DEFAULT: &[NamedMapping] = &[
    NamedMapping { smooth: "re:.*input_layernorm", balance: &["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"] },
    NamedMapping { smooth: "re:.*post_attention_layernorm", balance: &["re:.*gate_proj", "re:.*up_proj"] },
];

const BLOOM: &[NamedMapping] = &[
    NamedMapping { smooth: "re:.*input_layernorm", balance: &["re:.*query_key_value"] },
    NamedMapping { smooth: "re:.*post_attention_layernorm", balance: &["re:.*dense_h_to_4h"] },
];

const COHERE: &[NamedMapping] = &[NamedMapping {
    smooth: "re:.*input_layernorm$",
    balance: &[
        "re:.*self_attn\\.q_proj$",
        "re:.*self_attn\\.k_proj$",
        "re:.*self_attn\\.v_proj$",
        "re:.*mlp\\.gate_proj$",
        "re:.*mlp\\.up_proj$",
    ],
}];

const COHERE2_MOE: &[NamedMapping] = &[NamedMapping {
    smooth: "re:.*input_layernorm$",
    balance: &[
        "re:.*self_attn\\.q_proj$",
        "re:.*self_attn\\.k_proj$",
        "re:.*self_attn\\.v_proj$",
        "re:.*gate_proj$",
        "re:.*up_proj$",
    ],
}];

const DEEPSEEK: &[NamedMapping] =
    &[NamedMapping { smooth: "re:.*input_layernorm", balance: &["re:.*q(_a)?_proj$", "re:.*kv_a_proj_with_mqa"] }];

/// The reference smooths the norm behind attention instead, which the residual stream reads.
const GEMMA: &[NamedMapping] = &[
    NamedMapping { smooth: "re:.*input_layernorm", balance: &["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"] },
    NamedMapping { smooth: "re:.*pre_feedforward_layernorm", balance: &["re:.*gate_proj", "re:.*up_proj"] },
];

const MIXTRAL: &[NamedMapping] =
    &[NamedMapping { smooth: "re:.*input_layernorm", balance: &["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"] }];

const PHI3: &[NamedMapping] = &[
    NamedMapping { smooth: "re:.*input_layernorm", balance: &["re:.*qkv_proj"] },
    NamedMapping { smooth: "re:.*post_attention_layernorm", balance: &["re:.*gate_up_proj"] },
];

const QWEN_MOE: &[NamedMapping] =
    &[NamedMapping { smooth: "re:.*input_layernorm$", balance: &["re:.*q_proj$", "re:.*k_proj$", "re:.*v_proj$"] }];

const WHISPER: &[NamedMapping] = &[
    NamedMapping { smooth: "re:.*self_attn_layer_norm", balance: &["re:.*k_proj", "re:.*v_proj", "re:.*q_proj"] },
    NamedMapping { smooth: "re:.*final_layer_norm", balance: &["re:.*fc1"] },
];

const AFMOE: &[NamedMapping] = &[
    NamedMapping {
        smooth: "re:.*input_layernorm",
        balance: &[
            "re:.*self_attn\\.q_proj",
            "re:.*self_attn\\.k_proj",
            "re:.*self_attn\\.v_proj",
            "re:.*self_attn\\.gate_proj",
        ],
    },
    NamedMapping { smooth: "re:.*pre_mlp_layernorm", balance: &["re:.*mlp.*gate_proj", "re:.*mlp.*up_proj"] },
];

/// Mappings by class of model, in alphabetical order; classes that are not listed take those of `LlamaForCausalLM`.
pub const MAPPINGS: &[(&str, &[NamedMapping])] = &[
    ("AfmoeForCausalLM", AFMOE),
    ("BloomForCausalLM", BLOOM),
    ("ChatGLMForConditionalGeneration", BLOOM),
    ("Cohere2ForCausalLM", COHERE),
    ("Cohere2MoeForCausalLM", COHERE2_MOE),
    ("Cohere2VisionForConditionalGeneration", COHERE),
    ("CohereForCausalLM", COHERE),
    ("DeepseekV2ForCausalLM", DEEPSEEK),
    ("DeepseekV3ForCausalLM", DEEPSEEK),
    ("Ernie4_5_MoeForCausalLM", MIXTRAL),
    ("Gemma2ForCausalLM", GEMMA),
    ("Gemma3ForCausalLM", GEMMA),
    ("Gemma3ForConditionalGeneration", GEMMA),
    ("Glm4MoeForCausalLM", MIXTRAL),
    ("Glm4MoeLiteForCausalLM", DEEPSEEK),
    ("GlmMoeDsaForCausalLM", DEEPSEEK),
    ("GptOssForCausalLM", MIXTRAL),
    ("GraniteForCausalLM", DEFAULT),
    ("GraniteMoeForCausalLM", MIXTRAL),
    ("Llama4ForCausalLM", MIXTRAL),
    ("Llama4ForConditionalGeneration", MIXTRAL),
    ("LlamaForCausalLM", DEFAULT),
    ("Mistral3ForConditionalGeneration", DEFAULT),
    ("MistralForCausalLM", DEFAULT),
    ("MixtralForCausalLM", MIXTRAL),
    ("NanbeigeForCausalLM", DEFAULT),
    ("Phi3ForCausalLM", PHI3),
    ("Phi3VForCausalLM", PHI3),
    ("Qwen2ForCausalLM", DEFAULT),
    ("Qwen2MoeForCausalLM", QWEN_MOE),
    ("Qwen2_5OmniModel", DEFAULT),
    ("Qwen2_5OmniThinkerForConditionalGeneration", DEFAULT),
    ("Qwen2_5_VLForConditionalGeneration", DEFAULT),
    ("Qwen3ForCausalLM", DEFAULT),
    ("Qwen3MoeForCausalLM", QWEN_MOE),
    ("Qwen3NextForCausalLM", QWEN_MOE),
    ("SeedOssForCausalLM", DEFAULT),
    ("WhisperForConditionalGeneration", WHISPER),
];
