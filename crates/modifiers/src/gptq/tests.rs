//! GPTQ against the reference's runs, and what must hold whatever the numbers.
#![allow(clippy::unwrap_used, reason = "tests")]

use compressed_tensors::{
    args::{ArgsBuilder, QuantizationArgs, QuantizationStrategy},
    numbers::Float,
    quantize::Qparams,
};
use kernels::{Mat, Profile};

use super::{
    refine::{Objective, refine, search_scales},
    *,
};
use crate::{
    ErrorKind,
    goldens::{Case, cases, relative},
    quantization::algorithm::WeightSpec,
};

const ROWS: usize = 96;
const COLS: usize = 256;

fn float(name: &str) -> Float {
    if name == "bfloat16" { Float::BF16 } else { Float::F32 }
}

fn hessian(case: &Case) -> Hessian {
    let scale = case.params["H_scale"].as_f64().unwrap_or(1.0) as f32;
    let sum = case.input("H_sum").iter().map(|it| it * 0.5 * scale).collect();
    let n_samples = case.params["num_samples"].as_f64().unwrap() as u64;
    Hessian::from_sum(COLS, sum, n_samples, 40 * n_samples).unwrap()
}

fn damping(case: &Case) -> Damping {
    let frac = case.params["dampening_frac"].as_f64().unwrap() as f32;
    Damping { frac, escalation: Escalation::NONE, ..Damping::default() }
}

/// The scales that the case's observer found, checked against min-max where that is the observer.
fn observed(case: &Case, spec: &WeightSpec<'_>, weight: &[f32]) -> Qparams {
    let global_scale = case.has_output("global_scale").then(|| case.output("global_scale")[0]);
    let golden = Qparams {
        scales: case.output("scale"),
        dtype: spec.float,
        zero_points: Some(case.output("zero_point")),
        global_scale,
    };
    if case.params["observer"] == "memoryless_minmax" {
        assert_eq!(spec.minmax(weight, None).unwrap(), golden, "{}", case.id);
    }
    golden
}

#[test]
fn all_runs_of_the_reference_come_out_within_their_tolerances() {
    let profile = Profile::detect();
    for case in cases("gptq", "gptq", 32) {
        let args = case.args();
        let float = float(case.params["weight_dtype"].as_str().unwrap());
        let original: Vec<f32> = case.input("W").iter().map(|it| float.round(*it)).collect();
        let spec = WeightSpec { args: &args, float, rows: ROWS, cols: COLS };
        let qparams = observed(&case, &spec, &original);
        let order = if case.params["actorder"].is_null() { Order::Stored } else { Order::Diagonal };
        let factored = factorize(profile, &hessian(&case), order, &damping(&case)).unwrap();
        assert_eq!(factored.fallback.is_some(), case.params["rtn_fallback"].as_bool().unwrap(), "{}", case.id);
        if case.has_output("perm") {
            let perm: Vec<f32> = factored.order.iter().map(|it| *it as f32).collect();
            let live = COLS - factored.dead.len();
            assert_eq!(perm[..live], case.output("perm")[..live], "{}", case.id);
        }
        let mut weight = original.clone();
        let consumer = Consumer { args: &args, float, qparams: &qparams, rows: ROWS, weight: &mut weight };
        let quantized = quantize(profile, &factored, &mut [consumer]).unwrap();

        let expected = expected_weight(&case, &spec, &qparams);
        let same = weight.iter().zip(&expected).filter(|(a, b)| a == b).count() as f64 / weight.len() as f64;
        let least = case.tolerance("min_identical");
        assert!(same >= least, "{}: {same} identical", case.id);
        if least < 1.0 {
            let golden = f64::from(case.output("loss")[0]);
            let off = (quantized[0].loss / golden - 1.0).abs();
            assert!(off <= case.tolerance("loss_rtol"), "{}: loss {} of {golden}", case.id, quantized[0].loss);
        }
    }
}

