//! The sweep against its reference, and its rounding against the format's.

use compressed_tensors::numbers::Float;
use compressed_tensors::quantize::{Division, dequantize_value, quantize_value};
use compressed_tensors::scales::Code;

use super::{Rounding, ScaleType, Sweep, quantize_dequantize, reference, sweep};
use crate::gemm::tests::numbers;
use crate::{ErrorKind, Profile};

const ROUNDINGS: [(Rounding, Code); 2] = [(Rounding::Fp8E4m3, Code::E4M3), (Rounding::Fp4E2m1, Code::E2M1)];
const TYPES: [(ScaleType, Float); 3] =
    [(ScaleType::F32, Float::F32), (ScaleType::Bf16, Float::BF16), (ScaleType::F16, Float::F16)];

fn roundings() -> Vec<(Rounding, Code)> {
    [2, 3, 4, 8].map(|bits| (Rounding::int(bits), Code::Int { bits })).into_iter().chain(ROUNDINGS).collect()
}

#[test]
fn quantize_dequantize_is_that_of_the_format_for_every_kind() {
    let mut values = numbers::<f32>(20_000, 1);
    // Every tie of fp4 and int, and ties of fp8 in its normal and subnormal range.
    values.extend((-2000..2000).map(|i| i as f32 * 0.125));
    values.extend((-4000..4000).map(|i| i as f32 / 8192.0));
    values.extend([0.0, -0.0, 1e-30, -1e-40, 1e30, -1e30, f32::INFINITY]);
    for (rounding, code) in roundings() {
        for (scale_type, float) in TYPES {
            for (scale, zero_point) in [(1.0f32, None), (0.0371, None), (2.5, Some(3.0)), (0.0078, Some(-2.0))] {
                let scale = float.round(scale);
                for &w in &values {
                    let got = quantize_dequantize(rounding, scale_type, w, scale, zero_point);
                    let code = quantize_value(code, w, scale, zero_point, [Float::F32; 2], Division::Eager);
                    let want = dequantize_value(code, scale, zero_point, float);
                    assert!(
                        got == want,
                        "{rounding:?} {scale_type:?} {w} {scale} {zero_point:?}: {got}, expected {want}"
                    );
                }
            }
        }
    }
}

/// A weight of R rows and C columns with everything a sweep needs.
struct Case {
    w: Vec<f32>,
    factor: Vec<f32>,
    scales: Vec<f32>,
    zero_points: Vec<f32>,
    group_of_col: Vec<u32>,
}

impl Case {
    fn new(rows: usize, cols: usize, groups: usize) -> Self {
        let mut factor = numbers::<f32>(cols * cols, 2);
        for i in 0..cols {
            factor[i * cols..i * cols + i].fill(f32::NAN);
            factor[i * cols + i] = 4.0 + factor[i * cols + i].abs();
        }
        let positive = |x: f32| x.abs() * 0.3 + 0.05;
        Self {
            w: numbers(rows * cols, 3),
            factor,
            scales: numbers::<f32>(rows * groups, 4).into_iter().map(positive).collect(),
            zero_points: (0..rows * groups).map(|i| (i % 5) as f32 - 2.0).collect(),
            // Neighbours differ, as after an ordering by activation.
            group_of_col: (0..cols).map(|i| (i * 7 / 3 % groups) as u32).collect(),
        }
    }

    fn plan(&self, rows: usize, cols: usize, groups: usize) -> Sweep<'_> {
        Sweep {
            rows,
            cols,
            factor: &self.factor,
            rounding: Rounding::int(4),
            scale_type: ScaleType::F32,
            scales: &self.scales,
            zero_points: None,
            groups,
            group_of_col: &self.group_of_col,
            rows_per_scale: 1,
        }
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_kind_has_the_bits_of_the_reference_on_any_number_of_threads() {
    for (rows, cols, groups) in [(1, 1, 1), (3, 130, 2), (65, 128, 1), (70, 300, 5)] {
        let case = Case::new(rows, cols, groups);
        for profile in Profile::available() {
            for (rounding, _) in roundings() {
                for (scale_type, _) in TYPES {
                    for zero_points in [None, Some(&case.zero_points[..])] {
                        let plan = Sweep { rounding, scale_type, zero_points, ..case.plan(rows, cols, groups) };
                        let (mut want, mut want_loss) = (case.w.clone(), vec![0.5; rows]);
                        reference::sweep(profile, &plan, &mut want, &mut want_loss);
                        for n_threads in [1, 4] {
                            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                            let (mut got, mut loss) = (case.w.clone(), vec![0.5; rows]);
                            pool.install(|| sweep(profile, &plan, &mut got, &mut loss)).unwrap();
                            assert_eq!(bits(&got), bits(&want), "{profile:?} {plan:?}");
                            assert_eq!(bits(&loss), bits(&want_loss));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn stacked_rows_have_the_bits_of_each_weight_alone_across_slabs() {
    let (rows, cols) = (2100, 140);
    let case = Case::new(rows, cols, 1);
    let profile = Profile::detect();
    let (mut whole, mut loss) = (case.w.clone(), vec![0.0; rows]);
    sweep(profile, &case.plan(rows, cols, 1), &mut whole, &mut loss).unwrap();
    let from = 2031;
    let mut part = case.w[from * cols..].to_vec();
    let plan = Sweep { scales: &case.scales[from..], ..case.plan(rows - from, cols, 1) };
    sweep(profile, &plan, &mut part, &mut vec![0.0; rows - from]).unwrap();
    assert_eq!(bits(&part), bits(&whole[from * cols..]));
}

#[test]
fn rows_that_share_a_scale_read_the_same_one() {
    let (rows, cols) = (6, 8);
    let case = Case::new(rows, cols, 1);
    let plan = Sweep { rows_per_scale: 4, scales: &case.scales[..2], ..case.plan(rows, cols, 1) };
    let spread: Vec<f32> = (0..rows).map(|row| case.scales[row / 4]).collect();
    let alone = Sweep { scales: &spread, ..case.plan(rows, cols, 1) };
    let (mut left, mut right) = (case.w.clone(), case.w.clone());
    sweep(Profile::detect(), &plan, &mut left, &mut [0.0; 6]).unwrap();
    sweep(Profile::detect(), &alone, &mut right, &mut [0.0; 6]).unwrap();
    assert_eq!(left, right);
}

#[test]
fn arguments_that_do_not_fit_are_refused_by_name() {
    let case = Case::new(2, 3, 1);
    let plan = case.plan(2, 3, 1);
    let profile = Profile::PORTABLE;
    let run = |plan: &Sweep<'_>| sweep(profile, plan, &mut case.w.clone(), &mut [0.0; 2]).unwrap_err();
    assert_eq!(run(&Sweep { rows_per_scale: 0, ..plan }).place(), "gptq_sweep: rows_per_scale");
    assert_eq!(run(&Sweep { scales: &[1.0], ..plan }).place(), "gptq_sweep: scales");
    let error = run(&Sweep { group_of_col: &[0, 1, 0], ..plan });
    assert_eq!(error.kind(), &ErrorKind::Index { found: 1, position: 1, bound: 1 });
    assert_eq!(sweep(profile, &plan, &mut [0.0; 5], &mut [0.0; 2]).unwrap_err().place(), "gptq_sweep: w");
}
