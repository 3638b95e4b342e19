//! Blocked attention against its reference, and the reference against f64.

use half::bf16;

use super::{Attention, Bias, Mask, attention, reference};
use crate::gemm::tests::numbers;
use crate::{Element, ErrorKind, Profile};

fn plan(batch: usize, queries: usize, keys: usize, mask: Mask) -> Attention<'static> {
    Attention {
        batch,
        queries,
        keys,
        heads: 4,
        kv_heads: 2,
        head_dim: 24,
        value_dim: 24,
        scale: 0.2,
        mask,
        softcap: None,
        bias: None,
        sinks: None,
    }
}

fn inputs<T: Element>(plan: &Attention<'_>) -> [Vec<T>; 3] {
    let rows = |tokens: usize, heads: usize, dim: usize| plan.batch * tokens * heads * dim;
    [
        numbers(rows(plan.queries, plan.heads, plan.head_dim), 1),
        numbers(rows(plan.keys, plan.kv_heads, plan.head_dim), 2),
        numbers(rows(plan.keys, plan.kv_heads, plan.value_dim), 3),
    ]
}

fn run<T: Element>(profile: Profile, plan: &Attention<'_>, inputs: &[Vec<T>; 3]) -> Vec<T> {
    let mut out = vec![T::from_f32(f32::NAN); plan.batch * plan.queries * plan.heads * plan.value_dim];
    attention(profile, plan, inputs.each_ref().map(|x| &x[..]), &mut out).unwrap();
    out
}

fn agree<T: Element>(plan: &Attention<'_>) {
    let inputs = inputs::<T>(plan);
    for profile in Profile::available() {
        let mut want = vec![T::default(); plan.batch * plan.queries * plan.heads * plan.value_dim];
        reference::attention(profile, plan, inputs.each_ref().map(|x| &x[..]), &mut want);
        for n_threads in [1, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            assert_eq!(pool.install(|| run(profile, plan, &inputs)), want, "{profile:?} {n_threads} threads {plan:?}");
        }
    }
}

#[test]
fn every_mask_and_shape_has_the_bits_of_the_reference() {
    for mask in [Mask::Full, Mask::Causal, Mask::Window(5), Mask::Window(150), Mask::Chunk(7), Mask::Chunk(200)] {
        for (queries, keys) in [(1, 1), (3, 130), (57, 57), (130, 300), (20, 5), (300, 300)] {
            agree::<f32>(&plan(1, queries, keys, mask));
        }
        agree::<bf16>(&plan(2, 70, 140, mask));
    }
    agree::<f32>(&Attention { head_dim: 7, value_dim: 33, heads: 3, kv_heads: 3, ..plan(2, 9, 40, Mask::Causal) });
    agree::<f32>(&Attention { head_dim: 128, value_dim: 128, heads: 2, kv_heads: 1, ..plan(1, 60, 200, Mask::Causal) });
}

#[test]
fn a_chunk_begins_anew_at_each_multiple_of_its_size() {
    let plan = plan(1, 6, 6, Mask::Chunk(4));
    let visible: Vec<_> = (0..6).map(|query| plan.visible(query)).collect();
    assert_eq!(visible, [(0, 1), (0, 2), (0, 3), (0, 4), (4, 5), (4, 6)]);
}

#[test]
fn softcap_bias_and_sinks_have_the_bits_of_the_reference() {
    let base = plan(2, 60, 135, Mask::Causal);
    let mut rows = numbers::<f32>(2 * 135, 4);
    rows[3] = f32::NEG_INFINITY;
    rows[135..170].fill(f32::NEG_INFINITY);
    let full = numbers::<f32>(2 * 4 * 60 * 135, 5);
    let sinks = [0.5, -3.0, 2.0, 0.0];
    let padding = Bias { data: &rows, strides: [135, 0, 0] };
    agree::<f32>(&Attention { softcap: Some(3.0), ..base });
    agree::<f32>(&Attention { bias: Some(padding), ..base });
    agree::<f32>(&Attention { bias: Some(Bias { data: &full, strides: [4 * 60 * 135, 60 * 135, 135] }), ..base });
    agree::<f32>(&Attention { sinks: Some(&sinks), softcap: Some(2.0), bias: Some(padding), ..base });
}

/// f32 rounds a chain of at most 300 terms, an exponential of 2 ulp and a quotient, beside 8 bits of bf16's none.
const AGAINST_F64: f64 = 4e-6;

