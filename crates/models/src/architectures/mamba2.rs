//! Mamba 2: every layer is a norm and a mixer with a state per head; there is no attention and no feed-forward block.

use graph::{ModuleId, Value};
use tensor::{Activation, Op};

use super::Architecture;
use crate::build::{Bias, Builder};
use crate::config::{Config, Dialect, Flag};
use crate::context::{Cx, Layer};
use crate::error::{Error, ErrorKind, Result};
use crate::layers::{
    Classes, Defaults, GateOrder, NormPlan, Part, ShortConv, causal_lm, exactly, gated_norm, norm, plain_causal,
    short_conv,
};
use crate::links::ChannelMap;
use crate::store::ParameterId;

const CLASSES: Classes = Classes {
    causal_lm: "Mamba2ForCausalLM",
    model: "Mamba2Model",
    layer: "Mamba2Block",
    norm: "Mamba2RMSNorm",
    rotary: "",
};
const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, rope_theta: 10_000.0, tied: Flag::Off };
const DIALECT: Dialect = Dialect {
    names: &[("num_attention_heads", "num_heads"), ("rms_norm_eps", "layer_norm_epsilon")],
    head_dim: Some(64),
};
const PARTS: &[Part] = &[Part::Embedding("embeddings"), Part::Layers("layers"), Part::Norm("norm_f")];

/// Its line in the registry.
pub(super) const ARCHITECTURE: Architecture =
    Architecture { model_type: "mamba2", class: CLASSES.causal_lm, no_split: &[CLASSES.layer], build };

/// Shape of a mixer.
#[derive(Clone, Copy)]
struct MixerPlan {
    /// C.
    width: usize,
    /// H.
    heads: usize,
    /// Channels of a head.
    head_dim: usize,
    /// Heads that keys and queries have.
    groups: usize,
    /// Numbers that a channel's state has.
    state: usize,
    taps: usize,
    bias: Bias,
    conv_bias: Bias,
    /// Least and largest step.
    limits: [f32; 2],
    norm: NormPlan,
}

fn build(config: &Config<'_>) -> Result<Builder> {
    let config = &config.speaking(&DIALECT);
    let mut b = Builder::new(CLASSES.causal_lm);
    let mut plan = plain_causal(config, CLASSES, DEFAULTS)?;
    (plan.body, plan.listed) = ("backbone", PARTS);
    if config.activation("hidden_act", "silu")? != Activation::Silu {
        return Err(Error::config(config.text("hidden_act")?.unwrap_or_default(), "silu").at("config.json: hidden_act"));
    }
    let mixer = MixerPlan {
        width: plan.width,
        heads: config.size("num_attention_heads")?,
        head_dim: config.head_dim()?,
        groups: config.size_or("n_groups", 8)?,
        state: config.size_or("state_size", 128)?,
        taps: config.size_or("conv_kernel", 4)?,
        bias: Bias::from_flag(config.flag_or("use_bias", Flag::Off)?),
        conv_bias: Bias::from_flag(config.flag_or("use_conv_bias", Flag::On)?),
        limits: config.limits("time_step_limit")?.unwrap_or([0.0, f32::INFINITY]),
        norm: NormPlan { class: "MambaRMSNormGated", ..plan.norm },
    };
    let inner = config.number_or("expand", 2.0)? * plan.width as f64;
    if inner != (mixer.heads * mixer.head_dim) as f64 {
        let expected = format!("{} channels of all heads over hidden_size", mixer.heads * mixer.head_dim);
        return Err(Error::config(inner, expected).at("config.json: expand"));
    }
    if !mixer.heads.is_multiple_of(mixer.groups) {
        let error = Error::config(mixer.groups, format!("a divisor of the {} heads", mixer.heads));
        return Err(error.at("config.json: n_groups"));
    }
    let norm = plan.norm;
    causal_lm(&mut b, plan, |b, _, name| block(b, name, mixer, norm))?;
    Ok(b)
}

/// x (B, T, C), then a key mask or not -> (B, T, C).
struct Block {
    norm: ModuleId,
    mixer: ModuleId,
}

/// x (B, T, C), then a key mask or not -> (B, T, C).
struct Mixer {
    conv: ModuleId,
    input: ModuleId,
    norm: ModuleId,
    out: ModuleId,
    step_bias: ParameterId,
    decay_log: ParameterId,
    skip: ParameterId,
    plan: MixerPlan,
}

