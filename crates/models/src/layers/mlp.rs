//! Feed-forward blocks: gated, and plain.

use graph::{ModuleId, Value};
use tensor::{Activation, Op};

use super::exactly;
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
        b.holder("act_fn", activation_class(plan.activation), |_| Ok(()))?;
        b.link(up, &[down], ChannelMap::Same);
        b.fused("gate_up_proj", &[gate, up]);
        parts = Some((vec![gate, up], down));
        Ok(GatedMlp { gate, up, down, activation: plan.activation })
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

/// Names of first linear, second linear and activation.
pub(crate) type PlainNames = [&'static str; 3];

/// A block without a gate under `name`; gives what [`gated_mlp`] gives.
pub(crate) fn ungated_mlp(
    b: &mut Builder,
    name: &str,
    plan: &MlpPlan,
    names: PlainNames,
) -> Result<(ModuleId, Vec<ModuleId>, ModuleId)> {
    let mut parts = None;
    let id = b.module(name, plan.class, |b| {
        let first = b.linear(names[0], [plan.intermediate, plan.width], plan.bias)?;
        let second = b.linear(names[1], [plan.width, plan.intermediate], plan.bias)?;
        b.holder(names[2], activation_class(plan.activation), |_| Ok(()))?;
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

impl Layer for PlainMlp {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let h = cx.call(self.first, [x])?;
        let h = cx.apply(Op::Activate(self.activation), [h])?;
        cx.call_all(self.second, vec![h])
    }
}
