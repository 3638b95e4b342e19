//! A block of routed experts: router, dispatch, grouped linears, combination.

use compressed_tensors::experts::ExpertLayout;
use graph::{ModuleId, Timing, Value};
use tensor::{Activation, DType, Op, Presence, Route};

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
    /// Choice and weights of the k experts of a row.
    pub(crate) route: Route,
    /// Whether the router adds a bias to its logits.
    pub(crate) router_bias: Bias,
    /// The type that the router computes in.
    pub(crate) router_type: RouterType,
    pub(crate) gating: Gating,
    /// Bias of the experts' linears.
    pub(crate) bias: Bias,
    /// What the router's weights are multiplied with.
    pub(crate) weighted: Weighted,
    /// Which of router and experts is listed first.
    pub(crate) order: ModuleOrder,
    /// An expert that sees every row.
    pub(crate) shared: Option<SharedPlan>,
    /// Where a checkpoint keeps all experts of a layer in one tensor, if it does.
    pub(crate) stacked: Stacked,
}

/// Classes and names.
#[derive(Clone, Copy)]
pub(crate) struct ExpertNames {
    pub(crate) block: &'static str,
    /// Name and class.
    pub(crate) router: (&'static str, &'static str),
    pub(crate) experts: &'static str,
    pub(crate) expert: &'static str,
}

/// An expert that sees every row, perhaps weighted by a gate of its own.
#[derive(Clone)]
pub(crate) struct SharedPlan {
    pub(crate) name: &'static str,
    pub(crate) mlp: MlpPlan,
    pub(crate) gate: Option<&'static str>,
}

/// Names after the block's of the tensors with `gate_up_proj` and `down_proj` of all experts, and how experts lie in them.
#[derive(Clone, Copy)]
pub(crate) struct Stacked {
    pub(crate) layout: ExpertLayout,
    pub(crate) tensors: [&'static str; 2],
}

/// How gate and up become the input of down.
#[derive(Clone, Copy)]
pub(crate) enum Gating {
    /// `f(gate) * up`.
    Plain(Activation),
    /// [`Op::GatedClamped`].
    Clamped { alpha: f32, limit: f32 },
}

/// What the router's weights are multiplied with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Weighted {
    /// The experts' results.
    Results,
    /// The experts' inputs (Llama 4).
    Inputs,
}

/// The type that a router computes in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum RouterType {
    /// That of the model.
    Model,
    /// F32.
    Single,
}

/// Which of router and experts Hugging Face lists first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModuleOrder {
    ExpertsFirst,
    RouterFirst,
}

/// Experts of transformers under their own names.
pub(crate) const STACKED_ROWS: Stacked =
    Stacked { layout: ExpertLayout::Rows, tensors: ["experts.gate_up_proj", "experts.down_proj"] };

/// x (N, C) -> logits (N, E), weights (N, k), experts (N, k).
struct Router {
    weight: ParameterId,
    bias: Option<ParameterId>,
    correction: Option<ParameterId>,
    route: Route,
    computes_in: RouterType,
}

/// x (N, C), weights (N, k), experts (N, k) -> (N, C).
struct Experts {
    gate: Group,
    up: Group,
    down: Group,
    gating: Gating,
    weighted: Weighted,
}

