//! Architectures: one file each, and the registry.

mod bloom;
mod cohere;
mod cohere2;
mod deepseek_v2;
mod deepseek_v3;
mod ernie4_5;
mod exaone4;
mod falcon;
mod gemma;
mod gemma2;
mod gemma3_text;
mod glm4;
mod glm4_moe;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod granitemoe;
mod llama;
mod llama4_text;
mod mamba2;
mod mistral;
mod mixtral;
mod nemotron;
mod olmo;
mod olmo2;
mod olmo3;
mod opt;
mod phi;
mod phi3;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod qwen3_next;
mod smollm3;
mod stablelm;
mod starcoder2;

use crate::build::Builder;
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};

/// A family of models.
pub struct Architecture {
    /// `model_type` in the config.
    pub model_type: &'static str,
    /// Class of the whole model.
    pub class: &'static str,
    /// Classes that subgraphs do not split by default.
    pub no_split: &'static [&'static str],
    /// Builds the model from its config.
    pub build: fn(&Config<'_>) -> Result<Builder>,
}

/// All architectures, by name.
pub const ARCHITECTURES: &[Architecture] = &[
    bloom::ARCHITECTURE,
    cohere::ARCHITECTURE,
    cohere2::ARCHITECTURE,
    deepseek_v2::ARCHITECTURE,
    deepseek_v3::ARCHITECTURE,
    ernie4_5::ARCHITECTURE,
    exaone4::ARCHITECTURE,
    falcon::ARCHITECTURE,
    gemma::ARCHITECTURE,
    gemma2::ARCHITECTURE,
    gemma3_text::ARCHITECTURE,
    glm4::ARCHITECTURE,
    glm4_moe::ARCHITECTURE,
    gpt2::ARCHITECTURE,
    gpt_neox::ARCHITECTURE,
    gpt_oss::ARCHITECTURE,
    granite::ARCHITECTURE,
    granitemoe::ARCHITECTURE,
    llama::ARCHITECTURE,
    llama4_text::ARCHITECTURE,
    mamba2::ARCHITECTURE,
    mistral::ARCHITECTURE,
    mixtral::ARCHITECTURE,
    nemotron::ARCHITECTURE,
    olmo::ARCHITECTURE,
    olmo2::ARCHITECTURE,
    olmo3::ARCHITECTURE,
    opt::ARCHITECTURE,
    phi::ARCHITECTURE,
    phi3::ARCHITECTURE,
    qwen2::ARCHITECTURE,
    qwen2_moe::ARCHITECTURE,
    qwen3::ARCHITECTURE,
    qwen3_moe::ARCHITECTURE,
    qwen3_next::ARCHITECTURE,
    smollm3::ARCHITECTURE,
    stablelm::ARCHITECTURE,
    starcoder2::ARCHITECTURE,
];

/// The architecture of a config.
///
/// # Errors
/// [`ErrorKind::UnknownArchitecture`] with all that are known, [`ErrorKind::Config`] where there is no `model_type`.
pub fn find(config: &Config<'_>) -> Result<&'static Architecture> {
    let Some(found) = config.text("model_type")? else {
        return Err(Error::config("nothing", "a model_type").at("config.json: model_type"));
    };
    ARCHITECTURES.iter().find(|it| it.model_type == found).ok_or_else(|| {
        let known = ARCHITECTURES.iter().map(|it| it.model_type).collect();
        Error::from(ErrorKind::UnknownArchitecture { found: found.to_owned(), known }).at("config.json: model_type")
    })
}

/// Class names that start with the family's.
macro_rules! classes {
    ($family:literal) => {
        crate::layers::Classes {
            causal_lm: concat!($family, "ForCausalLM"),
            model: concat!($family, "Model"),
            layer: concat!($family, "DecoderLayer"),
            norm: concat!($family, "RMSNorm"),
            rotary: concat!($family, "RotaryEmbedding"),
        }
    };
}
use classes;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_is_in_order_of_name() {
        assert!(ARCHITECTURES.windows(2).all(|pair| pair[0].model_type < pair[1].model_type));
    }
}
