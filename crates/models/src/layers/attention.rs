//! Self-attention with grouped key-value heads.

use graph::{ModuleId, Value};
use tensor::{Activation, Attention as Rule, Mask, Op, Pairing, Presence};

use super::{LinearKind, NormPlan, exactly, norm};
use crate::build::{Bias, Builder};
use crate::context::{Cx, Layer};
use crate::error::{ErrorKind, Result};
use crate::links::ChannelMap;
use crate::store::ParameterId;

/// Shape and rule of an attention.
#[derive(Clone)]
pub(crate) struct AttentionPlan {
    pub(crate) class: &'static str,
    pub(crate) names: AttentionNames,
    /// Where query, key and value come from.
    pub(crate) source: Source,
    pub(crate) linear: LinearKind,
    /// C.
    pub(crate) width: usize,
    /// H.
    pub(crate) heads: usize,
    /// K.
    pub(crate) kv_heads: usize,
    /// D.
    pub(crate) head_dim: usize,
    pub(crate) qkv_bias: Bias,
    pub(crate) o_bias: Bias,
    /// Norms of query and key.
    pub(crate) norms: HeadNorms,
    /// Whether each head's result is multiplied with the sigmoid of a gate, which lies beside the head's query.
    pub(crate) gate: Presence,
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// `c * tanh(score / c)` in place of a score.
    pub(crate) softcap: Option<f32>,
    /// Keys that a query sees at most.
    pub(crate) window: Option<usize>,
    /// Positions of a chunk, beyond which a query sees no key.
    pub(crate) chunk: Option<usize>,
    /// Whether each head has a score without a value.
    pub(crate) sinks: Presence,
    /// Period and factor of a query's growth with its position.
    pub(crate) growth: Option<[f32; 2]>,
    /// Which channels turn together; none for a layer without rotation.
    pub(crate) rope: Option<Pairing>,
}

/// Names of the linears, the order in which they are listed, and what is listed after them and does nothing.
#[derive(Clone, Copy)]
pub(crate) struct AttentionNames {
    pub(crate) qkv: [&'static str; 3],
    pub(crate) o: &'static str,
    pub(crate) order: Listed,
    pub(crate) norms: [&'static str; 2],
    pub(crate) dropouts: &'static [&'static str],
}

/// The order in which the linears of an attention are listed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listed {
    /// Query, key, value, output.
    InOrder,
    /// Key, value, query, output (OPT).
    KeyFirst,
    /// Output, then the others (Phi 3).
    OutputFirst,
}

/// Names of the Llama family.
pub(crate) const LLAMA_NAMES: AttentionNames = AttentionNames {
    qkv: ["q_proj", "k_proj", "v_proj"],
    o: "o_proj",
    order: Listed::InOrder,
    norms: ["q_norm", "k_norm"],
    dropouts: &[],
};

/// Where query, key and value come from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A linear each.
    Apart,
    /// One linear under the first name: all heads of the query, then of the key, then of the value.
    Blocks,
    /// One linear under the first name: for each key-value head its query heads, the key, the value.
    Groups,
}

/// Norms of query and key.
#[derive(Clone, Copy)]
pub(crate) enum HeadNorms {
    /// None.
    Absent,
    /// One over D for query and one for key, before rotation.
    PerHead(NormPlan),
    /// One over all heads of the query and one over those of the key, before heads are split.
    WholeWidth(NormPlan),
    /// The same for both, after rotation.
    AfterRotation(NormPlan),
}

/// The linears that give query, key and value.
enum Projections {
    Apart([ModuleId; 3]),
    Fused(ModuleId),
}

/// x (B, T, C), then cos and sin or not, then a key mask or not -> (B, T, C).
struct Attention {
    projections: Projections,
    o: ModuleId,
    norms: Option<[ModuleId; 2]>,
    sinks: Option<ParameterId>,
    plan: AttentionPlan,
}

