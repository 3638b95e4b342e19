//! Operations: what they refuse, and what they compute where no model covers it.

use half::bf16;

use super::{Attention, GroupScore, Groups, LongFrequencies, Longer, Normalize, Presence, Route, Scores};
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
        let op = Op::Route(Route::new(2, scores, normalize));
        let mut outputs = op.forward(&engine, vec![logits.clone()]).unwrap();
        (outputs.remove(0).to_f32().unwrap().into_owned(), outputs.remove(0).as_slice::<u32>().unwrap().to_vec())
    };
    let (weights, experts) = route(Scores::Softmax, Normalize::ToOne);
    assert_eq!((weights.as_slice(), experts.as_slice()), (&[0.5, 0.5][..], &[1, 2][..]));
    let (weights, _) = route(Scores::SoftmaxOfChosen, Normalize::No);
    assert_eq!(weights, [0.5, 0.5]);
    let (weights, _) = route(Scores::Softmax, Normalize::No);
    assert!(weights[0] < 0.5 && weights[0] > 0.4);
    let op = Op::Route(Route::new(5, Scores::Softmax, Normalize::No));
    assert!(matches!(op.forward(&engine, vec![logits.clone()]).unwrap_err().kind(), ErrorKind::Shape { .. }));
}

#[test]
fn a_correction_moves_the_choice_and_not_the_weights_and_groups_come_first() {
    let engine = engine();
    let logits = f32s(&engine, &[0.0, 2.0, 1.0, 1.5, -1.0, 3.0, 0.5, 0.25], &[1, 8]);
    let chosen = |route: &Route, inputs: Vec<Tensor>| {
        let mut outputs = Op::Route(route.clone()).forward(&engine, inputs).unwrap();
        (outputs.remove(0).to_f32().unwrap().into_owned(), outputs.remove(0).as_slice::<u32>().unwrap().to_vec())
    };
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let mut route = Route::new(2, Scores::Sigmoid, Normalize::No);
    route.factor = 2.0;
    let (weights, experts) = chosen(&route, vec![logits.clone()]);
    assert_eq!(experts, [5, 1]);
    assert!((weights[0] - 2.0 * sigmoid(3.0)).abs() < 1e-6 && (weights[1] - 2.0 * sigmoid(2.0)).abs() < 1e-6);
    // The second pair has the largest sum, the third the largest score.
    let groups = |by| Some(Groups { n_groups: 4, n_chosen: 1, by });
    route.groups = groups(GroupScore::SumOfTwo);
    assert_eq!(chosen(&route, vec![logits.clone()]).1, [3, 2]);
    route.groups = groups(GroupScore::Best);
    assert_eq!(chosen(&route, vec![logits.clone()]).1, [5, 4]);
    route.groups = None;
    route.correction = Presence::Given;
    let correction = f32s(&engine, &[9.0, 0.0, 0.0, 0.0, 8.0, 0.0, 0.0, 0.0], &[8]);
    let (weights, experts) = chosen(&route, vec![logits.clone(), correction]);
    assert_eq!(experts, [0, 4]);
    assert!((weights[0] - 1.0).abs() < 1e-6 && (weights[1] - 2.0 * sigmoid(-1.0)).abs() < 1e-6);
    let error = Op::Route(route).forward(&engine, vec![logits]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Arity { found: 1, .. }));
}

#[test]
fn weights_on_rows_before_experts_reach_the_rows_of_their_choice_alone() {
    let engine = engine();
    let x = f32s(&engine, &[1.0, 2.0, 3.0, 4.0], &[2, 2]);
    let chosen = engine.budget.tensor(vec![1u32, 0], &[2, 1]).unwrap();
    let weights = f32s(&engine, &[0.5, 0.25], &[2, 1]);
    let run = |engine: &Engine| {
        let mut parts = Op::Dispatch { experts: 2 }.forward(engine, vec![x.clone(), chosen.clone()]).unwrap();
        let (places, _, rows) = (parts.remove(2), parts.remove(1), parts.remove(0));
        let weighed = one(&Op::WeighRows, engine, vec![rows, places.clone(), weights.clone()]);
        let rows = weighed.to_f32().unwrap().into_owned();
        let flat = weighed.reshape(&[rows.len() / 2, 2]).unwrap();
        (rows, one(&Op::Combine, engine, vec![flat, places]).to_f32().unwrap().into_owned())
    };
    assert_eq!(run(&engine), (vec![0.75, 1.0, 0.5, 1.0], vec![0.5, 1.0, 0.75, 1.0]));
    let all = run(&engine.with_routing(Routing::All));
    assert_eq!(all, (vec![1.0, 2.0, 0.75, 1.0, 0.5, 1.0, 3.0, 4.0], vec![0.5, 1.0, 0.75, 1.0]));
}