/// The reference's weight, made from its codes where those are what is stored.
fn expected_weight(case: &Case, spec: &WeightSpec<'_>, qparams: &Qparams) -> Vec<f32> {
    if case.has_output("qweight") {
        return case.output("qweight");
    }
    let (tiles, codes) = (spec.tiles().unwrap(), case.output("codes"));
    let zero_points = qparams.zero_points.as_ref().unwrap();
    let value = |(i, code): (usize, f32)| {
        let (row, col) = (i / COLS, i % COLS);
        let at = row / tiles.height * tiles.per_row + col / tiles.width;
        (code - zero_points[at]) * qparams.scales[at]
    };
    codes.into_iter().enumerate().map(value).collect()
}

#[test]
fn second_moments_agree_with_the_references_and_count_sequences() {
    let profile = Profile::detect();
    let case = &cases("gptq", "hessian", 1)[0];
    let x = case.input("X");
    let mut moments = Hessian::new(COLS);
    for batch in x.chunks(40 * COLS) {
        moments.accumulate(profile, Mat::new(batch, 40, COLS).unwrap(), 1).unwrap();
    }
    assert_eq!((moments.n_samples(), moments.n_tokens()), (8, 320));
    let golden = case.output("H");
    for i in 0..COLS {
        for j in i..COLS {
            let (found, expected) = (2.0 * moments.sum()[i * COLS + j], golden[i * COLS + j]);
            let bound = case.tolerance("atol") + case.tolerance("rtol") * f64::from(expected.abs());
            assert!(f64::from((found - expected).abs()) <= bound, "{i} {j}: {found} {expected}");
        }
    }
    for case in cases("gptq", "hessian_num_samples", 3) {
        let shape = case.params["input_shape"].as_array().unwrap();
        let sizes: Vec<usize> = shape.iter().map(|it| it.as_u64().unwrap() as usize).collect();
        let (n_tokens, n_samples) =
            (sizes.iter().product::<usize>() / COLS, if sizes.len() == 2 { 1 } else { sizes[0] });
        let mut moments = Hessian::new(COLS);
        let x = Mat::new(&x[..n_tokens * COLS], n_tokens, COLS).unwrap();
        moments.accumulate(profile, x, n_samples as u64).unwrap();
        assert_eq!(moments.n_samples() as f64, case.params["num_samples"].as_f64().unwrap());
        let trace: f32 = (0..COLS).map(|i| 2.0 * moments.sum()[i * COLS + i]).sum();
        assert!(relative(&[trace], &case.output("trace"), 0.0) <= case.tolerance("rtol"), "{}", case.id);
    }
}

#[test]
fn the_factor_is_the_upper_root_of_the_inverse() {
    let case = &cases("gptq", "hinv", 1)[0];
    let factored = factorize(Profile::detect(), &hessian(case), Order::Stored, &damping(case)).unwrap();
    let factor = factored.factor.unwrap();
    let diagonal: Vec<f32> = (0..COLS).map(|i| factor[i * COLS + i]).collect();
    assert!(relative(&diagonal, &case.output("hinv_diag"), 0.0) <= case.tolerance("rtol"));
    let corner: Vec<f32> = (0..64 * 64).map(|i| factor[i / 64 * COLS + i % 64]).collect();
    assert!(relative(&corner, &case.output("hinv_upper_first64"), 1e-3) <= case.tolerance("rtol"));
}

/// Correlated inputs and a weight, without a file.
fn problem(rows: usize, cols: usize) -> (Hessian, Vec<f32>) {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    let n_tokens = 3 * cols;
    let mut x: Vec<f32> = (0..n_tokens * cols).map(|_| next()).collect();
    for row in x.chunks_mut(cols) {
        for j in 1..cols {
            row[j] += 0.5 * row[j - 1];
        }
    }
    let mut moments = Hessian::new(cols);
    moments.accumulate(Profile::detect(), Mat::new(&x, n_tokens, cols).unwrap(), 4).unwrap();
    (moments, (0..rows * cols).map(|_| next()).collect())
}

fn int4(group: i64) -> QuantizationArgs {
    ArgsBuilder::int(4).strategy(QuantizationStrategy::Group).group_size(group).build().unwrap()
}

