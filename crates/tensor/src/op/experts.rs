//! Routing rows to experts, computing them, and putting them together again.

use kernels::Element;
use kernels::activation::Activation;
use rayon::prelude::*;

use super::{GroupScore, Groups, Normalize, Route, Scores, linear, with_float};
use crate::error::{ErrorKind, Result};
use crate::{Engine, Routing, Scalar, Tensor};

/// logits (N, E), then a correction (E) or none -> weights (N, k), experts (N, k).
pub(super) fn route(engine: &Engine, route: &Route, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
    let logits = &inputs[0];
    let (rows, experts) = (logits.shape()[0], logits.shape()[1]);
    let correction = inputs.get(1).map(Tensor::to_f32).transpose()?;
    let numbers = logits.to_f32()?;
    let mut scores = vec![0.0; numbers.len()];
    match route.scores {
        Scores::Softmax => kernels::softmax::softmax(engine.profile, experts, &numbers, &mut scores)?,
        Scores::Sigmoid => kernels::activation::activate(engine.profile, Activation::Sigmoid, &numbers, &mut scores)?,
        Scores::SoftmaxOfChosen | Scores::SigmoidOfChosen => scores.copy_from_slice(&numbers),
    }
    let mut weights = Vec::with_capacity(rows * route.n_chosen);
    let mut chosen = Vec::with_capacity(rows * route.n_chosen);
    for row in scores.chunks_exact(experts.max(1)) {
        let corrected: Vec<f32> = match &correction {
            Some(correction) => row.iter().zip(correction.iter()).map(|(score, more)| score + more).collect(),
            None => row.to_vec(),
        };
        let mut order = route.groups.map_or_else(|| (0..experts).collect(), |groups| groups.members(&corrected));
        order.sort_by(|&a, &b| corrected[b].total_cmp(&corrected[a]));
        order.truncate(route.n_chosen);
        let mut picked: Vec<f32> = order.iter().map(|&expert| row[expert]).collect();
        let from = picked.clone();
        match route.scores {
            Scores::SoftmaxOfChosen => {
                kernels::softmax::softmax(engine.profile, route.n_chosen, &from, &mut picked)?;
            }
            Scores::SigmoidOfChosen => {
                kernels::activation::activate(engine.profile, Activation::Sigmoid, &from, &mut picked)?;
            }
            Scores::Softmax | Scores::Sigmoid => {}
        }
        if route.normalize == Normalize::ToOne {
            let sum: f32 = picked.iter().sum();
            picked.iter_mut().for_each(|weight| *weight /= sum);
        }
        weights.extend(picked.iter().map(|weight| weight * route.factor));
        chosen.extend(order.into_iter().map(|expert| expert as u32));
    }
    let shape = [rows, route.n_chosen];
    let weights = with_float!(logits.dtype(), T => {
        engine.budget.tensor(weights.iter().map(|&weight| <T as Element>::from_f32(weight)).collect::<Vec<T>>(), &shape)
    })?;
    Ok(vec![weights, engine.budget.tensor(chosen, &shape)?])
}

impl Groups {
    /// The experts of the best groups, in rising order; equal groups go to the lower index.
    fn members(self, scores: &[f32]) -> Vec<usize> {
        let size = scores.len().checked_div(self.n_groups).unwrap_or(0).max(1);
        let worth = |group: &[f32]| {
            let mut sorted = group.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            match self.by {
                GroupScore::Best => sorted[0],
                GroupScore::SumOfTwo => sorted.iter().take(2).sum(),
            }
        };
        let worths: Vec<f32> = scores.chunks_exact(size).map(worth).collect();
        let mut order: Vec<usize> = (0..worths.len()).collect();
        order.sort_by(|&a, &b| worths[b].total_cmp(&worths[a]));
        order.truncate(self.n_chosen);
        order.sort_unstable();
        order.into_iter().flat_map(|group| group * size..(group + 1) * size).collect()
    }
}