/// x (B, T, C) -> (B, T, C).
struct SparseMoe {
    router: ModuleId,
    experts: ModuleId,
    shared: Option<(ModuleId, Option<ModuleId>)>,
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
            Some(shared) => {
                let (id, takes, gives) = gated_mlp(b, shared.name, &shared.mlp)?;
                last.push(gives);
                first.extend(takes);
                let gate = shared.gate.map(|name| b.linear(name, [1, plan.width], Bias::Absent)).transpose()?;
                first.extend(gate);
                Some((id, gate))
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
    let (name, class) = plan.names.router;
    b.module(name, class, |b| {
        let weight = b.parameter("weight", &[plan.n_experts, plan.width]);
        let bias = (plan.router_bias == Bias::Given).then(|| b.parameter("bias", &[plan.n_experts]));
        let is_corrected = plan.route.correction == Presence::Given;
        let correction = is_corrected.then(|| b.single("e_score_correction_bias", &[plan.n_experts]));
        Ok(Router { weight, bias, correction, route: plan.route.clone(), computes_in: plan.router_type })
    })
}

fn experts(b: &mut Builder, plan: &MoePlan, first: &mut Vec<ModuleId>) -> Result<ModuleId> {
    let (wide, narrow) = ([plan.intermediate, plan.width], [plan.width, plan.intermediate]);
    let mut listed = Vec::new();
    let block = b.path().to_owned();
    let id = b.module("experts", plan.names.experts, |b| {
        let stack = |b: &mut Builder, id: ParameterId, part: usize, suffix: &str| {
            let named = |names: [&str; 2]| format!("{block}.{}{suffix}", names[part]);
            b.stacked(id, named(plan.stacked.tensors), named(STACKED_ROWS.tensors), plan.stacked.layout);
        };
        let mut groups: [Vec<(ModuleId, Linear)>; 3] = Default::default();
        for idx in 0..plan.n_experts {
            let (_, [gate, up, down]) = b.holder(&idx.to_string(), plan.names.expert, |b| {
                let linears = [("gate_proj", wide, 0), ("up_proj", wide, 0), ("down_proj", narrow, 1)];
                let mut parts = Vec::with_capacity(linears.len());
                for (name, shape, part) in linears {
                    let (id, linear) = b.linear_parts(name, shape, plan.bias)?;
                    stack(b, linear.weight, part, "");
                    if let Some(bias) = linear.bias {
                        stack(b, bias, part, "_bias");
                    }
                    parts.push((id, linear));
                }
                Ok(<[_; 3]>::try_from(parts).expect("three linears make three parts"))
            })?;
            if matches!(plan.gating, Gating::Plain(_)) {
                b.link(up.0, &[down.0], ChannelMap::Same);
            }
            b.fused("gate_up_proj", &[gate.0, up.0]);
            first.extend([gate.0, up.0]);
            listed.push(vec![gate.0, up.0, down.0]);
            for (group, part) in groups.iter_mut().zip([gate, up, down]) {
                group.push(part);
            }
        }
        if let Gating::Plain(activation) = plan.gating {
            b.holder("act_fn", activation_class(activation), |_| Ok(()))?;
        }
        let [gate, up, down] = groups.map(Group::new);
        Ok(Experts { gate, up, down, gating: plan.gating, weighted: plan.weighted })
    })?;
    b.links().experts.push((id, listed));
    Ok(id)
}

impl Layer for Router {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let mut operands = vec![x, cx.parameter(self.weight)?];
        if let Some(bias) = self.bias {
            operands.push(cx.parameter(bias)?);
        }
        if self.computes_in == RouterType::Single {
            let cast = |x| cx.apply(Op::Cast { dtype: DType::F32 }, [x]);
            operands = operands.into_iter().map(cast).collect::<Result<_>>()?;
        }
        let mut routed = cx.apply_all(Op::Linear, operands)?;
        let mut outputs = routed.clone();
        if let Some(correction) = self.correction {
            routed.push(cx.parameter(correction)?);
        }
        outputs.extend(cx.apply_all(Op::Route(self.route.clone()), routed)?);
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
        let [mut rows, offsets, places] = exactly(dispatched, "rows, offsets, places")?;
        if self.weighted == Weighted::Inputs {
            rows = cx.apply(Op::WeighRows, [rows, places.clone(), weights.clone()])?;
        }
        let gate = cx.call_group(&self.gate, rows.clone(), offsets.clone())?;
        let up = cx.call_group(&self.up, rows, offsets.clone())?;
        let gated = match self.gating {
            Gating::Plain(activation) => Op::Gated(activation),
            Gating::Clamped { alpha, limit } => Op::GatedClamped { alpha, limit },
        };
        let h = cx.apply(gated, [gate, up])?;
        let y = cx.call_group(&self.down, h, offsets)?;
        match self.weighted {
            Weighted::Results => cx.apply_all(Op::Combine, vec![y, places, weights]),
            Weighted::Inputs => cx.apply_all(Op::Combine, vec![y, places]),
        }
    }
}

impl Layer for SparseMoe {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let flat = cx.apply(Op::Flatten, [x.clone()])?;
        let routed = cx.call_all(self.router, vec![flat.clone()])?;
        let [_, weights, chosen] = exactly(routed, "logits, weights, experts")?;
        let mut y = cx.call(self.experts, [flat.clone(), weights, chosen])?;
        if let Some((shared, gate)) = self.shared {
            let gate = gate.map(|gate| cx.call(gate, [flat.clone()])).transpose()?;
            let mut extra = cx.call(shared, [flat])?;
            if let Some(gate) = gate {
                extra = cx.apply(Op::ScaleRows(Activation::Sigmoid), [gate, extra])?;
            }
            y = cx.apply(Op::Add, [y, extra])?;
        }
        cx.apply_all(Op::Unflatten, vec![y, x])
    }
}

impl MoePlan {
    /// Refuses to choose more experts than there are.
    pub(crate) fn check(&self) -> Result<()> {
        let refused = |found: usize, expected: String, key: &str| {
            let kind = ErrorKind::Config { found: found.to_string(), expected };
            Err(crate::Error::from(kind).at(format_args!("config.json: {key}")))
        };
        if self.route.n_chosen > self.n_experts {
            let expected = format!("at most the {} experts", self.n_experts);
            return refused(self.route.n_chosen, expected, "num_experts_per_tok");
        }
        let Some(groups) = self.route.groups else { return Ok(()) };
        if !self.n_experts.is_multiple_of(groups.n_groups) {
            return refused(groups.n_groups, format!("a divisor of the {} experts", self.n_experts), "n_group");
        }
        let in_reach = groups.n_chosen.min(groups.n_groups) * (self.n_experts / groups.n_groups);
        if groups.n_chosen > groups.n_groups || self.route.n_chosen > in_reach {
            return refused(groups.n_chosen, format!("groups that hold {} experts", self.route.n_chosen), "topk_group");
        }
        Ok(())
    }
}
