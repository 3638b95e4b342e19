//! Operations: what they refuse, and what they compute where no model covers it.

use half::bf16;

use super::{Attention, Normalize, Presence, Route, Scores};
use crate::{Activation, Budget, DType, Dim, Engine, ErrorKind, Mask, Op, Routing, Spec, Symbol, Tensor};

fn engine() -> Engine {
    Engine::new(Budget::unlimited())
}

fn f32s(engine: &Engine, data: &[f32], shape: &[usize]) -> Tensor {
    engine.budget.tensor(data.to_vec(), shape).unwrap()
}

fn counted(engine: &Engine, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    f32s(engine, &(0..n).map(|i| (i * 7 % 11) as f32 * 0.25 - 1.0).collect::<Vec<_>>(), shape)
}

fn one(op: &Op, engine: &Engine, inputs: Vec<Tensor>) -> Tensor {
    op.forward(engine, inputs).unwrap().remove(0)
}

#[test]
fn symbolic_extents_pass_through_and_known_ones_are_checked() {
    let (b, t) = (Dim::symbol(Symbol::Batch), Dim::symbol(Symbol::Time));
    let x = Spec::new(DType::BF16, vec![b.clone(), t.clone(), 32.into()]);
    let w = Spec::new(DType::BF16, vec![64.into(), 32.into()]);
    let y = Op::Linear.infer(&[x.clone(), w.clone()]).unwrap().remove(0);
    assert_eq!(y.to_string(), "BF16[B, T, 64]");
    let heads = Op::SplitHeads { head_dim: 16 }.infer(&[y]).unwrap().remove(0);
    assert_eq!(heads.to_string(), "BF16[B, T, 4, 16]");
    let flat = Op::Flatten.infer(std::slice::from_ref(&x)).unwrap().remove(0);
    assert_eq!(flat.to_string(), "BF16[B*T, 32]");
    assert_eq!(Op::Unflatten.infer(&[flat, x.clone()]).unwrap(), std::slice::from_ref(&x));
    let narrow = Spec::new(DType::BF16, vec![64.into(), 31.into()]);
    let error = Op::Linear.infer(&[x.clone(), narrow]).unwrap_err();
    assert_eq!(error.to_string(), "`x` has shape (B, T, 32), expected the 31 columns of the weight (in `linear`)");
    let single = Spec::new(DType::F32, vec![64.into(), 32.into()]);
    assert!(matches!(Op::Linear.infer(&[x.clone(), single]).unwrap_err().kind(), ErrorKind::DType { .. }));
    assert!(matches!(Op::Add.infer(&[x]).unwrap_err().kind(), ErrorKind::Arity { found: 1, .. }));
}

#[test]
fn routed_rows_come_back_weighted_in_order_of_expert_under_both_routings() {
    let engine = engine();
    let x = counted(&engine, &[3, 2]);
    let chosen = engine.budget.tensor(vec![2u32, 0, 0, 1, 2, 1], &[3, 2]).unwrap();
    let weights = f32s(&engine, &[0.75, 0.25, 0.5, 0.5, 1.0, 0.125], &[3, 2]);
    let experts: Vec<Tensor> =
        (0..3).map(|e| f32s(&engine, &[e as f32 + 1.0, 0.5, -0.25, e as f32], &[2, 2])).collect();
    let run = |engine: &Engine| {
        let mut parts = Op::Dispatch { experts: 3 }.forward(engine, vec![x.clone(), chosen.clone()]).unwrap();
        let (places, offsets, rows) = (parts.remove(2), parts.remove(1), parts.remove(0));
        let inputs = [vec![rows, offsets.clone()], experts.clone()].concat();
        let y = one(&Op::GroupedLinear { experts: 3 }, engine, inputs);
        let offsets = offsets.as_slice::<u32>().unwrap().to_vec();
        (one(&Op::Combine, engine, vec![y, places, weights.clone()]).to_f32().unwrap().into_owned(), offsets)
    };
    let (routed, offsets) = run(&engine);
    assert_eq!(offsets, [0, 2, 4, 6]);
    let (all, offsets) = run(&engine.with_routing(Routing::All));
    assert_eq!(offsets, [0, 3, 6, 9]);
    assert_eq!(routed, all);
    let dense: Vec<Vec<f32>> = experts
        .iter()
        .map(|w| one(&Op::Linear, &engine, vec![x.clone(), w.clone()]).to_f32().unwrap().into_owned())
        .collect();
    let (w, c) = (weights.to_f32().unwrap(), chosen.as_slice::<u32>().unwrap());
    for token in 0..3 {
        let mut order: Vec<usize> = vec![token * 2, token * 2 + 1];
        order.sort_by_key(|&i| c[i]);
        for channel in 0..2 {
            let sum = order.iter().fold(0.0, |sum, &i| sum + dense[c[i] as usize][token * 2 + channel] * w[i]);
            assert_eq!(routed[token * 2 + channel], sum);
        }
    }
}

