//! A block of routed experts: router, dispatch, grouped linears, combination.

use graph::{ModuleId, Timing, Value};
use tensor::{Activation, Normalize, Op, Route, Scores};

use super::linear::Linear;
use super::mlp::activation_class;
use super::{MlpPlan, exactly, gated_mlp};
use crate::build::{Bias, Builder};
use crate::context::{Cx, Group, Layer};
use crate::error::{ErrorKind, Result};
use crate::links::ChannelMap;
use crate::store::ParameterId;

/// Shape of a block of routed experts.
#[derive(Clone)]
pub(crate) struct MoePlan {
    pub(crate) names: ExpertNames,
    /// C.
    pub(crate) width: usize,
    /// I of an expert.
    pub(crate) intermediate: usize,
    /// E.
    pub(crate) n_experts: usize,
    /// k.
    pub(crate) n_chosen: usize,
    pub(crate) scores: Scores,
    pub(crate) normalize: Normalize,
    pub(crate) activation: Activation,
    /// Which of router and experts is listed first.
    pub(crate) order: ModuleOrder,
    /// An expert that sees every row, weighted by a gate of its own.
    pub(crate) shared: Option<MlpPlan>,
}

/// Classes, and names on disk.
#[derive(Clone, Copy)]
pub(crate) struct ExpertNames {
    pub(crate) block: &'static str,
    pub(crate) router: &'static str,
    pub(crate) experts: &'static str,
    pub(crate) expert: &'static str,
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
}

/// Which of router and experts Hugging Face lists first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModuleOrder {
    ExpertsFirst,
    RouterFirst,
}

/// x (N, C) -> logits (N, E), weights (N, k), experts (N, k).
struct Router {
    weight: ParameterId,
    route: Route,
}

/// x (N, C), weights (N, k), experts (N, k) -> (N, C).
struct Experts {
    gate: Group,
    up: Group,
    down: Group,
    activation: Activation,
}

/// x (B, T, C) -> (B, T, C).
struct SparseMoe {
    router: ModuleId,
    experts: ModuleId,
    shared: Option<[ModuleId; 2]>,
}

/// A block under `name`; gives its id, every module with a weight that takes its input, and those that give its result.
pub(crate) fn sparse_moe(
    b: &mut Builder,
    name: &str,
    plan: &MoePlan,
) -> Result<(ModuleId, Vec<ModuleId>, Vec<ModuleId>)> {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    let id = b.module(name, plan.names.block, |b| {
        let (router, experts) = match plan.order {
            ModuleOrder::RouterFirst => (router(b, plan)?, experts(b, plan, &mut first)?),
            ModuleOrder::ExpertsFirst => {
                let experts = experts(b, plan, &mut first)?;
                (router(b, plan)?, experts)
            }
        };
        first.insert(0, router);
        let shared = match &plan.shared {
            None => None,
            Some(mlp) => {
                let (shared, takes, gives) = gated_mlp(b, "shared_expert", mlp)?;
                last.push(gives);
                let gate = b.linear("shared_expert_gate", [1, plan.width], Bias::Absent)?;
                first.extend(takes);
                first.push(gate);
                Some([shared, gate])
            }
        };
        let routed =
            b.links().experts.last().map(|(_, experts)| experts.iter().filter_map(|parts| parts.last().copied()));
        last.extend(routed.into_iter().flatten().collect::<Vec<_>>());
        Ok(SparseMoe { router, experts, shared })
    })?;
    Ok((id, first, last))
}

fn router(b: &mut Builder, plan: &MoePlan) -> Result<ModuleId> {
    let route = Route { n_chosen: plan.n_chosen, scores: plan.scores, normalize: plan.normalize };
    b.module("gate", plan.names.router, |b| {
        Ok(Router { weight: b.parameter("weight", &[plan.n_experts, plan.width]), route })
    })
}

fn experts(b: &mut Builder, plan: &MoePlan, first: &mut Vec<ModuleId>) -> Result<ModuleId> {
    let names = plan.names;
    let (wide, narrow) = ([plan.intermediate, plan.width], [plan.width, plan.intermediate]);
    let mut listed = Vec::new();
    let id = b.module("experts", names.experts, |b| {
        let mut groups: [Vec<(ModuleId, Linear)>; 3] = Default::default();
        for idx in 0..plan.n_experts {
            let (_, [gate, up, down]) = b.holder(&idx.to_string(), names.expert, |b| {
                let gate = b.linear_parts(names.gate, wide, Bias::Absent)?;
                let up = b.linear_parts(names.up, wide, Bias::Absent)?;
                let down = b.linear_parts(names.down, narrow, Bias::Absent)?;
                Ok([gate, up, down])
            })?;
            b.link(up.0, &[down.0], ChannelMap::Same);
            b.fused("gate_up_proj", &[gate.0, up.0]);
            first.extend([gate.0, up.0]);
            listed.push(vec![gate.0, up.0, down.0]);
            for (group, part) in groups.iter_mut().zip([gate, up, down]) {
                group.push(part);
            }
        }
        b.holder("act_fn", activation_class(plan.activation), |_| Ok(()))?;
        let [gate, up, down] = groups.map(Group::new);
        Ok(Experts { gate, up, down, activation: plan.activation })
    })?;
    b.links().experts.push((id, listed));
    Ok(id)
}

impl Layer for Router {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let weight = cx.parameter(self.weight)?;
        let logits = cx.apply(Op::Linear, [x, weight])?;
        let mut outputs = vec![logits.clone()];
        outputs.extend(cx.apply_all(Op::Route(self.route.clone()), vec![logits])?);
        Ok(outputs)
    }

    fn timing(&self) -> Timing {
        Timing::Prologue
    }
}

impl Layer for Experts {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x, weights, chosen] = exactly(inputs, "x, weights, experts")?;
        let dispatched = cx.apply_all(Op::Dispatch { experts: self.gate.modules().len() }, vec![x, chosen])?;
        let [rows, offsets, places] = exactly(dispatched, "rows, offsets, places")?;
        let gate = cx.call_group(&self.gate, rows.clone(), offsets.clone())?;
        let up = cx.call_group(&self.up, rows, offsets.clone())?;
        let h = cx.apply(Op::Gated(self.activation), [gate, up])?;
        let y = cx.call_group(&self.down, h, offsets)?;
        cx.apply_all(Op::Combine, vec![y, places, weights])
    }
}

impl Layer for SparseMoe {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let flat = cx.apply(Op::Flatten, [x.clone()])?;
        let routed = cx.call_all(self.router, vec![flat.clone()])?;
        let [_, weights, chosen] = exactly(routed, "logits, weights, experts")?;
        let mut y = cx.call(self.experts, [flat.clone(), weights, chosen])?;
        if let Some([shared, gate]) = self.shared {
            let gate = cx.call(gate, [flat.clone()])?;
            let extra = cx.call(shared, [flat])?;
            let extra = cx.apply(Op::ScaleRows(Activation::Sigmoid), [gate, extra])?;
            y = cx.apply(Op::Add, [y, extra])?;
        }
        cx.apply_all(Op::Unflatten, vec![y, x])
    }
}

impl MoePlan {
    /// Refuses to choose more experts than there are.
    pub(crate) fn check(&self) -> Result<()> {
        if self.n_chosen > self.n_experts {
            let found = self.n_chosen.to_string();
            let kind = ErrorKind::Config { found, expected: format!("at most the {} experts", self.n_experts) };
            return Err(crate::Error::from(kind).at("config.json: num_experts_per_tok"));
        }
        Ok(())
    }
}
