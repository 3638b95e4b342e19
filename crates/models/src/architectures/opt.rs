//! OPT: learned positions, a feed-forward block that is no module of its own, layer norms before or after the branches.

use graph::{ModuleId, Value};
use tensor::{Activation, Op};

use super::Architecture;
use crate::build::{Bias, Builder};
use crate::config::{Config, Dialect, Flag};
use crate::context::{Cx, Layer};
use crate::error::{ErrorKind, Result};
use crate::layers::{
    AttentionNames, AttentionPlan, Classes, Counted, Defaults, LLAMA_NAMES, Listed, MlpPlan, NormKind, NormPlan, Part,
    PositionsPlan, attention, causal_lm, exactly, mlp_of, norm, plain_attention, plain_causal,
};
use crate::links::ChannelMap;

const CLASSES: Classes =
    Classes { causal_lm: "OPTForCausalLM", model: "OPTModel", layer: "OPTDecoderLayer", norm: "LayerNorm", rotary: "" };
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::On };
const DIALECT: Dialect = Dialect { names: &[("hidden_act", "activation_function")], head_dim: None };
const NAMES: AttentionNames = AttentionNames { o: "out_proj", order: Listed::KeyFirst, ..LLAMA_NAMES };
const PARTS: &[Part] = &[
    Part::Embedding("embed_tokens"),
    Part::Positions("embed_positions"),
    Part::ProjectOut("project_out"),
    Part::ProjectIn("project_in"),
    Part::Norm("final_layer_norm"),
    Part::Layers("layers"),
];
/// What a model whose layers end in a norm holds.
const PARTS_WITHOUT_NORM: &[Part] = &[
    Part::Embedding("embed_tokens"),
    Part::Positions("embed_positions"),
    Part::ProjectOut("project_out"),
    Part::ProjectIn("project_in"),
    Part::Layers("layers"),
];
/// Rows of the table of positions before that of position 0.
const FIRST_POSITION: u32 = 2;

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "opt", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

fn build(config: &Config<'_>) -> Result<Builder> {
    let config = &config.speaking(&DIALECT);
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    let has_weights = config.flag_or("layer_norm_elementwise_affine", Flag::On)?;
    let kind = if has_weights { NormKind::LayerBias } else { NormKind::LayerPlain };
    plan.norm = NormPlan { class: CLASSES.norm, eps: DEFAULTS.norm_eps, kind };
    let place = if config.flag_or("do_layer_norm_before", Flag::On)? { Place::Before } else { Place::After };
    let has_last_norm = place == Place::Before && !config.flag_or("_remove_final_layer_norm", Flag::Off)?;
    plan.listed = if has_last_norm { PARTS } else { PARTS_WITHOUT_NORM };
    plan.inner = Some(("decoder", "OPTDecoder"));
    let table = config.size_or("word_embed_proj_dim", plan.width)?;
    plan.embedding.width = table;
    plan.projected = Some(table).filter(|&table| table != plan.width);
    let rows = config.size_or("max_position_embeddings", 2048)? + FIRST_POSITION as usize;
    let class = "OPTLearnedPositionalEmbedding";
    plan.positions = Some(PositionsPlan { class, rows, offset: FIRST_POSITION, counted: Counted::Visible });
    let bias = Bias::from_flag(config.flag_or("enable_bias", Flag::On)?);
    let mut attention = plain_attention(config, "OPTAttention")?;
    (attention.names, attention.kv_heads, attention.rope) = (NAMES, attention.heads, None);
    (attention.qkv_bias, attention.o_bias) = (bias, bias);
    let mut mlp = mlp_of(config, "", config.size_or("ffn_dim", 4 * plan.width)?, "relu")?;
    mlp.bias = bias;
    let norm = plan.norm;
    let last = format!("model.decoder.layers.{}.final_layer_norm", plan.n_layers - 1);
    let reader = if plan.projected.is_some() { "model.decoder.project_out" } else { "lm_head" };
    causal_lm(&mut b, plan, |b, _, name| layer(b, name, &attention, &mlp, norm, place))?;
    if let (Place::After, true, Some(last), Some(reader)) =
        (place, norm.is_scalable(), b.tree.find(&last), b.tree.find(reader))
    {
        b.link(last, &[reader], ChannelMap::Same);
    }
    Ok(b)
}

/// Where the norms of a layer stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before each branch.
    Before,
    /// After each sum (OPT 350M).
    After,
}

/// x (B, T, C), then a key mask or not -> (B, T, C).
struct OptLayer {
    attention: ModuleId,
    fc1: ModuleId,
    fc2: ModuleId,
    norms: [ModuleId; 2],
    activation: Activation,
    place: Place,
}

fn layer(
    b: &mut Builder,
    name: &str,
    plan: &AttentionPlan,
    mlp: &MlpPlan,
    norm_plan: NormPlan,
    place: Place,
) -> Result<ModuleId> {
    b.module(name, CLASSES.layer, |b| {
        let (attention, takes, gives) = attention(b, "self_attn", plan)?;
        b.holder("activation_fn", mlp.act_class(), |_| Ok(()))?;
        let first = norm(b, "self_attn_layer_norm", norm_plan, plan.width)?;
        let fc1 = b.linear("fc1", [mlp.intermediate, plan.width], mlp.bias)?;
        let fc2 = b.linear("fc2", [plan.width, mlp.intermediate], mlp.bias)?;
        let second = norm(b, "final_layer_norm", norm_plan, plan.width)?;
        match place {
            Place::Before => {
                if norm_plan.is_scalable() {
                    b.link(first, &takes, ChannelMap::Same);
                    b.link(second, &[fc1], ChannelMap::Same);
                }
                b.links().residual_readers.extend([first, second]);
                b.links().residual_writers.extend([gives, fc2]);
            }
            Place::After => {
                b.links().residual_readers.extend(takes);
                b.links().residual_readers.push(fc1);
                b.links().residual_writers.extend([first, second]);
            }
        }
        Ok(OptLayer { attention, fc1, fc2, norms: [first, second], activation: mlp.activation, place })
    })
}

impl Layer for OptLayer {
    fn forward(&self, cx: &mut Cx<'_>, mut inputs: Vec<Value>) -> Result<Vec<Value>> {
        let Some(mut x) = inputs.first().cloned() else {
            return Err(ErrorKind::Arity { found: 0, expected: "x and perhaps a key mask" }.into());
        };
        let [first, second] = self.norms;
        if self.place == Place::Before {
            inputs[0] = cx.call(first, [x.clone()])?;
        }
        let [branch] = exactly(cx.call_all(self.attention, inputs)?, "one result")?;
        x = cx.apply(Op::Add, [x, branch])?;
        if self.place == Place::After {
            x = cx.call(first, [x])?;
        }
        let input = if self.place == Place::Before { cx.call(second, [x.clone()])? } else { x.clone() };
        let h = cx.call(self.fc1, [input])?;
        let h = cx.apply(Op::Activate(self.activation), [h])?;
        let branch = cx.call(self.fc2, [h])?;
        x = cx.apply(Op::Add, [x, branch])?;
        if self.place == Place::After {
            x = cx.call(second, [x])?;
        }
        Ok(vec![x])
    }
}