#[test]
fn a_consumer_gets_the_same_bits_alone_and_beside_others() {
    let profile = Profile::detect();
    let (moments, weight) = problem(70, 48);
    let (group, channel) = (int4(16), ArgsBuilder::int(8).strategy(QuantizationStrategy::Channel).build().unwrap());
    let factored = factorize(profile, &moments, Order::Diagonal, &Damping::default()).unwrap();
    let parts = [(0..30, &group), (30..37, &group), (37..70, &channel)];
    let run = |wanted: &[usize]| {
        let mut weights: Vec<Vec<f32>> =
            parts.iter().map(|it| weight[it.0.start * 48..it.0.end * 48].to_vec()).collect();
        let spec = |i: usize| WeightSpec { args: parts[i].1, float: Float::BF16, rows: parts[i].0.len(), cols: 48 };
        let qparams: Vec<Qparams> = (0..3).map(|i| spec(i).minmax(&weights[i], None).unwrap()).collect();
        let mut consumers: Vec<Consumer<'_>> = weights
            .iter_mut()
            .enumerate()
            .filter(|(i, _)| wanted.contains(i))
            .map(|(i, weight)| Consumer {
                args: parts[i].1,
                float: Float::BF16,
                qparams: &qparams[i],
                rows: parts[i].0.len(),
                weight,
            })
            .collect();
        let losses = quantize(profile, &factored, &mut consumers).unwrap();
        (weights, losses)
    };
    let (together, losses) = run(&[0, 1, 2]);
    for i in 0..3 {
        let (alone, loss) = run(&[i]);
        assert_eq!(alone[i], together[i]);
        assert_eq!(loss[0], losses[i]);
    }
}

#[test]
fn a_failed_factor_raises_the_damping_before_it_rounds_to_nearest() {
    let profile = Profile::detect();
    // Rank one with a little noise that makes one pivot negative.
    let cols = 8;
    let mut sum = vec![1.0f32; cols * cols];
    sum[cols * cols - 1] = 0.9;
    let moments = Hessian::from_sum(cols, sum, 1, 10).unwrap();
    let damping = Damping { frac: 1e-3, ..Damping::default() };
    let raised = factorize(profile, &moments, Order::Stored, &damping).unwrap();
    assert_eq!((raised.attempts, raised.fallback), (3, None));
    assert!((raised.dampening_frac - 0.1).abs() < 1e-6 && raised.factor.is_some());
    let plain = Damping { escalation: Escalation::NONE, ..damping };
    let fallen = factorize(profile, &moments, Order::Stored, &plain).unwrap();
    assert!(matches!(fallen.fallback, Some(Fallback::NotPositiveDefinite { .. })) && fallen.factor.is_none());
}

#[test]
fn a_layer_that_saw_too_few_tokens_is_rounded_to_nearest_and_keeps_its_columns() {
    let profile = Profile::detect();
    let (_, mut weight) = problem(5, 32);
    let args = int4(32);
    let spec = WeightSpec { args: &args, float: Float::F32, rows: 5, cols: 32 };
    let qparams = spec.minmax(&weight, None).unwrap();
    let mut nearest = weight.clone();
    spec.round_to_nearest(&qparams, &mut nearest).unwrap();
    let factored = factorize(profile, &Hessian::new(32), Order::Diagonal, &Damping::default()).unwrap();
    assert_eq!(factored.fallback, Some(Fallback::Tokens { seen: 0 }));
    let consumer = Consumer { args: &args, float: Float::F32, qparams: &qparams, rows: 5, weight: &mut weight };
    quantize(profile, &factored, &mut [consumer]).unwrap();
    assert_eq!(weight, nearest);
}

#[test]
fn inputs_that_overflow_are_refused_with_their_channel() {
    let (moments, _) = problem(1, 8);
    let mut sum = moments.sum().to_vec();
    sum[3 * 8 + 3] = f32::NAN;
    let broken = Hessian::from_sum(8, sum, 1, 1).unwrap();
    let error = factorize(Profile::detect(), &broken, Order::Stored, &Damping::default()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::NonFinite { channel: 3, .. }), "{error}");
}

