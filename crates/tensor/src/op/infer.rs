//! Which specs come out of an operation for which go in.

use super::{LongFrequencies, Op, Presence};
use crate::error::{Error, ErrorKind, Result};
use crate::{DType, Dim, Spec, Symbol};

pub(super) fn infer(op: &Op, inputs: &[Spec]) -> Result<Vec<Spec>> {
    let one = |spec: Spec| Ok(vec![spec]);
    match op {
        Op::Linear => {
            let (x, parameters) = split(inputs, 1..=2)?;
            let (w, bias) = (&parameters[0], parameters.get(1));
            float("x", x)?;
            one(x.with_width(linear(x, w, bias)?))
        }
        Op::GroupedLinear { experts } => {
            let (x, rest) = split(inputs, experts + 1..=2 * experts + 1)?;
            rank("offsets", &rest[0], 1)?;
            let (weights, biases) = rest[1..].split_at(*experts);
            if !biases.is_empty() && biases.len() != *experts {
                return Err(ErrorKind::Arity { found: inputs.len(), expected: format!("{}", 2 * experts + 2) }.into());
            }
            let mut width = 0;
            for (idx, w) in weights.iter().enumerate() {
                let rows = linear(x, w, biases.get(idx))?;
                if idx > 0 && rows != width {
                    return Err(shape("w", w, format!("the {width} rows of the first expert")));
                }
                width = rows;
            }
            one(x.with_width(width))
        }
        Op::Embedding => {
            let [ids, table] = exactly(inputs)?;
            if !matches!(ids.dtype, DType::I64 | DType::U32 | DType::I32) {
                return Err(dtype("ids", ids, "one of I64, I32, U32"));
            }
            rank("table", table, 2)?;
            float("table", table)?;
            let mut shape = ids.shape.clone();
            shape.push(table.shape[1].clone());
            one(Spec::new(table.dtype, shape))
        }
        Op::RmsNorm { .. } | Op::LayerNorm { .. } => {
            let most = if matches!(op, Op::RmsNorm { .. }) { 1 } else { 2 };
            let (x, parameters) = split(inputs, 0..=most)?;
            float("x", x)?;
            let width = x.width()?;
            for parameter in parameters {
                float("weight", parameter)?;
                if parameter.shape != [width.into()] {
                    return Err(shape("weight", parameter, format!("({width})")));
                }
            }
            one(x.clone())
        }
        Op::RopeTable { inverse_frequencies, longer, .. } => {
            let [x] = exactly(inputs)?;
            if let Some(LongFrequencies::Given(long)) = longer.as_ref().map(|it| &it.frequencies)
                && long.len() != inverse_frequencies.len()
            {
                return Err(ErrorKind::Length { found: long.len(), expected: inverse_frequencies.len() }.into());
            }
            rank("x", x, 3)?;
            float("x", x)?;
            let table = Spec::new(DType::F32, vec![x.shape[1].clone(), inverse_frequencies.len().into()]);
            Ok(vec![table.clone(), table])
        }
        Op::Rope { .. } => {
            let [x, cos, sin] = exactly(inputs)?;
            rank("x", x, 4)?;
            float("x", x)?;
            let width = x.width()?;
            for table in [cos, sin] {
                rank("table", table, 2)?;
                if table.dtype != DType::F32 {
                    return Err(dtype("table", table, "F32"));
                }
                if table.shape[0] != x.shape[1] || table.width()? * 2 > width {
                    return Err(shape("table", table, format!("({}, at most {})", x.shape[1], width / 2)));
                }
            }
            same("sin", sin, cos)?;
            one(x.clone())
        }
        Op::KeyMask => {
            let [mask] = exactly(inputs)?;
            rank("mask", mask, 2)?;
            one(Spec::new(DType::F32, mask.shape.clone()))
        }
        Op::Positions { .. } => {
            let (ids, mask) = split(inputs, 0..=1)?;
            rank("ids", ids, 2)?;
            if let Some(mask) = mask.first().filter(|mask| mask.shape != ids.shape) {
                return Err(shape("mask", mask, format!("the shape of {ids}")));
            }
            one(Spec::new(DType::U32, ids.shape.clone()))
        }
        Op::Alibi { slopes, .. } => {
            let (x, mask) = split(inputs, 0..=1)?;
            rank("x", x, 3)?;
            if let Some(mask) = mask.first().filter(|mask| mask.shape != x.shape[..2]) {
                return Err(shape("mask", mask, format!("batch and tokens of {x}")));
            }
            one(Spec::new(DType::F32, vec![x.shape[0].clone(), slopes.len().into(), x.shape[1].clone()]))
        }
        Op::ConcatHeads => {
            let [a, b] = exactly(inputs)?;
            rank("a", a, 4)?;
            rank("b", b, 4)?;
            float("a", a)?;
            let is_shared = b.shape[2].known()? == 1;
            if b.dtype != a.dtype || b.shape[..2] != a.shape[..2] || !is_shared && b.shape[2] != a.shape[2] {
                return Err(shape("b", b, format!("batch, tokens and heads of {a}, in its type")));
            }
            one(a.with_width(a.width()? + b.width()?))
        }
        Op::CausalConv => {
            let (x, parameters) = split(inputs, 1..=2)?;
            rank("x", x, 3)?;
            float("x", x)?;
            rank("w", &parameters[0], 3)?;
            if parameters[0].shape[0] != x.shape[2] || parameters[0].shape[1] != 1.into() {
                return Err(shape("w", &parameters[0], format!("({}, 1, K)", x.shape[2])));
            }
            if let Some(bias) = parameters.get(1).filter(|bias| bias.shape != x.shape[2..]) {
                return Err(shape("bias", bias, format!("({})", x.shape[2])));
            }
            one(x.clone())
        }
        Op::SelectiveScan { .. } => {
            let [x, steps, k, q, by_head @ ..] = exactly::<7>(inputs)?;
            scanned([x, k, q], &[steps], by_head)
        }
        Op::DeltaScan => {
            let [v, k, q, betas, gates, by_head @ ..] = exactly::<7>(inputs)?;
            scanned([v, k, q], &[betas, gates], by_head)
        }
        Op::HideRows => {
            let [x, mask] = exactly(inputs)?;
            rank("x", x, 3)?;
            float("x", x)?;
            if mask.shape != x.shape[..2] || mask.dtype != DType::F32 {
                return Err(shape("mask", mask, format!("batch and tokens of {x}, F32")));
            }
            one(x.clone())
        }
        Op::ScaleByPosition { .. } => {
            let [x] = exactly(inputs)?;
            rank("x", x, 4)?;
            float("x", x)?;
            one(x.clone())
        }
        Op::Attention(attention) => {
            let extras = [attention.sinks, attention.key_mask].iter().filter(|it| **it == Presence::Given).count();
            if inputs.len() != 3 + extras {
                return Err(ErrorKind::Arity { found: inputs.len(), expected: (3 + extras).to_string() }.into());
            }
            let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
            for (name, x) in [("q", q), ("k", k), ("v", v)] {
                rank(name, x, 4)?;
                float(name, x)?;
                if x.dtype != q.dtype {
                    return Err(dtype(name, x, &q.dtype.to_string()));
                }
            }
            if k.shape[3] != q.shape[3] || k.shape[..1] != q.shape[..1] {
                return Err(shape("k", k, format!("batch and width of the query {q}")));
            }
            if v.shape[..3] != k.shape[..3] {
                return Err(shape("v", v, format!("batch, tokens and heads of the key {k}")));
            }
            let (heads, kv_heads) = (q.shape[2].known()?, k.shape[2].known()?);
            if kv_heads == 0 || heads % kv_heads != 0 {
                return Err(shape("k", k, format!("a number of heads that divides {heads}")));
            }
            let mut out = q.shape.clone();
            out[3] = v.shape[3].clone();
            one(Spec::new(q.dtype, out))
        }
        Op::Activate(_) | Op::Scale { .. } | Op::ScaleInType { .. } | Op::Softcap { .. } | Op::Softmax => {
            let [x] = exactly(inputs)?;
            float("x", x)?;
            one(x.clone())
        }
        Op::ScaleRows(_) => {
            let [gate, x] = exactly(inputs)?;
            rank("x", x, 2)?;
            float("x", x)?;
            same("gate", gate, &x.with_width(1))?;
            one(x.clone())
        }
        Op::Gated(_) | Op::GatedClamped { .. } | Op::Add | Op::Mul => {
            let [a, b] = exactly(inputs)?;
            float("a", a)?;
            same("b", b, a)?;
            one(a.clone())
        }
        Op::Route(route) => {
            let n_corrections = usize::from(route.correction == Presence::Given);
            let (logits, correction) = split(inputs, n_corrections..=n_corrections)?;
            rank("logits", logits, 2)?;
            float("logits", logits)?;
            let experts = logits.width()?;
            if let Some(correction) = correction.first().filter(|it| it.shape != [experts.into()]) {
                return Err(shape("correction", correction, format!("({experts})")));
            }
            if let Some(groups) = route.groups {
                let size = experts.checked_div(groups.n_groups).unwrap_or(0);
                let is_even = size * groups.n_groups == experts;
                if !is_even || groups.n_chosen > groups.n_groups || groups.n_chosen * size < route.n_chosen {
                    return Err(shape("logits", logits, format!("{} groups with enough experts", groups.n_groups)));
                }
            }
            if route.n_chosen == 0 || route.n_chosen > experts {
                return Err(shape("logits", logits, format!("at least {} experts", route.n_chosen.max(1))));
            }
            let weights = logits.with_width(route.n_chosen);
            Ok(vec![weights.clone(), Spec { dtype: DType::U32, ..weights }])
        }
        Op::Dispatch { experts } => {
            let [x, chosen] = exactly(inputs)?;
            rank("x", x, 2)?;
            rank("experts", chosen, 2)?;
            if chosen.dtype != DType::U32 {
                return Err(dtype("experts", chosen, "U32"));
            }
            if chosen.shape[0] != x.shape[0] {
                return Err(shape("experts", chosen, format!("the rows of {x}")));
            }
            let rows = Spec::new(x.dtype, vec![Dim::symbol(Symbol::Routed), x.shape[1].clone()]);
            Ok(vec![rows, Spec::new(DType::U32, vec![(experts + 1).into()]), chosen.clone()])
        }
        Op::WeighRows => {
            let [rows, places, weights] = exactly(inputs)?;
            float("rows", rows)?;
            rank("places", places, 2)?;
            if weights.shape != places.shape {
                return Err(shape("weights", weights, format!("the shape of the places {places}")));
            }
            one(rows.clone())
        }
        Op::Combine => {
            let (rows, rest) = split(inputs, 1..=2)?;
            let places = &rest[0];
            float("rows", rows)?;
            rank("rows", rows, 2)?;
            rank("places", places, 2)?;
            if let Some(weights) = rest.get(1).filter(|weights| weights.shape != places.shape) {
                return Err(shape("places", places, format!("the shape of the weights {weights}")));
            }
            one(Spec::new(rows.dtype, vec![places.shape[0].clone(), rows.shape[1].clone()]))
        }
        Op::Cast { dtype } => {
            let [x] = exactly(inputs)?;
            float("x", x)?;
            one(Spec::new(*dtype, x.shape.clone()))
        }
        Op::SplitHeads { head_dim } => {
            let [x] = exactly(inputs)?;
            let width = x.width()?;
            if *head_dim == 0 || width % head_dim != 0 {
                return Err(shape("x", x, format!("a width that {head_dim} divides")));
            }
            let mut out = x.with_width(width / head_dim);
            out.shape.push((*head_dim).into());
            one(out)
        }
        Op::MergeHeads => {
            let [x] = exactly(inputs)?;
            if x.shape.len() < 2 {
                return Err(shape("x", x, "at least two dimensions".to_owned()));
            }
            let mut out = x.shape.clone();
            let (last, heads) = (out.pop(), out.pop());
            let merged = last.zip(heads).map(|(last, heads)| heads.times(&last));
            out.extend(merged);
            one(Spec::new(x.dtype, out))
        }
        Op::Flatten => {
            let [x] = exactly(inputs)?;
            rank("x", x, 3)?;
            one(Spec::new(x.dtype, vec![x.shape[0].times(&x.shape[1]), x.shape[2].clone()]))
        }
        Op::Unflatten => {
            let [x, like] = exactly(inputs)?;
            rank("x", x, 2)?;
            rank("like", like, 3)?;
            if like.shape[0].times(&like.shape[1]) != x.shape[0] {
                return Err(shape("x", x, format!("the rows of {like}")));
            }
            one(Spec::new(x.dtype, vec![like.shape[0].clone(), like.shape[1].clone(), x.shape[1].clone()]))
        }
        Op::Narrow { start, len } => {
            let [x] = exactly(inputs)?;
            let width = x.width()?;
            if start.checked_add(*len).is_none_or(|end| end > width) {
                return Err(shape("x", x, format!("at least {} channels", start.saturating_add(*len))));
            }
            one(x.with_width(*len))
        }
        Op::Transpose { a, b } => {
            let [x] = exactly(inputs)?;
            if *a.max(b) >= x.shape.len() {
                return Err(shape("x", x, format!("at least {} dimensions", a.max(b) + 1)));
            }
            let mut out = x.clone();
            out.shape.swap(*a, *b);
            one(out)
        }
    }
}