fn block(b: &mut Builder, name: &str, plan: MixerPlan, norm_plan: NormPlan) -> Result<ModuleId> {
    b.module(name, CLASSES.layer, |b| {
        let norm = norm(b, "norm", norm_plan, plan.width)?;
        b.links().residual_readers.push(norm);
        let mut ends = None;
        let mixer = b.module("mixer", "Mamba2Mixer", |b| {
            let mixer = mixer(b, plan)?;
            ends = Some([mixer.input, mixer.norm, mixer.out]);
            Ok(mixer)
        })?;
        let [input, inner, out] = ends.expect("the closure ran, else there were an error");
        b.link(norm, &[input], ChannelMap::Same);
        b.link(inner, &[out], ChannelMap::Same);
        b.links().residual_writers.push(out);
        Ok(Block { norm, mixer })
    })
}

fn mixer(b: &mut Builder, plan: MixerPlan) -> Result<Mixer> {
    let MixerPlan { width, heads, head_dim, groups, state, .. } = plan;
    let inner = heads * head_dim;
    let mixed = inner + 2 * groups * state;
    let [step_bias, decay_log, skip] = ["dt_bias", "A_log", "D"].map(|name| b.parameter(name, &[heads]));
    b.holder("act", "SiLUActivation", |_| Ok(()))?;
    let conv = ShortConv { channels: mixed, taps: plan.taps, activation: Activation::Silu };
    let conv = short_conv(b, "conv1d", conv, plan.conv_bias)?;
    let input = b.linear("in_proj", [inner + mixed + heads, width], plan.bias)?;
    let norm = gated_norm(b, "norm", plan.norm, inner, GateOrder::GateFirst)?;
    let out = b.linear("out_proj", [width, inner], plan.bias)?;
    Ok(Mixer { conv, input, norm, out, step_bias, decay_log, skip, plan })
}

impl Layer for Block {
    fn forward(&self, cx: &mut Cx<'_>, mut inputs: Vec<Value>) -> Result<Vec<Value>> {
        let Some(x) = inputs.first().cloned() else {
            return Err(ErrorKind::Arity { found: 0, expected: "x and perhaps a key mask" }.into());
        };
        inputs[0] = cx.call(self.norm, [x.clone()])?;
        let [branch] = exactly(cx.call_all(self.mixer, inputs)?, "one result")?;
        Ok(vec![cx.apply(Op::Add, [x, branch])?])
    }
}

impl Layer for Mixer {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let (x, key_mask) = match inputs.as_slice() {
            [x] => (x.clone(), None),
            [x, mask] => (x.clone(), Some(mask.clone())),
            found => return Err(ErrorKind::Arity { found: found.len(), expected: "x and perhaps a key mask" }.into()),
        };
        let shown = |cx: &mut Cx<'_>, x: Value| match &key_mask {
            Some(mask) => cx.apply(Op::HideRows, [x, mask.clone()]),
            None => Ok(x),
        };
        let narrow = |cx: &mut Cx<'_>, x: &Value, start, len| cx.apply(Op::Narrow { start, len }, [x.clone()]);
        let split = |cx: &mut Cx<'_>, x: Value, head_dim| cx.apply(Op::SplitHeads { head_dim }, [x]);

        let MixerPlan { heads, head_dim, groups, state, limits, .. } = self.plan;
        let (inner, keys) = (heads * head_dim, groups * state);
        let x = shown(cx, x)?;
        let all = cx.call(self.input, [x])?;
        let gate = narrow(cx, &all, 0, inner)?;
        let mixed = narrow(cx, &all, inner, inner + 2 * keys)?;
        let steps = narrow(cx, &all, 2 * inner + 2 * keys, heads)?;
        let mixed = cx.call(self.conv, [mixed])?;
        let mixed = shown(cx, mixed)?;
        let (x, k) = (narrow(cx, &mixed, 0, inner)?, narrow(cx, &mixed, inner, keys)?);
        let q = narrow(cx, &mixed, inner + keys, keys)?;
        let (x, k, q) = (split(cx, x, head_dim)?, split(cx, k, state)?, split(cx, q, state)?);
        let parameters = [cx.parameter(self.decay_log)?, cx.parameter(self.step_bias)?, cx.parameter(self.skip)?];
        let operands = [x, steps, k, q].into_iter().chain(parameters).collect();
        let [y] = exactly(cx.apply_all(Op::SelectiveScan { limits }, operands)?, "one result")?;
        let y = cx.apply(Op::MergeHeads, [y])?;
        let y = cx.call(self.norm, [y, gate])?;
        cx.call_all(self.out, vec![y])
    }
}