#[test]
fn dividing_the_inputs_afterwards_is_dividing_them_before() {
    let profile = Profile::detect();
    let cols = 6;
    let x: Vec<f32> = (0..10 * cols).map(|i| ((i * 37 % 23) as f32 - 11.0) / 4.0).collect();
    let scales = [0.5f32, 2.0, 1.0, 4.0, 0.25, 8.0];
    let mut after = Hessian::new(cols);
    after.accumulate(profile, Mat::new(&x, 10, cols).unwrap(), 1).unwrap();
    after.divide_inputs(&scales).unwrap();
    let divided: Vec<f32> = x.iter().enumerate().map(|(i, x)| x / scales[i % cols]).collect();
    let mut before = Hessian::new(cols);
    before.accumulate(profile, Mat::new(&divided, 10, cols).unwrap(), 1).unwrap();
    // Powers of two divide without rounding, so that the bits agree.
    assert_eq!(after, before);
}

#[test]
fn the_sweep_loses_less_than_rounding_to_nearest() {
    let profile = Profile::detect();
    let (moments, weight) = problem(16, 64);
    let args = ArgsBuilder::int(3).strategy(QuantizationStrategy::Group).group_size(32).build().unwrap();
    let spec = WeightSpec { args: &args, float: Float::F32, rows: 16, cols: 64 };
    let qparams = spec.minmax(&weight, None).unwrap();
    let (mut swept, mut nearest) = (weight.clone(), weight.clone());
    spec.round_to_nearest(&qparams, &mut nearest).unwrap();
    let factored = factorize(profile, &moments, Order::Diagonal, &Damping::default()).unwrap();
    let consumer = Consumer { args: &args, float: Float::F32, qparams: &qparams, rows: 16, weight: &mut swept };
    quantize(profile, &factored, &mut [consumer]).unwrap();
    let output_error = |rounded: &[f32]| -> f64 {
        let mut total = 0.0;
        for (a, b) in rounded.chunks(64).zip(weight.chunks(64)) {
            for i in 0..64 {
                for j in 0..64 {
                    let h = moments.sum()[i.min(j) * 64 + i.max(j)];
                    total += f64::from((a[i] - b[i]) * h * (a[j] - b[j]));
                }
            }
        }
        total
    };
    assert!(output_error(&swept) < 0.7 * output_error(&nearest));
}

#[test]
fn energy_is_the_sum_of_squares_that_rows_put_out() {
    let (rows, cols, n_tokens) = (37, 21, 50);
    let x: Vec<f32> = (0..n_tokens * cols).map(|i| ((i * 37 % 23) as f32 - 11.0) / 4.0).collect();
    let weight: Vec<f32> = (0..rows * cols).map(|i| ((i * 29 % 31) as f32 - 15.0) / 8.0).collect();
    let mut moments = Hessian::new(cols);
    moments.accumulate(Profile::detect(), Mat::new(&x, n_tokens, cols).unwrap(), 2).unwrap();
    let output = |row: &[f32], x: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum::<f64>();
    let expected: f64 = weight.chunks(cols).flat_map(|row| x.chunks(cols).map(move |x| output(row, x).powi(2))).sum();
    let profile = Profile::detect();
    assert!((moments.energy(profile, &weight).unwrap() / expected - 1.0).abs() < 1e-5);
    assert_eq!(Hessian::new(0).energy(profile, &[]).unwrap(), 0.0);
}

#[test]
fn a_damping_of_nothing_is_raised_too() {
    let moments = Hessian::from_sum(4, vec![1.0; 16], 1, 10).unwrap();
    let damping = Damping { frac: 0.0, ..Damping::default() };
    let raised = factorize(Profile::detect(), &moments, Order::Stored, &damping).unwrap();
    assert_eq!((raised.attempts, raised.fallback, raised.dampening_frac), (2, None, 0.001));
}

