//! The fast, streaming search against the reference loops, however rows are cut.

use compressed_tensors::{
    ErrorKind,
    args::{QuantizationArgs, QuantizationStrategy},
    numbers::Float,
    quantize::ScaleMap,
    weight_compressor::{FirstPass, MinMax},
};
use modifiers::observers::{SlabSearch, Survey, WeightSearch, reference, weight_observer};
use proptest::prelude::*;
use serde_json::json;

use super::cases::{args, bytes};

const SCHEMES: usize = 11;

fn scheme(idx: usize) -> QuantizationArgs {
    let float8 = |strategy: &str| json!({"num_bits": 8, "type": "float", "strategy": strategy});
    args(&match idx {
        0 => json!({"num_bits": 4, "strategy": "group", "group_size": 16}),
        1 => json!({"num_bits": 4, "symmetric": false, "strategy": "group", "group_size": 8}),
        2 => json!({"num_bits": 8, "strategy": "channel"}),
        3 => json!({"num_bits": 3, "symmetric": false, "strategy": "channel"}),
        4 => json!({"num_bits": 4, "strategy": "tensor"}),
        5 => float8("tensor"),
        6 => float8("channel"),
        7 => json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [3, 20]}),
        8 => json!({"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "uint8",
            "zp_dtype": "uint8"}),
        9 => json!({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
            "scale_dtype": "float8_e4m3fn", "zp_dtype": "float8_e4m3fn"}),
        _ => json!({"num_bits": 12, "strategy": "channel"}),
    })
}

fn random(seed: u64, n_values: usize, float: Float) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut values: Vec<f32> = (0..n_values).map(|_| next() * next() * 4.0f32.powi((next() * 8.0) as i32)).collect();
    match seed % 8 {
        0 => values[n_values / 2] = f32::NAN,
        1 => values[n_values / 3] = f32::INFINITY,
        2 => values[..n_values / 2].fill(0.0),
        3 => values.iter_mut().for_each(|it| *it *= 1e37),
        4 => values.iter_mut().for_each(|it| *it *= 1e-38),
        _ => {}
    }
    values.iter().map(|it| float.round(*it)).collect()
}

fn whole(values: &[f32]) -> MinMax {
    values.iter().fold(MinMax::EMPTY, |all, x| all.merge(MinMax { min: *x, max: *x, ..MinMax::EMPTY }))
}

/// Ranges with NaN made comparable.
fn bits(ranges: &[(f32, f32)]) -> Vec<(u32, u32)> {
    let bits = |x: f32| if x.is_nan() { u32::MAX } else { (x + 0.0).to_bits() };
    ranges.iter().map(|(min, max)| (bits(*min), bits(*max))).collect()
}

