//! Feed-forward blocks: gated, and plain.

use graph::{ModuleId, Value};
use tensor::{Activation, Op};

use super::{LinearKind, exactly};
use crate::build::{Bias, Builder};
use crate::context::{Cx, Layer};
use crate::error::Result;
use crate::links::ChannelMap;

/// Shape of a gated feed-forward block.
#[derive(Clone)]
pub(crate) struct MlpPlan {
    pub(crate) class: &'static str,
    pub(crate) width: usize,
    pub(crate) intermediate: usize,
    pub(crate) activation: Activation,
    pub(crate) bias: Bias,
    /// Under which name the activation is listed.
    pub(crate) act: &'static str,
    /// Class of the activation, where it is not that of its kind.
    pub(crate) act_class: Option<&'static str>,
    pub(crate) linear: LinearKind,
    /// It is listed last and does nothing.
    pub(crate) dropout: Option<&'static str>,
}

impl MlpPlan {
    /// The class under which its activation is listed.
    pub(crate) fn act_class(&self) -> &'static str {
        self.act_class.unwrap_or_else(|| activation_class(self.activation))
    }
}

/// `down(f(gate(x)) * up(x))`: x (..., C) -> (..., C).
struct GatedMlp {
    gate: ModuleId,
    up: ModuleId,
    down: ModuleId,
    activation: Activation,
}

/// A block under `name`; gives its id, the linears that take its input, and the one that gives its result.
pub(crate) fn gated_mlp(b: &mut Builder, name: &str, plan: &MlpPlan) -> Result<(ModuleId, Vec<ModuleId>, ModuleId)> {
    let mut parts = None;
    let id = b.module(name, plan.class, |b| {
        let gate = b.linear("gate_proj", [plan.intermediate, plan.width], plan.bias)?;
        let up = b.linear("up_proj", [plan.intermediate, plan.width], plan.bias)?;
        let down = b.linear("down_proj", [plan.width, plan.intermediate], plan.bias)?;
        b.holder(plan.act, plan.act_class(), |_| Ok(()))?;
        b.link(up, &[down], ChannelMap::Same);
        b.fused("gate_up_proj", &[gate, up]);
        parts = Some((vec![gate, up], down));
        Ok(GatedMlp { gate, up, down, activation: plan.activation })
    })?;
    let (first, last) = parts.expect("the closure ran, else there were an error");
    Ok((id, first, last))
}

/// `down(f(gate) * up)`, gate and up the halves of one linear: x (..., C) -> (..., C).
struct FusedMlp {
    gate_up: ModuleId,
    down: ModuleId,
    activation: Activation,
    intermediate: usize,
}

/// A block whose gate and up are one linear under `name`; gives what [`gated_mlp`] gives.
pub(crate) fn fused_mlp(b: &mut Builder, name: &str, plan: &MlpPlan) -> Result<(ModuleId, Vec<ModuleId>, ModuleId)> {
    let mut parts = None;
    let id = b.module(name, plan.class, |b| {
        let gate_up = b.linear("gate_up_proj", [2 * plan.intermediate, plan.width], plan.bias)?;
        let down = b.linear("down_proj", [plan.width, plan.intermediate], plan.bias)?;
        b.holder(plan.act, plan.act_class(), |_| Ok(()))?;
        parts = Some((vec![gate_up], down));
        Ok(FusedMlp { gate_up, down, activation: plan.activation, intermediate: plan.intermediate })
    })?;
    let (first, last) = parts.expect("the closure ran, else there were an error");
    Ok((id, first, last))
}

/// `second(f(first(x)))`: x (..., C) -> (..., C).
struct PlainMlp {
    first: ModuleId,
    second: ModuleId,
    activation: Activation,
}

/// Names of first linear and second linear, and where between them the activation is listed.
#[derive(Clone, Copy)]
pub(crate) struct PlainNames(pub(crate) [&'static str; 2], pub(crate) ActPlace);

/// Where an activation is listed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ActPlace {
    First,
    Between,
    Last,
}

/// A block without a gate under `name`; gives what [`gated_mlp`] gives.
pub(crate) fn ungated_mlp(
    b: &mut Builder,
    name: &str,
    plan: &MlpPlan,
    names: PlainNames,
) -> Result<(ModuleId, Vec<ModuleId>, ModuleId)> {
    let mut parts = None;
    let id = b.module(name, plan.class, |b| {
        let PlainNames([first, second], place) = names;
        let class = plan.act_class();
        let act = |b: &mut Builder, at: ActPlace| {
            if place == at { b.holder(plan.act, class, |_| Ok(())).map(drop) } else { Ok(()) }
        };
        act(b, ActPlace::First)?;
        let first = plan.linear.build(b, first, [plan.intermediate, plan.width], plan.bias)?;
        act(b, ActPlace::Between)?;
        let second = plan.linear.build(b, second, [plan.width, plan.intermediate], plan.bias)?;
        act(b, ActPlace::Last)?;
        if let Some(name) = plan.dropout {
            b.holder(name, "Dropout", |_| Ok(()))?;
        }
        parts = Some((vec![first], second));
        Ok(PlainMlp { first, second, activation: plan.activation })
    })?;
    let (first, last) = parts.expect("the closure ran, else there were an error");
    Ok((id, first, last))
}

/// The class of an activation, listed as a module and computed as an operation.
pub(crate) fn activation_class(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "SiLUActivation",
        Activation::Gelu => "GELUActivation",
        Activation::GeluTanh => "GELUTanh",
        Activation::QuickGelu => "QuickGELUActivation",
        Activation::Relu => "ReLU",
        Activation::ReluSquared => "ReLUSquaredActivation",
        Activation::Sigmoid => "Sigmoid",
    }
}

impl Layer for GatedMlp {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let gate = cx.call(self.gate, [x.clone()])?;
        let up = cx.call(self.up, [x])?;
        let h = cx.apply(Op::Gated(self.activation), [gate, up])?;
        cx.call_all(self.down, vec![h])
    }
}

impl Layer for FusedMlp {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let both = cx.call(self.gate_up, [x])?;
        let len = self.intermediate;
        let gate = cx.apply(Op::Narrow { start: 0, len }, [both.clone()])?;
        let up = cx.apply(Op::Narrow { start: len, len }, [both])?;
        let h = cx.apply(Op::Gated(self.activation), [gate, up])?;
        cx.call_all(self.down, vec![h])
    }
}

impl Layer for PlainMlp {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let h = cx.call(self.first, [x])?;
        let h = cx.apply(Op::Activate(self.activation), [h])?;
        cx.call_all(self.second, vec![h])
    }
}