/// Weights and correlated inputs from a seed, and the second moments of the inputs.
fn scene(seed: u32) -> (Vec<f32>, Hessian) {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let (rows, cols, tokens) = (24, 64, 256);
    let weight = (0..rows * cols).map(|_| Float::BF16.round(next())).collect();
    let mut inputs = vec![0.0f32; tokens * cols];
    for x in inputs.chunks_exact_mut(cols) {
        let shared = 2.0 * next();
        x.iter_mut().enumerate().for_each(|(j, it)| *it = shared + next() * (1.0 + j as f32 / 16.0));
    }
    let mut hessian = Hessian::new(cols);
    hessian.accumulate(Profile::detect(), Mat::new(&inputs, tokens, cols).unwrap(), 4).unwrap();
    (weight, hessian)
}

#[test]
fn refining_lowers_the_error_and_stays_on_the_grid() {
    let (weight, hessian) = scene(3);
    let symmetric = ArgsBuilder::int(4).strategy(QuantizationStrategy::Group).group_size(16);
    let asymmetric = ArgsBuilder::int(4).strategy(QuantizationStrategy::Group).group_size(16).asymmetric();
    for args in [symmetric, asymmetric, ArgsBuilder::int(8).strategy(QuantizationStrategy::Channel)] {
        let args = args.build().unwrap();
        let spec = WeightSpec { args: &args, float: Float::BF16, rows: 24, cols: 64 };
        let objective = Objective::new(&hessian, 0.01);
        let swept = |qparams: &Qparams| {
            let mut rounded = weight.clone();
            let factored = factorize(Profile::detect(), &hessian, Order::Diagonal, &Damping::default()).unwrap();
            let consumer = Consumer { args: &args, float: Float::BF16, qparams, rows: 24, weight: &mut rounded };
            let loss = quantize(Profile::detect(), &factored, &mut [consumer]).unwrap()[0].loss;
            (rounded, loss)
        };
        let mut qparams = spec.minmax(&weight, None).unwrap();
        let (_, loss) = swept(&qparams);
        search_scales(Profile::detect(), &spec, &objective.costs(), &weight, &mut qparams).unwrap();
        let (mut rounded, searched) = swept(&qparams);
        if args.num_bits == 4 {
            assert!(searched < loss, "{args:?}: {searched} of {loss}");
        }
        let [before, after] =
            refine(Profile::detect(), &spec, &objective, 6, &weight, &mut rounded, &mut qparams).unwrap();
        // GPTQ counts half of what its errors cost, up to what rounding to bf16 adds.
        assert!((before / (2.0 * searched) - 1.0).abs() < 0.1, "{args:?}: {before} and {searched}");
        // Among 256 codes a channel is as good as rounded to bf16, which leaves little to gain.
        let most = if args.num_bits == 4 { 0.98 } else { 1.0 };
        assert!(after < most * before, "{args:?}: {after} of {before}");
        // Packing divides in bf16, which tells 16 codes apart and not always 256.
        if args.num_bits == 4 {
            let mut read_back = rounded.clone();
            spec.round_to_nearest(&qparams, &mut read_back).unwrap();
            assert!(read_back == rounded, "{args:?}: what is packed is not what was chosen");
        }
    }
}

#[test]
fn weights_without_integer_codes_in_rows_are_not_refined() {
    let (weight, hessian) = scene(5);
    let args = ArgsBuilder::float(8).strategy(QuantizationStrategy::Channel).build().unwrap();
    let spec = WeightSpec { args: &args, float: Float::BF16, rows: 24, cols: 64 };
    let objective = Objective::new(&hessian, 0.01);
    let (mut rounded, mut qparams) = (weight.clone(), spec.minmax(&weight, None).unwrap());
    let before = qparams.clone();
    search_scales(Profile::detect(), &spec, &objective.costs(), &weight, &mut qparams).unwrap();
    assert_eq!(refine(Profile::detect(), &spec, &objective, 3, &weight, &mut rounded, &mut qparams).unwrap(), [0.0; 2]);
    assert_eq!((rounded, qparams), (weight, before));
}