/// An attention under `name`; gives its id, the linears that take its input, and the one that gives its result.
pub(crate) fn attention(
    b: &mut Builder,
    name: &str,
    plan: &AttentionPlan,
) -> Result<(ModuleId, Vec<ModuleId>, ModuleId)> {
    let AttentionPlan { names, width, heads, kv_heads, head_dim, qkv_bias, .. } = *plan;
    let mut parts = None;
    let id = b.module(name, plan.class, |b| {
        let sinks = (plan.sinks == Presence::Given).then(|| b.parameter("sinks", &[heads]));
        let projections = |b: &mut Builder| -> Result<Projections> {
            let mut linear = |name: &str, rows: usize| plan.linear.build(b, name, [rows * head_dim, width], qkv_bias);
            let [q, k, v] = names.qkv;
            let query_heads = if plan.gate == Presence::Given { 2 * heads } else { heads };
            Ok(match (plan.source, names.order) {
                (Source::Apart, Listed::KeyFirst) => {
                    let (k, v) = (linear(k, kv_heads)?, linear(v, kv_heads)?);
                    Projections::Apart([linear(q, query_heads)?, k, v])
                }
                (Source::Apart, _) => {
                    Projections::Apart([linear(q, query_heads)?, linear(k, kv_heads)?, linear(v, kv_heads)?])
                }
                (Source::Blocks | Source::Groups, _) => Projections::Fused(linear(q, heads + 2 * kv_heads)?),
            })
        };
        let output = |b: &mut Builder| plan.linear.build(b, names.o, [width, heads * head_dim], plan.o_bias);
        let (projections, o) = if names.order == Listed::OutputFirst {
            let o = output(b)?;
            (projections(b)?, o)
        } else {
            (projections(b)?, output(b)?)
        };
        let [q_norm, k_norm] = names.norms;
        let norms = match plan.norms {
            HeadNorms::Absent => None,
            HeadNorms::PerHead(plan) => Some([norm(b, q_norm, plan, head_dim)?, norm(b, k_norm, plan, head_dim)?]),
            HeadNorms::WholeWidth(plan) => {
                Some([norm(b, q_norm, plan, heads * head_dim)?, norm(b, k_norm, plan, kv_heads * head_dim)?])
            }
            HeadNorms::AfterRotation(plan) => Some([norm(b, q_norm, plan, head_dim)?; 2]),
        };
        for name in names.dropouts {
            b.holder(name, "Dropout", |_| Ok(()))?;
        }
        let takes = match projections {
            Projections::Apart([q, k, v]) => {
                b.link(v, &[o], ChannelMap::RepeatedHeads { head_dim, repeat: heads / kv_heads });
                b.fused("qkv_proj", &[q, k, v]);
                vec![q, k, v]
            }
            Projections::Fused(qkv) => vec![qkv],
        };
        parts = Some((takes, o));
        Ok(Attention { projections, o, norms, sinks, plan: plan.clone() })
    })?;
    let (first, last) = parts.expect("the closure ran, else there were an error");
    Ok((id, first, last))
}

impl Attention {
    fn rule(&self, key_mask: Presence) -> Rule {
        let window = self.plan.window.map(Mask::Window);
        let mask = window.or(self.plan.chunk.map(Mask::Chunk)).unwrap_or(Mask::Causal);
        Rule { scale: self.plan.scale, mask, softcap: self.plan.softcap, sinks: self.plan.sinks, key_mask }
    }