#[test]
fn the_reference_is_softmax_attention() {
    let plan = plan(1, 40, 300, Mask::Window(200));
    let inputs = inputs::<f32>(&plan);
    let out = run(Profile::detect(), &plan, &inputs);
    let [q, k, v] = inputs.each_ref().map(|x| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    for t in 0..40 {
        for h in 0..4 {
            let scores = (0..300).map(|s| {
                let dot: f64 = (0..24).map(|d| q[(t * 4 + h) * 24 + d] * k[(s * 2 + h / 2) * 24 + d]).sum();
                let position = t + 260;
                if s <= position && s + 200 > position { (dot * f64::from(plan.scale)).exp() } else { 0.0 }
            });
            let weights: Vec<f64> = scores.collect();
            let sum: f64 = weights.iter().sum();
            for d in 0..24 {
                let want: f64 = (0..300).map(|s| weights[s] * v[(s * 2 + h / 2) * 24 + d]).sum::<f64>() / sum;
                let size: f64 = (0..300).map(|s| weights[s] * v[(s * 2 + h / 2) * 24 + d].abs()).sum::<f64>() / sum;
                let got = f64::from(out[(t * 4 + h) * 24 + d]);
                assert!((got - want).abs() <= AGAINST_F64 * size.max(1.0), "{t} {h} {d}: {got} {want}");
            }
        }
    }
}

#[test]
fn a_query_is_the_same_alone_as_among_others() {
    let all = plan(1, 130, 130, Mask::Causal);
    let whole_inputs = inputs::<bf16>(&all);
    for profile in Profile::available() {
        let whole = run(profile, &all, &whole_inputs);
        for (from, rows) in [(129, 1), (70, 60), (1, 129)] {
            let plan = plan(1, rows, 130, Mask::Causal);
            let [q, k, v] = whole_inputs.clone();
            let part = run(profile, &plan, &[q[from * 4 * 24..][..rows * 4 * 24].to_vec(), k, v]);
            // The last query stands at the last key.
            if from + rows == 130 {
                assert_eq!(part, whole[from * 4 * 24..][..rows * 4 * 24], "{profile:?} {from}");
            }
        }
    }
}

#[test]
fn queries_that_see_no_key_give_zeros_and_shapes_that_do_not_fit_are_refused() {
    let profile = Profile::detect();
    let more_queries = plan(1, 9, 4, Mask::Causal);
    let out = run(profile, &more_queries, &inputs::<f32>(&more_queries));
    assert!(out[..5 * 96].iter().all(|&x| x == 0.0) && out[5 * 96..].iter().all(|&x| x != 0.0));
    let nothing = plan(1, 3, 0, Mask::Full);
    assert!(run(profile, &nothing, &inputs::<f32>(&nothing)).iter().all(|&x| x == 0.0));
    let odd = Attention { kv_heads: 3, ..nothing };
    let error = attention::<f32>(profile, &odd, [&[]; 3], &mut []).unwrap_err();
    assert_eq!(error.kind(), &ErrorKind::Extent { found: 3, expected: "a divisor of the 4 heads".into() });
    let bias = Bias { data: &[0.0; 11], strides: [0, 0, 4] };
    let short = Attention { bias: Some(bias), ..plan(1, 3, 4, Mask::Full) };
    let [q, k, v] = inputs::<f32>(&short);
    let error = attention(profile, &short, [&q, &k, &v], &mut [0.0; 3 * 96]).unwrap_err();
    assert_eq!((error.place(), error.kind()), ("attention: bias", &ErrorKind::Length { found: 11, expected: 12 }));
}

#[test]
fn what_is_no_number_is_none_behind_attention_and_touches_its_own_query_alone() {
    let plan = plan(1, 60, 60, Mask::Causal);
    let mut inputs = inputs::<f32>(&plan);
    let clean = run(Profile::detect(), &plan, &inputs);
    let width = plan.heads * plan.head_dim;
    inputs[0][7 * width] = f32::NAN;
    let width = plan.heads * plan.value_dim;
    for profile in Profile::available() {
        let found = run(profile, &plan, &inputs);
        assert!(found[7 * width..7 * width + plan.value_dim].iter().all(|it| it.is_nan()), "{profile:?}");
        assert!(found.iter().filter(|it| it.is_nan()).count() == plan.value_dim);
    }
    let mut want = vec![0.0f32; clean.len()];
    reference::attention(Profile::detect(), &plan, inputs.each_ref().map(|x| &x[..]), &mut want);
    assert!(want[7 * width].is_nan() && want[..7 * width] == clean[..7 * width]);
}