#[test]
fn a_router_takes_the_lower_of_equal_experts_and_may_normalize() {
    let engine = engine();
    let logits = f32s(&engine, &[1.0, 3.0, 3.0, 0.0], &[1, 4]);
    let route = |scores, normalize| {
        let op = Op::Route(Route { n_chosen: 2, scores, normalize });
        let mut outputs = op.forward(&engine, vec![logits.clone()]).unwrap();
        (outputs.remove(0).to_f32().unwrap().into_owned(), outputs.remove(0).as_slice::<u32>().unwrap().to_vec())
    };
    let (weights, experts) = route(Scores::Softmax, Normalize::ToOne);
    assert_eq!((weights.as_slice(), experts.as_slice()), (&[0.5, 0.5][..], &[1, 2][..]));
    let (weights, _) = route(Scores::SoftmaxOfChosen, Normalize::No);
    assert_eq!(weights, [0.5, 0.5]);
    let (weights, _) = route(Scores::Softmax, Normalize::No);
    assert!(weights[0] < 0.5 && weights[0] > 0.4);
    let op = Op::Route(Route { n_chosen: 5, scores: Scores::Softmax, normalize: Normalize::No });
    assert!(matches!(op.forward(&engine, vec![logits.clone()]).unwrap_err().kind(), ErrorKind::Shape { .. }));
}

#[test]
fn arithmetic_writes_over_what_nobody_else_holds_and_over_nothing_else() {
    let engine = engine();
    let (a, b) = (counted(&engine, &[4, 3]), counted(&engine, &[4, 3]));
    let id = a.storage_id();
    let kept = a.clone();
    let sum = one(&Op::Add, &engine, vec![a, b.clone()]);
    assert_ne!(sum.storage_id(), id);
    assert_eq!(kept.to_f32().unwrap(), b.to_f32().unwrap());
    let again = one(&Op::Add, &engine, vec![kept, b.clone()]);
    assert_eq!(again.storage_id(), id);
    assert_eq!(again.to_f32().unwrap(), sum.to_f32().unwrap());
    // A part of a larger tensor is never written over.
    let part = again.slice(0, 0, 2).unwrap();
    drop(again);
    let id = part.storage_id();
    let other = one(&Op::Mul, &engine, vec![part, b.slice(0, 0, 2).unwrap()]);
    assert_ne!(other.storage_id(), id);
}

#[test]
fn every_edge_is_rounded_to_its_type() {
    let engine = engine();
    let half = |x: f32| engine.budget.tensor(vec![bf16::from_f32(x)], &[1, 1]).unwrap();
    let sum = one(&Op::Add, &engine, vec![half(256.0), half(1.0)]);
    assert_eq!(sum.to_f32().unwrap().as_ref(), [256.0]);
    let silu = 1.0 / (1.0 + (-1.0f32).exp());
    let gated = one(&Op::Gated(Activation::Silu), &engine, vec![half(1.0), half(3.0)]);
    let rounded = bf16::from_f32(bf16::from_f32(silu).to_f32() * 3.0);
    assert_eq!(gated.to_f32().unwrap().as_ref(), [rounded.to_f32()]);
    let scaled = one(&Op::ScaleRows(Activation::Sigmoid), &engine, vec![half(1.0), half(3.0)]);
    assert_eq!(scaled.to_f32().unwrap().as_ref(), [rounded.to_f32()]);
}

#[test]
fn a_key_mask_and_its_absence_are_declared() {
    let engine = engine();
    let mut rule =
        Attention { scale: 1.0, mask: Mask::Causal, softcap: None, sinks: Presence::Absent, key_mask: Presence::Given };
    let heads = || counted(&engine, &[1, 3, 2, 4]);
    let error = Op::Attention(rule.clone()).forward(&engine, vec![heads(), heads(), heads()]).unwrap_err();
    assert_eq!(error.to_string(), "3 inputs, expected 4 (in `attention`)");
    let mask = engine.budget.tensor(vec![1i64, 1, 1], &[1, 3]).unwrap();
    let mask = one(&Op::KeyMask, &engine, vec![mask]);
    let masked = one(&Op::Attention(rule.clone()), &engine, vec![heads(), heads(), heads(), mask]);
    rule.key_mask = Presence::Absent;
    let plain = one(&Op::Attention(rule), &engine, vec![heads(), heads(), heads()]);
    assert_eq!(masked.to_f32().unwrap(), plain.to_f32().unwrap());
}

#[test]
fn the_budget_refuses_a_result_that_does_not_fit() {
    let engine = Engine::new(Budget::limited(3 << 20));
    let x = f32s(&engine, &vec![0.5; 1 << 19], &[1 << 10, 1 << 9]);
    let error = Op::Scale { factor: 2.0 }.forward(&engine, vec![x]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Budget { needed_bytes, .. } if *needed_bytes == 4 << 20), "{error}");
}
