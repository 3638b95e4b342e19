//! Attention over latents (MLA): keys and values are made of a narrow projection, positions of a few channels beside it.

use graph::{ModuleId, Value};
use tensor::{Attention as Rule, Mask, Op, Pairing, Presence};

use super::{NormPlan, exactly, norm};
use crate::build::{Bias, Builder};
use crate::config::{Config, Flag};
use crate::context::{Cx, Layer};
use crate::error::{Error, ErrorKind, Result};
use crate::links::ChannelMap;
use crate::rope::latent_score_factor;

/// Shape of an attention over latents.
#[derive(Clone)]
pub(crate) struct LatentPlan {
    pub(crate) class: &'static str,
    /// C.
    pub(crate) width: usize,
    /// H.
    pub(crate) heads: usize,
    /// Width of the query's latent; none for a query that is projected at once.
    pub(crate) query_rank: Option<usize>,
    /// Width of the latent of keys and values.
    pub(crate) kv_rank: usize,
    /// Channels of query and key without positions.
    pub(crate) nope_dim: usize,
    /// Channels of query and key that turn; the key's are shared by all heads.
    pub(crate) rope_dim: usize,
    /// Channels of a value.
    pub(crate) value_dim: usize,
    /// Bias of the projections to latents and of the result.
    pub(crate) bias: Bias,
    pub(crate) norm: NormPlan,
    /// Factor on the scores.
    pub(crate) scale: f32,
    pub(crate) pairing: Pairing,
}

/// What the config keys of DeepSeek say; latents are normalized with an epsilon of their own.
pub(crate) fn latent_plan(
    config: &Config<'_>,
    class: &'static str,
    norm: NormPlan,
    pairing: Pairing,
) -> Result<LatentPlan> {
    let heads = config.size("num_attention_heads")?;
    if let Some(found) = config.size_of("num_key_value_heads")?.filter(|&found| found != heads) {
        return Err(
            Error::config(found, format!("the {heads} heads of the query")).at("config.json: num_key_value_heads")
        );
    }
    let (nope_dim, rope_dim) = (config.size("qk_nope_head_dim")?, config.size("qk_rope_head_dim")?);
    let scale = 1.0 / ((nope_dim + rope_dim) as f64).sqrt() * latent_score_factor(config)?;
    Ok(LatentPlan {
        class,
        width: config.size("hidden_size")?,
        heads,
        query_rank: config.size_of("q_lora_rank")?,
        kv_rank: config.size("kv_lora_rank")?,
        nope_dim,
        rope_dim,
        value_dim: config.size("v_head_dim")?,
        bias: Bias::from_flag(config.flag_or("attention_bias", Flag::Off)?),
        norm: NormPlan { eps: 1e-6, ..norm },
        scale: scale as f32,
        pairing,
    })
}

/// How the query is made.
enum Query {
    AtOnce(ModuleId),
    Latent([ModuleId; 3]),
}

/// x (B, T, C), cos, sin, then a key mask or not -> (B, T, C).
struct LatentAttention {
    query: Query,
    kv_down: ModuleId,
    kv_norm: ModuleId,
    kv_up: ModuleId,
    o: ModuleId,
    plan: LatentPlan,
}