/// O of a linear layer.
fn linear(x: &Spec, w: &Spec, bias: Option<&Spec>) -> Result<usize> {
    rank("w", w, 2)?;
    if w.dtype != x.dtype {
        return Err(dtype("w", w, &x.dtype.to_string()));
    }
    if x.shape.last() != Some(&w.shape[1]) {
        return Err(shape("x", x, format!("the {} columns of the weight", w.shape[1])));
    }
    let rows = w.shape[0].known()?;
    if let Some(bias) = bias
        && bias.shape != [rows.into()]
    {
        return Err(shape("bias", bias, format!("({rows})")));
    }
    Ok(rows)
}

/// Values (B, T, H, P), keys and queries (B, T, G, D), numbers by token and head (B, T, H), and parameters by head (H).
fn scanned([v, k, q]: [&Spec; 3], by_token: &[&Spec], by_head: &[Spec]) -> Result<Vec<Spec>> {
    rank("v", v, 4)?;
    rank("k", k, 4)?;
    float("v", v)?;
    same("q", q, k)?;
    if k.dtype != v.dtype || k.shape[..2] != v.shape[..2] {
        return Err(shape("k", k, format!("batch and tokens of {v}, in its type")));
    }
    for it in by_token {
        if it.shape != v.shape[..3] || it.dtype != v.dtype {
            return Err(shape("gates", it, format!("batch, tokens and heads of {v}, in its type")));
        }
    }
    for it in by_head {
        float("parameter", it)?;
        if it.shape != v.shape[2..3] {
            return Err(shape("parameter", it, format!("({})", v.shape[2])));
        }
    }
    Ok(vec![v.clone()])
}