/// x (N, C), experts (N, k) -> rows, offsets (E + 1), places (N, k).
pub(super) fn dispatch(engine: &Engine, experts: usize, x: &Tensor, chosen: &Tensor) -> Result<Vec<Tensor>> {
    let x = x.dense(&engine.budget)?;
    let tokens = x.shape()[0];
    let per_token = chosen.shape()[1];
    let choices = chosen.as_slice::<u32>()?;
    if let Some(&found) = choices.iter().find(|&&expert| expert as usize >= experts) {
        return Err(ErrorKind::Index { found: found.into(), bound: experts }.into());
    }
    let mut offsets = vec![0u32; experts + 1];
    let mut places = vec![0u32; choices.len()];
    let rows = match engine.routing {
        Routing::All => {
            offsets.iter_mut().enumerate().for_each(|(expert, offset)| *offset = (expert * tokens) as u32);
            for (idx, &expert) in choices.iter().enumerate() {
                places[idx] = expert * tokens as u32 + (idx / per_token) as u32;
            }
            x.repeat(experts)
        }
        Routing::Chosen => {
            choices.iter().for_each(|&expert| offsets[expert as usize + 1] += 1);
            (0..experts).for_each(|expert| offsets[expert + 1] += offsets[expert]);
            let mut next = offsets.clone();
            let mut token_of = vec![0u32; choices.len()];
            for (idx, &expert) in choices.iter().enumerate() {
                let place = &mut next[expert as usize];
                places[idx] = *place;
                token_of[*place as usize] = (idx / per_token) as u32;
                *place += 1;
            }
            let width = x.shape()[1];
            with_float!(x.dtype(), T => Tensor::build(&engine.budget, &[choices.len(), width], |out: &mut [T]| {
                Ok::<_, crate::Error>(kernels::embedding::gather(&token_of, x.as_slice::<T>()?, width, out)?)
            }))?
        }
    };
    let offsets = engine.budget.tensor(offsets, &[experts + 1])?;
    Ok(vec![rows, offsets, engine.budget.tensor(places, chosen.shape())?])
}

/// The rows of expert `expert`, without a copy: rows (R, C) or the view (E, N, C) -> (rows of the expert, C).
///
/// # Errors
/// [`ErrorKind::Index`] for offsets that leave the rows.
pub fn expert_rows(rows: &Tensor, offsets: &Tensor, expert: usize) -> Result<Tensor> {
    if rows.shape().len() == 3 {
        let one = rows.slice(0, expert, 1)?;
        let shape = one.shape()[1..].to_vec();
        return one.reshape(&shape);
    }
    let offsets = offsets.as_slice::<u32>()?;
    let end_of = |idx: usize| {
        offsets.get(idx).map(|&at| at as usize).ok_or(ErrorKind::Index { found: idx as i64, bound: offsets.len() })
    };
    let (start, end) = (end_of(expert)?, end_of(expert + 1)?);
    rows.slice(0, start, end.saturating_sub(start))
}

/// rows, offsets, E weights, none or E biases -> (R, O).
pub(super) fn grouped(engine: &Engine, experts: usize, inputs: &[Tensor]) -> Result<Tensor> {
    if inputs.len() != 2 + experts && inputs.len() != 2 + 2 * experts {
        return Err(ErrorKind::Arity { found: inputs.len(), expected: format!("{}", 2 + experts) }.into());
    }
    let rows: Vec<_> = (0..experts).map(|expert| expert_rows(&inputs[0], &inputs[1], expert)).collect::<Result<_>>()?;
    let (weights, biases) = inputs[2..].split_at(experts);
    grouped_linear(engine, &rows, weights, biases)
}