fn names() -> impl Strategy<Value = (&'static str, serde_json::Value)> {
    prop_oneof![
        Just(("memoryless_minmax", json!({}))),
        Just(("memoryless_mse", json!({}))),
        Just(("memoryless_mse", json!({"maxshrink": 0.8, "grid": 40, "norm": 2.0, "patience": 3}))),
        Just(("memoryless_mse", json!({"norm": 3, "patience": 1}))),
        Just(("nvfp4_expanded_mse", json!({"grid": 50}))),
        Just(("imatrix_mse", json!({"norm": 2.4}))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn slabs_make_no_difference_and_the_result_is_that_of_the_plain_loops(
        (name, kwargs) in names(),
        scheme_idx in 0..SCHEMES,
        float_idx in 0..3usize,
        rows in 1..14usize,
        seed in any::<u64>(),
        cuts in proptest::collection::vec(any::<bool>(), 14),
    ) {
        let float = [Float::F32, Float::BF16, Float::F16][float_idx];
        let mut args = scheme(scheme_idx);
        args.observer = Some(name.to_owned());
        args.observer_kwargs = kwargs.as_object().unwrap().clone();
        let cols = 96;
        let values = random(seed, rows * cols, float);
        let search = WeightSearch::of(&args, float.dtype(), [rows, cols]).unwrap().with_range(&whole(&values));
        let slab = |rows: std::ops::Range<usize>| -> SlabSearch {
            search.scan_rows(rows.start, &bytes(&values[rows.start * cols..rows.end * cols], float)).unwrap()
        };
        let at_once = search.resolve([slab(0..rows)]).unwrap();
        let quantum = search.row_quantum();
        let mut ends: Vec<usize> = (1..rows).filter(|row| row % quantum == 0 && cuts[*row]).collect();
        ends.push(rows);
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let cut = search.resolve(starts.zip(&ends).map(|(start, end)| slab(start..*end))).unwrap();
        prop_assert_eq!(bits(cut.ranges()), bits(at_once.ranges()));
        prop_assert_eq!(cut.n_evaluated(), at_once.n_evaluated());

        // Slab by slab, scanned once for the survey and once more for their ranges.
        let spans = || std::iter::once(0).chain(ends.iter().copied()).zip(ends.iter().copied());
        let mut surveys: Vec<Survey> = spans().map(|(start, end)| search.survey(&slab(start..end))).collect();
        surveys.reverse();
        let joined = surveys.into_iter().fold(Survey::default(), Survey::merge);
        prop_assert!(search.needs_survey() || joined == Survey::default());
        let outcome = search.outcome(&joined);
        let part = |(start, end)| search.resolve_whole(&outcome).unwrap_or_else(|| search.resolve_slab(slab(start..end), &outcome));
        let parts: Vec<_> = spans().map(part).collect();
        let range = parts.iter().map(|it| it.range()).reduce(|a, b| a.merge(b)).unwrap();
        prop_assert_eq!(range.max.to_bits(), at_once.range().max.to_bits());
        prop_assert!(parts.iter().all(|it| it.n_evaluated() == at_once.n_evaluated()));
        let global = (args.strategy == QuantizationStrategy::TensorGroup).then_some(2.0);
        let whole = at_once.clone().qparams(global);
        for ((start, end), part) in spans().zip(parts) {
            let part = part.qparams(global);
            let (found, expected) = (part.given(0, end - start), whole.given(start, end - start));
            let bits = |values: &[f32]| values.iter().map(|it| it.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(found.scales), bits(expected.scales));
            prop_assert_eq!(found.zero_points.map(bits), expected.zero_points.map(bits));
        }

        let choice = weight_observer(&args).unwrap();
        let Some(settings) = choice.settings.search else { return Ok(()) };
        let mut plain = args.clone();
        plain.observer = Some("memoryless_minmax".to_owned());
        plain.observer_kwargs.clear();
        let observed = WeightSearch::of(&plain, float.dtype(), [rows, cols]).unwrap();
        let observed = observed.resolve([observed.scan_values(0, &values).unwrap()]).unwrap();
        let map = ScaleMap::weight(&args, &[rows, cols]).unwrap();
        let expected = reference::search(&settings, &args, (&values, float), &map, observed.ranges(), None).unwrap();
        prop_assert_eq!(bits(at_once.ranges()), bits(&expected.ranges));
        prop_assert_eq!(at_once.n_evaluated(), expected.n_evaluated);
    }
}

#[test]
fn slabs_that_do_not_make_up_the_weight_are_refused() {
    let block = scheme(7);
    let search = WeightSearch::of(&block, Float::F32.dtype(), [7, 40]).unwrap();
    assert_eq!(search.row_quantum(), 3);
    let values = vec![1.0; 7 * 40];
    for (first_row, n_values) in [(1, 120), (0, 80), (0, 41), (6, 80), (9, 0)] {
        let error = search.scan_values(first_row, &values[..n_values]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Shape { .. }), "{error}");
    }
    let slab = |first_row: usize, n_rows: usize| search.scan_values(first_row, &values[..n_rows * 40]).unwrap();
    assert!(search.resolve([slab(0, 3), slab(3, 4)]).is_ok());
    for slabs in [vec![], vec![slab(0, 3)], vec![slab(3, 4), slab(0, 3)], vec![slab(0, 7), slab(0, 7)]] {
        assert!(matches!(search.resolve(slabs).unwrap_err().kind(), ErrorKind::Shape { .. }));
    }
    let mut args = scheme(4);
    args.observer = Some("memoryless_mse".to_owned());
    let search = WeightSearch::of(&args, Float::F32.dtype(), [2, 4]).unwrap();
    assert_eq!(search.first_pass(), FirstPass::WholeRange);
    assert!(matches!(search.scan_values(0, &[0.0; 8]).unwrap_err().kind(), ErrorKind::MissingTensor { .. }));
    assert!(WeightSearch::of(&args, compressed_tensors::DType::I8, [2, 4]).is_err());
    assert!(WeightSearch::of(&args, Float::F32.dtype(), [0, 4]).is_err());
}

#[test]
fn found_scales_are_those_that_the_compressor_takes() {
    use compressed_tensors::{
        format::CompressionFormat,
        presets::preset,
        weight_compressor::{SlabOutputs, WeightCompressor},
    };
    for (name, format) in [
        ("W4A16", CompressionFormat::PackQuantized),
        ("W4A16_ASYM", CompressionFormat::PackQuantized),
        ("NVFP4A16", CompressionFormat::Nvfp4PackQuantized),
        ("FP8_BLOCK", CompressionFormat::FloatQuantized),
    ] {
        let scheme = preset(name, vec!["Linear".to_owned()]).unwrap();
        let (rows, cols, float) = (256, 256, Float::BF16);
        let values = random(5, rows * cols, float);
        let data = bytes(&values, float);
        let args = scheme.weights.as_ref().unwrap();
        let compressor = WeightCompressor::new(&scheme, format, float.dtype(), rows, cols).unwrap();
        // The min-max observer through given scales writes what the compressor writes by itself.
        let search = WeightSearch::new("minmax", &Default::default(), args, float.dtype(), [rows, cols]).unwrap();
        let found = search.resolve([search.scan_rows(0, &data).unwrap()]).unwrap();
        let global = compressor.global_scale(&found.range());
        assert_eq!(global, compressor.global_scale(&whole(&values)));
        let result = found.qparams(global);
        let (mut own, mut given) = (SlabOutputs::new(), SlabOutputs::new());
        for first in [0, 128] {
            let slab = &data[first * cols * 2..(first + 128) * cols * 2];
            compressor.compress_rows(first, slab, None, global, &mut own).unwrap();
            compressor.compress_rows_with(first, slab, result.given(first, 128), global, &mut given).unwrap();
            for idx in 0..compressor.outputs().len() {
                assert_eq!(given.bytes(idx), own.bytes(idx), "{name} {:?}", compressor.outputs()[idx]);
            }
        }
    }
}