/// An attention under `name`; gives its id, the linears that take its input, and the one that gives its result.
pub(crate) fn latent_attention(
    b: &mut Builder,
    name: &str,
    plan: &LatentPlan,
) -> Result<(ModuleId, Vec<ModuleId>, ModuleId)> {
    let LatentPlan { width, heads, kv_rank, nope_dim, rope_dim, value_dim, bias, .. } = *plan;
    let mut parts = None;
    let id = b.module(name, plan.class, |b| {
        let query_rows = heads * (nope_dim + rope_dim);
        let (query, first) = match plan.query_rank {
            None => {
                let q = b.linear("q_proj", [query_rows, width], Bias::Absent)?;
                (Query::AtOnce(q), q)
            }
            Some(rank) => {
                let down = b.linear("q_a_proj", [rank, width], bias)?;
                let norm = norm(b, "q_a_layernorm", plan.norm, rank)?;
                let up = b.linear("q_b_proj", [query_rows, rank], Bias::Absent)?;
                b.link(norm, &[up], ChannelMap::Same);
                (Query::Latent([down, norm, up]), down)
            }
        };
        let kv_down = b.linear("kv_a_proj_with_mqa", [kv_rank + rope_dim, width], bias)?;
        let kv_norm = norm(b, "kv_a_layernorm", plan.norm, kv_rank)?;
        let kv_up = b.linear("kv_b_proj", [heads * (nope_dim + value_dim), kv_rank], Bias::Absent)?;
        let o = b.linear("o_proj", [width, heads * value_dim], bias)?;
        b.link(kv_norm, &[kv_up], ChannelMap::Same);
        if plan.query_rank.is_some() {
            b.fused("fused_qkv_a_proj", &[first, kv_down]);
        }
        parts = Some((vec![first, kv_down], o));
        Ok(LatentAttention { query, kv_down, kv_norm, kv_up, o, plan: plan.clone() })
    })?;
    let (first, last) = parts.expect("the closure ran, else there were an error");
    Ok((id, first, last))
}

impl Layer for LatentAttention {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let ([x, cos, sin], key_mask) = match inputs.as_slice() {
            [x, cos, sin] => ([x, cos, sin], None),
            [x, cos, sin, mask] => ([x, cos, sin], Some(mask.clone())),
            found => {
                let expected = "x, cos, sin and perhaps a key mask";
                return Err(ErrorKind::Arity { found: found.len(), expected }.into());
            }
        };
        let LatentPlan { kv_rank, nope_dim, rope_dim, value_dim, pairing, scale, .. } = self.plan;
        let narrow = |cx: &mut Cx<'_>, x: &Value, start, len| cx.apply(Op::Narrow { start, len }, [x.clone()]);
        let split = |cx: &mut Cx<'_>, x: Value, head_dim| cx.apply(Op::SplitHeads { head_dim }, [x]);
        let turn = |cx: &mut Cx<'_>, x: Value| cx.apply(Op::Rope { pairing }, [x, cos.clone(), sin.clone()]);

        let mut query = x.clone();
        let steps: &[ModuleId] = match &self.query {
            Query::AtOnce(linear) => std::slice::from_ref(linear),
            Query::Latent(steps) => steps,
        };
        for &step in steps {
            query = cx.call(step, [query])?;
        }
        let query = split(cx, query, nope_dim + rope_dim)?;
        let (still, turning) = (narrow(cx, &query, 0, nope_dim)?, narrow(cx, &query, nope_dim, rope_dim)?);
        let turned = turn(cx, turning)?;
        let q = cx.apply(Op::ConcatHeads, [still, turned])?;

        let down = cx.call(self.kv_down, [x.clone()])?;
        let (latent, turning) = (narrow(cx, &down, 0, kv_rank)?, narrow(cx, &down, kv_rank, rope_dim)?);
        let turning = split(cx, turning, rope_dim)?;
        let turned = turn(cx, turning)?;
        let latent = cx.call(self.kv_norm, [latent])?;
        let up = cx.call(self.kv_up, [latent])?;
        let up = split(cx, up, nope_dim + value_dim)?;
        let (still, v) = (narrow(cx, &up, 0, nope_dim)?, narrow(cx, &up, nope_dim, value_dim)?);
        let k = cx.apply(Op::ConcatHeads, [still, turned])?;

        let presence = if key_mask.is_some() { Presence::Given } else { Presence::Absent };
        let rule = Rule { scale, mask: Mask::Causal, softcap: None, sinks: Presence::Absent, key_mask: presence };
        let operands = [q, k, v].into_iter().chain(key_mask).collect();
        let [heads] = exactly(cx.apply_all(Op::Attention(rule), operands)?, "one result")?;
        let merged = cx.apply(Op::MergeHeads, [heads])?;
        cx.call_all(self.o, vec![merged])
    }
}
