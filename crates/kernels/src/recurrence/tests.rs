//! Scans against their closed forms in f64.

use super::{Scan, Selective, causal_conv, delta_scan, selective_scan};
use crate::gemm::tests::numbers;

const SCAN: Scan = Scan { batch: 2, tokens: 5, heads: 4, groups: 2, key_dim: 3, value_dim: 2 };

fn softplus(x: f64) -> f64 {
    x.exp().ln_1p()
}

fn near(found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (idx, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        assert!((f64::from(found) - expected).abs() < 1e-5 * expected.abs().max(1.0), "{idx}: {found} {expected}");
    }
}

#[test]
fn a_convolution_sees_its_own_token_last_and_nothing_before_the_first() {
    let x = [1.0f32, 10.0, 2.0, 20.0, 3.0, 30.0];
    let w = [0.5, 0.25, 1.0, /* second channel */ 0.0, 0.0, 2.0];
    let mut y = [0.0f32; 6];
    causal_conv([3, 2, 3], &w, Some(&[0.0, 1.0]), &x, &mut y).unwrap();
    assert_eq!(y, [1.0, 21.0, 2.25, 41.0, 4.0, 61.0]);
    causal_conv([3, 2, 3], &w, None, &x, &mut y).unwrap();
    assert_eq!(y, [1.0, 20.0, 2.25, 40.0, 4.0, 60.0]);
    // Two rows of the batch do not see one another.
    let mut both = [0.0f32; 12];
    causal_conv([3, 2, 3], &w, None, &[x, x].concat(), &mut both).unwrap();
    assert_eq!(both, [y, y].concat().as_slice());
    assert!(causal_conv([3, 2, 2], &w, None, &x, &mut y).is_err());
}

#[test]
fn a_selective_scan_is_a_sum_over_all_tokens_so_far() {
    let Scan { batch, tokens, heads, groups, key_dim, value_dim } = SCAN;
    let x = numbers::<f32>(batch * tokens * heads * value_dim, 1);
    let steps = numbers::<f32>(batch * tokens * heads, 2);
    let (k, q) =
        (numbers::<f32>(batch * tokens * groups * key_dim, 3), numbers::<f32>(batch * tokens * groups * key_dim, 4));
    let (decay_log, step_bias, skip) = ([0.1, -0.5, 0.3, 0.0], [0.2, 0.0, -0.3, 1.0], [1.0, 0.5, 0.0, -1.0]);
    let mut y = vec![0.0f32; x.len()];
    let parameters =
        Selective { decay_log: &decay_log, step_bias: &step_bias, skip: &skip, limits: [0.1, f32::INFINITY] };
    selective_scan(SCAN, parameters, [&x, &steps, &k, &q], &mut y).unwrap();
    let mut expected = Vec::new();
    for b in 0..batch {
        let step = |t: usize, h: usize| {
            softplus(f64::from(steps[(b * tokens + t) * heads + h]) + f64::from(step_bias[h])).max(0.1)
        };
        for t in 0..tokens {
            for h in 0..heads {
                for p in 0..value_dim {
                    let input = |s: usize| f64::from(x[((b * tokens + s) * heads + h) * value_dim + p]);
                    let group = |s: usize| ((b * tokens + s) * groups + h / 2) * key_dim;
                    let mut sum = f64::from(skip[h]) * input(t);
                    for s in 0..=t {
                        let decay: f64 = (s + 1..=t).map(|r| -f64::from(decay_log[h]).exp() * step(r, h)).sum();
                        let dot: f64 =
                            (0..key_dim).map(|n| f64::from(k[group(s) + n]) * f64::from(q[group(t) + n])).sum();
                        sum += decay.exp() * step(s, h) * input(s) * dot;
                    }
                    expected.push(sum);
                }
            }
        }
    }
    near(&y, &expected);
}

#[test]
fn the_delta_rule_replaces_what_a_key_recalls() {
    let scan = Scan { batch: 1, tokens: 3, heads: 1, groups: 1, key_dim: 2, value_dim: 1 };
    let (k, q) = ([1.0f32, 0.0, 1.0, 0.0, 0.0, 2.0], [1.0f32, 0.0, 1.0, 0.0, 3.0, 4.0]);
    let (v, betas, gates) = ([4.0f32, 6.0, 8.0], [0.0f32, 40.0, 0.0], [-40.0f32; 3]);
    let mut y = [0.0f32; 3];
    delta_scan(scan, [&[0.0], &[0.0]], [&v, &k, &q, &betas, &gates], &mut y).unwrap();
    let root = 2f64.sqrt();
    // Half of 4 is written, then replaced by 6 as a whole; the third key is another and gets half of 8.
    near(&y, &[2.0 / root, 6.0 / root, (0.6 * 6.0 + 0.8 * 4.0) / root]);
}

#[test]
fn the_delta_rule_decays_by_head_and_reads_keys_by_group() {
    let Scan { batch, tokens, heads, groups, key_dim, value_dim } = SCAN;
    let v = numbers::<f32>(batch * tokens * heads * value_dim, 1);
    let (k, q) =
        (numbers::<f32>(batch * tokens * groups * key_dim, 3), numbers::<f32>(batch * tokens * groups * key_dim, 4));
    let (betas, gates) = (numbers::<f32>(batch * tokens * heads, 5), numbers::<f32>(batch * tokens * heads, 6));
    let (decay_log, gate_bias) = ([0.1, -0.5, 0.3, 0.0], [0.2, 0.0, -0.3, 1.0]);
    let mut y = vec![0.0f32; v.len()];
    delta_scan(SCAN, [&decay_log, &gate_bias], [&v, &k, &q, &betas, &gates], &mut y).unwrap();
    let unit = |x: &[f32], at: usize| -> Vec<f64> {
        let x: Vec<f64> = x[at..at + key_dim].iter().map(|&x| f64::from(x)).collect();
        let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
        x.into_iter().map(|x| x / length).collect()
    };
    let mut expected = vec![0.0; v.len()];
    for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
        let mut state = vec![vec![0.0; key_dim]; value_dim];
        for t in 0..tokens {
            let (at, group) = ((b * tokens + t) * heads + h, ((b * tokens + t) * groups + h / 2) * key_dim);
            let decay =
                (-f64::from(decay_log[h]).exp() * softplus(f64::from(gates[at]) + f64::from(gate_bias[h]))).exp();
            let beta = 1.0 / (1.0 + (-f64::from(betas[at])).exp());
            let (k, q) = (unit(&k, group), unit(&q, group));
            for (p, state) in state.iter_mut().enumerate() {
                let known: f64 = state.iter().zip(&k).map(|(s, k)| s * decay * k).sum();
                let change = beta * (f64::from(v[at * value_dim + p]) - known);
                state.iter_mut().zip(&k).for_each(|(s, k)| *s = *s * decay + change * k);
                expected[at * value_dim + p] =
                    state.iter().zip(&q).map(|(s, q)| s * q).sum::<f64>() / (key_dim as f64).sqrt();
            }
        }
    }
    near(&y, &expected);
    let error = delta_scan(Scan { groups: 3, ..SCAN }, [&decay_log, &gate_bias], [&v, &k, &q, &betas, &gates], &mut y);
    assert_eq!(error.unwrap_err().place(), "delta_scan");
}