    /// Query, key and value by head, before norms.
    fn heads(&self, cx: &mut Cx<'_>, x: &Value) -> Result<[Value; 3]> {
        let AttentionPlan { heads, kv_heads, head_dim, .. } = self.plan;
        let split = Op::SplitHeads { head_dim };
        let fused = match self.projections {
            Projections::Apart(parts) => {
                let mut qkv = Vec::with_capacity(3);
                for (idx, part) in parts.into_iter().enumerate() {
                    let mut y = cx.call(part, [x.clone()])?;
                    if let (HeadNorms::WholeWidth(_), Some(&norm)) =
                        (self.plan.norms, self.norms.as_ref().and_then(|it| it.get(idx)))
                    {
                        y = cx.call(norm, [y])?;
                    }
                    let is_gated = idx == 0 && self.plan.gate == Presence::Given;
                    let head_dim = if is_gated { 2 * head_dim } else { head_dim };
                    qkv.push(cx.apply(Op::SplitHeads { head_dim }, [y])?);
                }
                return exactly(qkv, "query, key and value");
            }
            Projections::Fused(qkv) => cx.call(qkv, [x.clone()])?,
        };
        let mut narrow = |x: &Value, start: usize, len: usize| {
            cx.apply(Op::Narrow { start: start * head_dim, len: len * head_dim }, [x.clone()])
        };
        if self.plan.source == Source::Blocks {
            let parts = [(0, heads), (heads, kv_heads), (heads + kv_heads, kv_heads)];
            let parts = parts.into_iter().map(|(start, len)| narrow(&fused, start, len)).collect::<Result<Vec<_>>>()?;
            let parts = parts.into_iter().map(|part| cx.apply(split.clone(), [part])).collect::<Result<_>>()?;
            return exactly(parts, "query, key and value");
        }
        let repeat = heads / kv_heads;
        let groups = cx.apply(Op::SplitHeads { head_dim: (repeat + 2) * head_dim }, [fused])?;
        let mut narrow = |start: usize, len: usize| {
            cx.apply(Op::Narrow { start: start * head_dim, len: len * head_dim }, [groups.clone()])
        };
        let (q, k, v) = (narrow(0, repeat)?, narrow(repeat, 1)?, narrow(repeat + 1, 1)?);
        let q = cx.apply(Op::MergeHeads, [q])?;
        Ok([cx.apply(split, [q])?, k, v])
    }
}

impl Layer for Attention {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let (x, tables, key_mask) = match inputs.as_slice() {
            [x] => (x, None, None),
            [x, mask] => (x, None, Some(mask.clone())),
            [x, cos, sin] => (x, Some([cos, sin]), None),
            [x, cos, sin, mask] => (x, Some([cos, sin]), Some(mask.clone())),
            found => {
                let expected = "x, perhaps cos and sin, and perhaps a key mask";
                return Err(ErrorKind::Arity { found: found.len(), expected }.into());
            }
        };
        let [mut q, mut k, v] = self.heads(cx, x)?;
        let mut gate = None;
        if self.plan.gate == Presence::Given {
            let len = self.plan.head_dim;
            let half = cx.apply(Op::Narrow { start: len, len }, [q.clone()])?;
            gate = Some(cx.apply(Op::MergeHeads, [half])?);
            q = cx.apply(Op::Narrow { start: 0, len }, [q])?;
        }
        if let (HeadNorms::PerHead(_), Some([q_norm, k_norm])) = (self.plan.norms, self.norms) {
            (q, k) = (cx.call(q_norm, [q])?, cx.call(k_norm, [k])?);
        }
        if let (Some(pairing), Some([cos, sin])) = (self.plan.rope, tables) {
            q = cx.apply(Op::Rope { pairing }, [q, cos.clone(), sin.clone()])?;
            k = cx.apply(Op::Rope { pairing }, [k, cos.clone(), sin.clone()])?;
        }
        if let (HeadNorms::AfterRotation(_), Some([q_norm, k_norm])) = (self.plan.norms, self.norms) {
            (q, k) = (cx.call(q_norm, [q])?, cx.call(k_norm, [k])?);
        }
        if let Some([period, scale]) = self.plan.growth {
            q = cx.apply(Op::ScaleByPosition { period, scale }, [q])?;
        }
        let presence = if key_mask.is_some() { Presence::Given } else { Presence::Absent };
        let mut operands = vec![q, k, v];
        operands.extend(self.sinks.map(|sinks| cx.parameter(sinks)).transpose()?);
        operands.extend(key_mask);
        let [heads] = exactly(cx.apply_all(Op::Attention(self.rule(presence)), operands)?, "one result")?;
        let mut merged = cx.apply(Op::MergeHeads, [heads])?;
        if let Some(gate) = gate {
            merged = cx.apply(Op::Gated(Activation::Sigmoid), [gate, merged])?;
        }
        cx.call_all(self.o, vec![merged])
    }
}
