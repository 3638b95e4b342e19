//! Descent against its reference, and what it is for: errors fall.

use super::{Grid, descend, reference, rounding_costs};
use crate::gemm::tests::numbers;
use crate::gptq_sweep::{Rounding, ScaleType, quantize_dequantize};
use crate::{ErrorKind, Profile};

/// A weight, moments, and a rounding of the weight to nearest.
struct Case {
    cols: usize,
    width: usize,
    bits: u32,
    types: [ScaleType; 2],
    weight: Vec<f32>,
    moments: Vec<f32>,
    scales: Vec<f32>,
    zero_points: Option<Vec<f32>>,
}

impl Case {
    fn new(rows: usize, cols: usize, width: usize, bits: u32, types: [ScaleType; 2], is_asymmetric: bool) -> Self {
        let inputs = numbers::<f32>(3 * cols * cols, 5);
        let shared = numbers::<f32>(3 * cols, 6);
        let inputs: Vec<f32> = inputs.iter().enumerate().map(|(i, it)| it + 2.0 * shared[i / cols]).collect();
        let moment = |i: usize, j: usize| inputs.chunks(cols).map(|x| x[i] * x[j]).sum::<f32>();
        let mut moments: Vec<f32> = (0..cols * cols).map(|at| moment(at / cols, at % cols)).collect();
        (0..cols).for_each(|j| moments[j * cols + j] += 0.5);
        let groups = rows * cols.div_ceil(width);
        let levels = (1u32 << bits) as f32;
        let scale = |it: &f32| types[0].round((it.abs() * 0.2 + 1.6) / levels);
        Self {
            cols,
            width,
            bits,
            types,
            weight: numbers::<f32>(rows * cols, 7).iter().map(|it| types[1].round(*it)).collect(),
            moments,
            scales: numbers::<f32>(groups, 8).iter().map(scale).collect(),
            zero_points: is_asymmetric.then(|| (0..groups).map(|i| (i % 5) as f32 - 2.0).collect()),
        }
    }

    fn grid(&self) -> Grid<'_> {
        Grid {
            cols: self.cols,
            width: self.width,
            bits: self.bits,
            scale_type: self.types[0],
            weight_type: self.types[1],
            zero_points: self.zero_points.as_deref(),
        }
    }

    fn nearest(&self) -> Vec<f32> {
        let groups = self.grid().groups();
        let value = |(i, w): (usize, &f32)| {
            let at = i / self.cols * groups + i % self.cols / self.width;
            let zero_point = self.zero_points.as_ref().map(|it| it[at]);
            let value = quantize_dequantize(Rounding::int(self.bits), self.types[0], *w, self.scales[at], zero_point);
            self.types[1].round(value)
        };
        self.weight.iter().enumerate().map(value).collect()
    }
}

fn cases() -> Vec<Case> {
    use ScaleType::{Bf16, F16, F32};
    vec![
        Case::new(37, 96, 32, 4, [Bf16, Bf16], false),
        Case::new(5, 70, 16, 4, [Bf16, Bf16], true),
        Case::new(33, 41, 41, 8, [Bf16, Bf16], false),
        Case::new(6, 40, 8, 8, [F16, F16], true),
        Case::new(40, 64, 64, 8, [Bf16, Bf16], true),
        Case::new(3, 33, 20, 3, [F32, F32], false),
        Case::new(1, 130, 128, 2, [F32, Bf16], true),
        Case::new(2, 1, 1, 4, [Bf16, Bf16], false),
        Case::new(530, 24, 8, 4, [Bf16, Bf16], true),
    ]
}

#[test]
fn the_blocked_descent_has_the_bits_of_the_reference_under_every_profile() {
    for (idx, case) in cases().iter().enumerate() {
        for profile in Profile::available() {
            for rounds in [0, 1, 5] {
                let (mut want, mut want_scales) = (case.nearest(), case.scales.clone());
                let (mut got, mut got_scales) = (want.clone(), want_scales.clone());
                let (w, h) = (&case.weight, &case.moments);
                let rows = reference::descend(profile, &case.grid(), h, rounds, w, &mut want, &mut want_scales);
                let sum = rows.iter().fold([0.0; 2], |sum, it| [sum[0] + it[0], sum[1] + it[1]]);
                let found = descend(profile, &case.grid(), h, rounds, w, &mut got, &mut got_scales).unwrap();
                assert!(got == want && got_scales == want_scales, "case {idx}, {profile:?}, {rounds} rounds");
                assert_eq!(found, sum, "case {idx}, {profile:?}, {rounds} rounds");
            }
        }
    }
}

#[test]
fn every_round_lowers_the_error() {
    for (idx, case) in cases().iter().enumerate().filter(|it| it.1.cols > 1) {
        let after = |rounds| {
            let (mut rounded, mut scales) = (case.nearest(), case.scales.clone());
            let profile = Profile::detect();
            let (w, h) = (&case.weight, &case.moments);
            descend(profile, &case.grid(), h, rounds, w, &mut rounded, &mut scales).unwrap()[1]
        };
        let errors = [0, 1, 2, 3, 100].map(after);
        assert!(errors.windows(2).all(|it| it[1] <= it[0] * (1.0 + 1e-6)), "case {idx}: {errors:?}");
        // Eight bits leave little to gain.
        assert!(errors[4] < if case.bits == 8 { 0.98 } else { 0.8 } * errors[0], "case {idx}: {errors:?}");
    }
}

#[test]
fn costs_of_rounding_are_those_of_the_reference_under_every_profile() {
    for case in cases() {
        let costs: Vec<f32> = numbers::<f32>(case.cols, 9).iter().map(|it| it.abs()).collect();
        let (mut want, mut got) = (vec![0.0; case.scales.len()], vec![1.0; case.scales.len()]);
        reference::rounding_costs(&case.grid(), &costs, &case.weight, &case.scales, &mut want);
        for profile in Profile::available() {
            rounding_costs(profile, &case.grid(), &costs, &case.weight, &case.scales, &mut got).unwrap();
            assert_eq!(got, want, "{profile:?}");
        }
    }
}

#[test]
fn arguments_that_disagree_are_named() {
    let case = &cases()[0];
    let (mut rounded, mut scales) = (case.nearest(), case.scales.clone());
    let profile = Profile::PORTABLE;
    let error = descend(profile, &case.grid(), &case.moments[1..], 1, &case.weight, &mut rounded, &mut scales);
    assert_eq!(error.unwrap_err().kind(), &ErrorKind::Length { found: 96 * 96 - 1, expected: 96 * 96 });
    for grid in [
        Grid { width: 0, ..case.grid() },
        Grid { cols: 0, ..case.grid() },
        Grid { bits: 0, ..case.grid() },
        Grid { bits: 9, ..case.grid() },
        Grid { zero_points: Some(&[0.0]), ..case.grid() },
    ] {
        let costs = vec![1.0; grid.cols];
        let mut sums = vec![0.0; case.scales.len()];
        assert!(rounding_costs(profile, &grid, &costs, &case.weight, &case.scales, &mut sums).is_err(), "{grid:?}");
    }
}