#[test]
fn positions_and_slopes_count_what_is_not_hidden() {
    let engine = engine();
    let ids = engine.budget.tensor(vec![7i64, 7, 7, 7], &[1, 4]).unwrap();
    let mask = engine.budget.tensor(vec![0i64, 1, 1, 1], &[1, 4]).unwrap();
    let positions = |inputs: Vec<Tensor>, offset| {
        one(&Op::Positions { offset }, &engine, inputs).as_slice::<u32>().unwrap().to_vec()
    };
    assert_eq!(positions(vec![ids.clone()], 2), [2, 3, 4, 5]);
    assert_eq!(positions(vec![ids.clone(), mask.clone()], 2), [1, 2, 3, 4]);
    assert_eq!(positions(vec![ids, mask.clone()], 0), [0, 0, 1, 2]);
    let x = counted(&engine, &[1, 4, 2]);
    let alibi = Op::Alibi { slopes: [0.5, 0.1].into(), rounded_to: Some(DType::BF16), factor: 2.0 };
    let plain = one(&alibi, &engine, vec![x.clone()]);
    assert_eq!(plain.shape(), [1, 2, 4]);
    let tenth = |n: f32| bf16::from_f32(0.1 * n).to_f32() * 2.0;
    assert_eq!(plain.to_f32().unwrap().as_ref(), [0.0, 1.0, 2.0, 3.0, 0.0, tenth(1.0), tenth(2.0), tenth(3.0)]);
    let key_mask = one(&Op::KeyMask, &engine, vec![mask]);
    let masked = one(&alibi, &engine, vec![x, key_mask]);
    assert_eq!(masked.to_f32().unwrap()[..4], [f32::NEG_INFINITY, 0.0, 1.0, 2.0]);
}

#[test]
fn a_mask_by_head_hides_and_biases_each_head_on_its_own() {
    let engine = engine();
    let rule =
        Attention { scale: 1.0, mask: Mask::Causal, softcap: None, sinks: Presence::Absent, key_mask: Presence::Given };
    let heads = || counted(&engine, &[1, 3, 2, 4]);
    let biases = f32s(&engine, &[0.0, 0.0, 0.0, 0.0, f32::NEG_INFINITY, 0.0], &[1, 2, 3]);
    let found = one(&Op::Attention(rule.clone()), &engine, vec![heads(), heads(), heads(), biases]);
    let plain = one(&Op::KeyMask, &engine, vec![engine.budget.tensor(vec![1i64, 1, 1], &[1, 3]).unwrap()]);
    let plain = one(&Op::Attention(rule), &engine, vec![heads(), heads(), heads(), plain]);
    let (found, plain) = (found.to_f32().unwrap(), plain.to_f32().unwrap());
    let head = |all: &[f32], head: usize| -> Vec<f32> { all[16 + 4 * head..][..4].to_vec() };
    assert_eq!(head(&found, 0), head(&plain, 0));
    assert_ne!(head(&found, 1), head(&plain, 1));
}

#[test]
fn heads_are_joined_and_one_may_serve_all() {
    let engine = engine();
    let a = f32s(&engine, &[1.0, 2.0, 3.0, 4.0], &[1, 2, 2, 1]);
    let own = f32s(&engine, &[5.0, 6.0, 7.0, 8.0], &[1, 2, 2, 1]);
    let shared = f32s(&engine, &[5.0, 6.0], &[1, 2, 1, 1]);
    let joined = |b: Tensor| one(&Op::ConcatHeads, &engine, vec![a.clone(), b]).to_f32().unwrap().into_owned();
    assert_eq!(joined(own), [1.0, 5.0, 2.0, 6.0, 3.0, 7.0, 4.0, 8.0]);
    assert_eq!(joined(shared), [1.0, 5.0, 2.0, 5.0, 3.0, 6.0, 4.0, 6.0]);
}

#[test]
fn queries_grow_at_each_period_and_gates_are_clamped() {
    let engine = engine();
    let ones = f32s(&engine, &[1.0; 5], &[1, 5, 1, 1]);
    let grown = one(&Op::ScaleByPosition { period: 2.0, scale: 0.5 }, &engine, vec![ones]);
    let expected = [0.0f32, 1.0, 1.0, 2.0, 2.0].map(|step| (1.0 + step).ln() * 0.5 + 1.0);
    for (found, expected) in grown.to_f32().unwrap().iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6);
    }
    let (gate, up) = (f32s(&engine, &[9.0, -9.0, 1.0], &[1, 3]), f32s(&engine, &[9.0, -9.0, 0.5], &[1, 3]));
    let gated = one(&Op::GatedClamped { alpha: 1.5, limit: 2.0 }, &engine, vec![gate, up]);
    let swish = |x: f32| x / (1.0 + (-1.5 * x).exp());
    let expected = [3.0 * swish(2.0), -swish(-9.0), 1.5 * swish(1.0)];
    for (found, expected) in gated.to_f32().unwrap().iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}

#[test]
fn long_rows_turn_by_other_frequencies() {
    let engine = engine();
    let table = |tokens: usize, frequencies: LongFrequencies| {
        let longer = Some(Longer { after: 4, frequencies });
        let op = Op::RopeTable { inverse_frequencies: [1.0, 0.1].into(), scaling: 1.0, longer };
        one(&op, &engine, vec![counted(&engine, &[1, tokens, 1])]).to_f32().unwrap().into_owned()
    };
    let given = || LongFrequencies::Given([0.5, 0.05].into());
    assert_eq!(table(4, given())[2..4], [1.0f32.cos(), 0.1f32.cos()]);
    assert_eq!(table(5, given())[2..4], [0.5f32.cos(), 0.05f32.cos()]);
    let grown = || LongFrequencies::Grown { theta: 100.0, factor: 2.0 };
    assert_eq!(table(4, grown())[2..4], [1.0f32.cos(), 0.1f32.cos()]);
    // The base is 100 * (2 * 8 / 4 - 1)^2.
    assert!((table(8, grown())[3] - (1.0f32 / 30.0).cos()).abs() < 1e-6);
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
