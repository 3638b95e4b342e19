//! Norms.

use graph::{ModuleId, Timing, Value};
use tensor::{Activation, Op, Rounded};

use super::exactly;
use crate::build::Builder;
use crate::context::{Cx, Layer};
use crate::error::Result;
use crate::store::ParameterId;

/// A norm of a family.
#[derive(Clone, Copy)]
pub(crate) struct NormPlan {
    pub(crate) class: &'static str,
    pub(crate) eps: f64,
    pub(crate) kind: NormKind,
}

/// What a norm computes and which parameters it has.
#[derive(Clone, Copy)]
pub(crate) enum NormKind {
    /// Root mean square; `weight`, rounded before it is multiplied (Llama).
    Rms,
    /// Root mean square; `weight`, rounded after it is multiplied (OLMo 2).
    RmsRoundedLate,
    /// Root mean square; nothing (Llama 4).
    RmsPlain,
    /// Root mean square; `1 + weight`, rounded after it is multiplied (Gemma).
    RmsOffset,
    /// Mean and variance; `weight` and `bias`.
    LayerBias,
    /// Mean and variance; `1 + weight` and `bias` (Nemotron).
    LayerOffset,
    /// Mean and variance; `weight` (Cohere).
    LayerWeight,
    /// Mean and variance; nothing (OLMo).
    LayerPlain,
}

/// Normalization of the last dimension: x (..., C) -> (..., C).
struct Norm {
    parameters: Vec<ParameterId>,
    op: Op,
}

/// A norm under `name` over `width` channels.
pub(crate) fn norm(b: &mut Builder, name: &str, plan: NormPlan, width: usize) -> Result<ModuleId> {
    let eps = plan.eps as f32;
    let id = b.module(name, plan.class, |b| {
        let rms = |weight_offset, rounded| Op::RmsNorm { eps, weight_offset, rounded };
        let op = match plan.kind {
            NormKind::Rms => rms(0.0, Rounded::BeforeWeight),
            NormKind::RmsRoundedLate => rms(0.0, Rounded::AfterWeight),
            NormKind::RmsOffset => rms(1.0, Rounded::AfterWeight),
            NormKind::LayerOffset => Op::LayerNorm { eps, weight_offset: 1.0 },
            NormKind::LayerBias | NormKind::LayerWeight | NormKind::LayerPlain => {
                Op::LayerNorm { eps, weight_offset: 0.0 }
            }
            NormKind::RmsPlain => rms(0.0, Rounded::AfterWeight),
        };
        let names: &[&str] = match plan.kind {
            NormKind::LayerPlain | NormKind::RmsPlain => &[],
            NormKind::LayerBias | NormKind::LayerOffset => &["weight", "bias"],
            _ => &["weight"],
        };
        let parameters = names.iter().map(|name| b.parameter(name, &[width])).collect();
        Ok(Norm { parameters, op })
    })?;
    if matches!(plan.kind, NormKind::RmsOffset | NormKind::LayerOffset) {
        b.links().norm_offsets.push((id, 1.0));
    }
    Ok(id)
}

/// When a norm's result meets its gate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum GateOrder {
    /// `norm(x) * silu(gate)` (Qwen3-Next).
    NormFirst,
    /// `norm(x * silu(gate))` (Mamba 2).
    GateFirst,
}

/// x (..., C), gate (..., C) -> (..., C).
struct GatedNorm {
    weight: ParameterId,
    eps: f32,
    order: GateOrder,
}

/// A root-mean-square norm with a gate under `name` over `width` channels.
pub(crate) fn gated_norm(
    b: &mut Builder,
    name: &str,
    plan: NormPlan,
    width: usize,
    order: GateOrder,
) -> Result<ModuleId> {
    b.module(name, plan.class, |b| {
        Ok(GatedNorm { weight: b.parameter("weight", &[width]), eps: plan.eps as f32, order })
    })
}

impl Layer for GatedNorm {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x, gate] = exactly(inputs, "x and gate")?;
        let weight = cx.parameter(self.weight)?;
        let norm = Op::RmsNorm { eps: self.eps, weight_offset: 0.0, rounded: Rounded::BeforeWeight };
        let gated = Op::Gated(Activation::Silu);
        match self.order {
            GateOrder::NormFirst => {
                let normed = cx.apply(norm, [x, weight])?;
                cx.apply_all(gated, vec![gate, normed])
            }
            GateOrder::GateFirst => {
                let x = cx.apply(gated, [gate, x])?;
                cx.apply_all(norm, vec![x, weight])
            }
        }
    }

    fn timing(&self) -> Timing {
        Timing::Prologue
    }
}

impl NormPlan {
    /// Whether it has a weight that can take a scale.
    pub(crate) fn is_scalable(self) -> bool {
        !matches!(self.kind, NormKind::LayerPlain | NormKind::RmsPlain)
    }
}

impl Layer for Norm {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let mut inputs = vec![x];
        for &parameter in &self.parameters {
            inputs.push(cx.parameter(parameter)?);
        }
        cx.apply_all(self.op.clone(), inputs)
    }

    fn timing(&self) -> Timing {
        Timing::Prologue
    }
}
