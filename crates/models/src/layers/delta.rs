//! The gated delta net: a short convolution, then a state per head that keys write and queries read.

use graph::{ModuleId, Value};
use tensor::{Activation, Op};

use super::{GateOrder, NormPlan, ShortConv, exactly, gated_norm, short_conv};
use crate::build::{Bias, Builder};
use crate::context::{Cx, Layer};
use crate::error::{ErrorKind, Result};
use crate::store::ParameterId;

/// Shape of a gated delta net.
#[derive(Clone)]
pub(crate) struct DeltaPlan {
    pub(crate) class: &'static str,
    /// C.
    pub(crate) width: usize,
    pub(crate) key_heads: usize,
    pub(crate) value_heads: usize,
    pub(crate) key_dim: usize,
    pub(crate) value_dim: usize,
    /// Tokens that the convolution sees.
    pub(crate) taps: usize,
    pub(crate) activation: Activation,
    /// The norm of a head's result, whose gate comes after it.
    pub(crate) norm: NormPlan,
}

/// x (B, T, C), then cos and sin or not, then a key mask or not -> (B, T, C).
struct DeltaNet {
    conv: ModuleId,
    qkvz: ModuleId,
    ba: ModuleId,
    norm: ModuleId,
    out: ModuleId,
    gate_bias: ParameterId,
    decay_log: ParameterId,
    plan: DeltaPlan,
}

/// A net under `name`; gives its id, the linears that take its input, and the one that gives its result.
pub(crate) fn delta_net(b: &mut Builder, name: &str, plan: &DeltaPlan) -> Result<(ModuleId, Vec<ModuleId>, ModuleId)> {
    let DeltaPlan { width, key_heads, value_heads, key_dim, value_dim, .. } = *plan;
    let (keys, values) = (key_heads * key_dim, value_heads * value_dim);
    let mut parts = None;
    let id = b.module(name, plan.class, |b| {
        let gate_bias = b.parameter("dt_bias", &[value_heads]);
        let decay_log = b.parameter("A_log", &[value_heads]);
        let conv = ShortConv { channels: 2 * keys + values, taps: plan.taps, activation: plan.activation };
        let conv = short_conv(b, "conv1d", conv, Bias::Absent)?;
        let qkvz = b.linear("in_proj_qkvz", [2 * keys + 2 * values, width], Bias::Absent)?;
        let ba = b.linear("in_proj_ba", [2 * value_heads, width], Bias::Absent)?;
        let norm = gated_norm(b, "norm", plan.norm, value_dim, GateOrder::NormFirst)?;
        let out = b.linear("out_proj", [width, values], Bias::Absent)?;
        parts = Some((vec![qkvz, ba], out));
        Ok(DeltaNet { conv, qkvz, ba, norm, out, gate_bias, decay_log, plan: plan.clone() })
    })?;
    let (first, last) = parts.expect("the closure ran, else there were an error");
    Ok((id, first, last))
}

impl Layer for DeltaNet {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let (x, key_mask) = match inputs.as_slice() {
            [x] | [x, _, _] => (x.clone(), None),
            [x, mask] | [x, _, _, mask] => (x.clone(), Some(mask.clone())),
            found => {
                let expected = "x, perhaps cos and sin, and perhaps a key mask";
                return Err(ErrorKind::Arity { found: found.len(), expected }.into());
            }
        };
        let x = match key_mask {
            Some(mask) => cx.apply(Op::HideRows, [x, mask])?,
            None => x,
        };
        let DeltaPlan { key_heads, value_heads, key_dim, value_dim, .. } = self.plan;
        let (keys, values, repeat) = (key_heads * key_dim, value_heads * value_dim, value_heads / key_heads);
        let narrow = |cx: &mut Cx<'_>, x: &Value, start, len| cx.apply(Op::Narrow { start, len }, [x.clone()]);
        let split = |cx: &mut Cx<'_>, x: Value, head_dim| cx.apply(Op::SplitHeads { head_dim }, [x]);
        let merge = |cx: &mut Cx<'_>, x: Value| cx.apply(Op::MergeHeads, [x]);

        // Each key head lies beside the value heads that it serves: query, key, values, gates of values.
        let group_values = repeat * value_dim;
        let mixed = cx.call(self.qkvz, [x.clone()])?;
        let mixed = split(cx, mixed, 2 * key_dim + 2 * group_values)?;
        let mut parts = Vec::with_capacity(4);
        let mut start = 0;
        for len in [key_dim, key_dim, group_values, group_values] {
            let part = narrow(cx, &mixed, start, len)?;
            parts.push(merge(cx, part)?);
            start += len;
        }
        let [q, k, v, z] = exactly(parts, "query, key, value and gate")?;
        let ba = cx.call(self.ba, [x])?;
        let ba = split(cx, ba, 2 * repeat)?;
        let (betas, gates) = (narrow(cx, &ba, 0, repeat)?, narrow(cx, &ba, repeat, repeat)?);
        let (betas, gates) = (merge(cx, betas)?, merge(cx, gates)?);

        let mut joined = split(cx, q, keys)?;
        for (part, len) in [(k, keys), (v, values)] {
            let part = split(cx, part, len)?;
            joined = cx.apply(Op::ConcatHeads, [joined, part])?;
        }
        let joined = merge(cx, joined)?;
        let mixed = cx.call(self.conv, [joined])?;
        let (q, k) = (narrow(cx, &mixed, 0, keys)?, narrow(cx, &mixed, keys, keys)?);
        let v = narrow(cx, &mixed, 2 * keys, values)?;
        let (q, k, v) = (split(cx, q, key_dim)?, split(cx, k, key_dim)?, split(cx, v, value_dim)?);
        let (decay_log, gate_bias) = (cx.parameter(self.decay_log)?, cx.parameter(self.gate_bias)?);
        let heads = cx.apply(Op::DeltaScan, [v, k, q, betas, gates, decay_log, gate_bias])?;
        let z = split(cx, z, value_dim)?;
        let heads = cx.call(self.norm, [heads, z])?;
        let merged = merge(cx, heads)?;
        cx.call_all(self.out, vec![merged])
    }
}
