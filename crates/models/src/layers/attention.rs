//! Self-attention with rotary positions and grouped key-value heads.

use graph::{ModuleId, Value};
use tensor::{Attention as Rule, Mask, Op, Pairing, Presence};

use super::{NormPlan, norm};
use crate::build::{Bias, Builder};
use crate::context::{Cx, Layer};
use crate::error::{ErrorKind, Result};
use crate::links::ChannelMap;

/// Shape and rule of an attention.
#[derive(Clone)]
pub(crate) struct AttentionPlan {
    pub(crate) class: &'static str,
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
    /// Factor on the scores.
    pub(crate) scale: f32,
    /// `c * tanh(score / c)` in place of a score.
    pub(crate) softcap: Option<f32>,
    /// Keys that a query sees at most.
    pub(crate) window: Option<usize>,
    /// Which channels turn together; none for a layer without positions.
    pub(crate) rope: Option<Pairing>,
}

/// Norms of query and key before rotation.
#[derive(Clone, Copy)]
pub(crate) enum HeadNorms {
    /// None.
    Absent,
    /// One over D for query and one for key.
    PerHead(NormPlan),
    /// One over all heads of the query and one over those of the key, before heads are split.
    WholeWidth(NormPlan),
}

/// x (B, T, C), cos, sin, then a key mask or not -> (B, T, C).
struct Attention {
    q: ModuleId,
    k: ModuleId,
    v: ModuleId,
    o: ModuleId,
    norms: Option<[ModuleId; 2]>,
    plan: AttentionPlan,
}

/// An attention under `name`; gives its id, the linears that take its input, and the one that gives its result.
pub(crate) fn attention(
    b: &mut Builder,
    name: &str,
    plan: &AttentionPlan,
) -> Result<(ModuleId, Vec<ModuleId>, ModuleId)> {
    let AttentionPlan { width, heads, kv_heads, head_dim, qkv_bias, .. } = *plan;
    let mut parts = None;
    let id = b.module(name, plan.class, |b| {
        let q = b.linear("q_proj", [heads * head_dim, width], qkv_bias)?;
        let k = b.linear("k_proj", [kv_heads * head_dim, width], qkv_bias)?;
        let v = b.linear("v_proj", [kv_heads * head_dim, width], qkv_bias)?;
        let o = b.linear("o_proj", [width, heads * head_dim], plan.o_bias)?;
        let norms = match plan.norms {
            HeadNorms::Absent => None,
            HeadNorms::PerHead(plan) => Some([norm(b, "q_norm", plan, head_dim)?, norm(b, "k_norm", plan, head_dim)?]),
            HeadNorms::WholeWidth(plan) => {
                Some([norm(b, "q_norm", plan, heads * head_dim)?, norm(b, "k_norm", plan, kv_heads * head_dim)?])
            }
        };
        b.link(v, &[o], ChannelMap::RepeatedHeads { head_dim, repeat: heads / kv_heads });
        b.fused("qkv_proj", &[q, k, v]);
        parts = Some((vec![q, k, v], o));
        Ok(Attention { q, k, v, o, norms, plan: plan.clone() })
    })?;
    let (first, last) = parts.expect("the closure ran, else there were an error");
    Ok((id, first, last))
}

impl Attention {
    fn rule(&self, key_mask: Presence) -> Rule {
        let mask = self.plan.window.map_or(Mask::Causal, Mask::Window);
        Rule { scale: self.plan.scale, mask, softcap: self.plan.softcap, sinks: Presence::Absent, key_mask }
    }

    /// Heads of a projection, normalized where they are.
    fn heads(&self, cx: &mut Cx<'_>, proj: ModuleId, norm: Option<ModuleId>, x: &Value) -> Result<Value> {
        let mut y = cx.call(proj, [x.clone()])?;
        let split = Op::SplitHeads { head_dim: self.plan.head_dim };
        match (norm, self.plan.norms) {
            (Some(norm), HeadNorms::WholeWidth(_)) => {
                y = cx.call(norm, [y])?;
                cx.apply(split, [y])
            }
            (Some(norm), _) => {
                y = cx.apply(split, [y])?;
                cx.call(norm, [y])
            }
            (None, _) => cx.apply(split, [y]),
        }
    }
}

impl Layer for Attention {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let ([x, cos, sin], key_mask) = match inputs.as_slice() {
            [x, cos, sin] => ([x, cos, sin], None),
            [x, cos, sin, mask] => ([x, cos, sin], Some(mask.clone())),
            _ => {
                return Err(
                    ErrorKind::Arity { found: inputs.len(), expected: "x, cos, sin and perhaps a key mask" }.into()
                );
            }
        };
        let [q_norm, k_norm] = self.norms.map_or([None; 2], |norms| norms.map(Some));
        let mut q = self.heads(cx, self.q, q_norm, x)?;
        let mut k = self.heads(cx, self.k, k_norm, x)?;
        let v = self.heads(cx, self.v, None, x)?;
        if let Some(pairing) = self.plan.rope {
            q = cx.apply(Op::Rope { pairing }, [q, cos.clone(), sin.clone()])?;
            k = cx.apply(Op::Rope { pairing }, [k, cos.clone(), sin.clone()])?;
        }
        let presence = if key_mask.is_some() { Presence::Given } else { Presence::Absent };
        let mut qkv = vec![q, k, v];
        qkv.extend(key_mask);
        let heads = cx.apply_all(Op::Attention(self.rule(presence)), qkv)?;
        let [heads] = super::exactly(heads, "one result")?;
        let merged = cx.apply(Op::MergeHeads, [heads])?;
        cx.call_all(self.o, vec![merged])
    }
}