fn exactly<const N: usize>(inputs: &[Spec]) -> Result<&[Spec; N]> {
    inputs.try_into().map_err(|_| ErrorKind::Arity { found: inputs.len(), expected: N.to_string() }.into())
}

/// The first input and between `more` others.
fn split(inputs: &[Spec], more: std::ops::RangeInclusive<usize>) -> Result<(&Spec, &[Spec])> {
    match inputs.split_first() {
        Some((x, rest)) if more.contains(&rest.len()) => Ok((x, rest)),
        _ => {
            let expected = format!("{} to {}", more.start() + 1, more.end() + 1);
            Err(ErrorKind::Arity { found: inputs.len(), expected }.into())
        }
    }
}

fn rank(argument: &'static str, spec: &Spec, dims: usize) -> Result<()> {
    if spec.shape.len() == dims { Ok(()) } else { Err(shape(argument, spec, format!("{dims} dimensions"))) }
}

fn float(argument: &'static str, spec: &Spec) -> Result<()> {
    match spec.dtype {
        DType::F32 | DType::BF16 | DType::F16 => Ok(()),
        found => Err(super::not_float(argument, found)),
    }
}

fn same(argument: &'static str, spec: &Spec, like: &Spec) -> Result<()> {
    if spec.shape != like.shape {
        return Err(shape(argument, spec, like.to_string()));
    }
    if spec.dtype != like.dtype {
        return Err(dtype(argument, spec, &like.dtype.to_string()));
    }
    Ok(())
}

fn shape(argument: &'static str, spec: &Spec, expected: String) -> Error {
    ErrorKind::Shape { argument, found: spec.shape.clone(), expected }.into()
}

fn dtype(argument: &'static str, spec: &Spec, expected: &str) -> Error {
    ErrorKind::DType { argument, found: spec.dtype, expected: expected.to_owned() }.into()
}