/// A linear layer per expert, results one below the other: E times rows (r, C), E times w (O, C), none or E times bias (O)
/// -> (sum of r, O).
///
/// # Errors
/// Those of [`Op::Linear`](crate::Op::Linear).
pub fn grouped_linear(engine: &Engine, rows: &[Tensor], weights: &[Tensor], biases: &[Tensor]) -> Result<Tensor> {
    let (Some(first_rows), Some(first)) = (rows.first(), weights.first()) else {
        return Err(ErrorKind::Arity { found: weights.len(), expected: "at least one expert".to_owned() }.into());
    };
    for (idx, (x, w)) in rows.iter().zip(weights).enumerate() {
        let inputs = [Some(x), Some(w), biases.get(idx)].into_iter().flatten().map(crate::Spec::of).collect::<Vec<_>>();
        crate::Op::Linear.infer(&inputs)?;
        if w.shape() != first.shape() {
            let found = crate::Spec::of(w).shape;
            return Err(
                ErrorKind::Shape { argument: "w", found, expected: "the shape of the first expert".into() }.into()
            );
        }
    }
    let width = first.shape()[0];
    let total: usize = rows.iter().map(|x| x.shape()[0]).sum();
    with_float!(first_rows.dtype(), T => Tensor::build(&engine.budget, &[total, width], |y: &mut [T]| {
        let mut rest = y;
        for (idx, (x, w)) in rows.iter().zip(weights).enumerate() {
            let (part, after) = rest.split_at_mut(x.shape()[0] * width);
            rest = after;
            let (x, w) = (x.dense(&engine.budget)?, w.dense(&engine.budget)?);
            if !part.is_empty() {
                linear::into(engine, &x, &w, biases.get(idx), part)?;
            }
        }
        Ok(())
    }))
}

/// rows (R, C) or the view (E, N, C), places (N, k), weights (N, k) -> the shape of rows.
pub(super) fn weigh_rows(engine: &Engine, inputs: &[Tensor]) -> Result<Tensor> {
    let rows = inputs[0].dense(&engine.budget)?;
    let width = rows.shape().last().copied().unwrap_or(0).max(1);
    let (places, weights) = (checked_places(&inputs[1], rows.elements() / width)?, inputs[2].to_f32()?);
    with_float!(rows.dtype(), T => {
        let from = rows.as_slice::<T>()?;
        Tensor::build(&engine.budget, rows.shape(), |out: &mut [T]| {
            out.copy_from_slice(from);
            for (&place, &weight) in places.iter().zip(weights.iter()) {
                for x in &mut out[place as usize * width..][..width] {
                    *x = <T as Element>::from_f32(Element::to_f32(*x) * weight);
                }
            }
            Ok(())
        })
    })
}

/// places (N, k), each below `n_rows`.
fn checked_places(places: &Tensor, n_rows: usize) -> Result<&[u32]> {
    let places = places.as_slice::<u32>()?;
    match places.iter().find(|&&place| place as usize >= n_rows) {
        Some(&found) => Err(ErrorKind::Index { found: found.into(), bound: n_rows }.into()),
        None => Ok(places),
    }
}

/// rows (R, C), places (N, k), weights (N, k) or none -> (N, C).
pub(super) fn combine(engine: &Engine, inputs: &[Tensor]) -> Result<Tensor> {
    let rows = inputs[0].dense(&engine.budget)?;
    with_float!(rows.dtype(), T => combine_typed::<T>(engine, &rows, &inputs[1], inputs.get(2)))
}

fn combine_typed<T: Scalar + Element>(
    engine: &Engine,
    rows: &Tensor,
    places: &Tensor,
    weights: Option<&Tensor>,
) -> Result<Tensor> {
    let (n_rows, width, per_token) = (rows.shape()[0], rows.shape()[1], places.shape()[1]);
    let (data, places) = (rows.as_slice::<T>()?, checked_places(places, n_rows)?);
    let weights = weights.map(Tensor::to_f32).transpose()?;
    let tokens = places.len().checked_div(per_token).unwrap_or(0);
    Tensor::build(&engine.budget, &[tokens, width], |out: &mut [T]| {
        out.par_chunks_exact_mut(width.max(1)).enumerate().for_each(|(token, out)| {
            let weight = |idx: usize| weights.as_ref().map_or(1.0, |weights| weights[idx]);
            let mut order: Vec<(u32, f32)> =
                (token * per_token..(token + 1) * per_token).map(|idx| (places[idx], weight(idx))).collect();
            // Rows lie in order of expert, so rising places are rising experts.
            order.sort_unstable_by_key(|&(place, _)| place);
            out.fill(T::from_f32(0.0));
            for (place, weight) in order {
                let row = &data[place as usize * width..][..width];
                for (out, &x) in out.iter_mut().zip(row) {
                    let product = T::from_f32(Element::to_f32(x) * weight);
                    *out = T::from_f32(Element::to_f32(*out) + Element::to_f32(product));
                }
            }
        });
        Ok(())
    })
}
