//! Streaming compression: the golden disk tensors, and the same bytes from every cut into slabs.

use std::collections::BTreeMap;

use compressed_tensors::{
    DType, ErrorKind,
    args::QuantizationStrategy,
    format::CompressionFormat,
    presets::preset,
    scheme::QuantizationScheme,
    simd::Isa,
    weight_compressor::{FirstPass, Given, MinMax, SlabOutputs, WeightCompressor},
};
use proptest::prelude::*;

use crate::golden::Formats;

/// Combinations that the reference writes and cannot read back as they were quantized.
const UNSOUND: [&str; 2] = ["x_fp4_g16_noglobal", "x_fp4_g32_floatscale"];

/// Compresses in slabs of at most `slab_rows` rows; asserts that every byte of every output is written.
pub(crate) fn compress(
    compressor: &WeightCompressor,
    [rows, _]: [usize; 2],
    weight: &[u8],
    slab_rows: usize,
    given: Option<Given<'_>>,
) -> BTreeMap<String, Vec<u8>> {
    let row_bytes = weight.len() / rows;
    let quantum = compressor.row_quantum();
    let step = slab_rows.div_ceil(quantum) * quantum;
    let slabs = || (0..rows).step_by(step).map(|first| (first, first..(first + step).min(rows)));
    let whole = slabs().fold(MinMax::EMPTY, |range, (first, slab)| {
        range.merge(compressor.scan(first, &weight[slab.start * row_bytes..slab.end * row_bytes]))
    });
    let global = compressor.global_scale(&whole);
    let mut tensors: Vec<Vec<u8>> = compressor
        .outputs()
        .iter()
        .map(|spec| vec![0xa5; spec.dtype.byte_len(spec.shape.iter().product()).unwrap()])
        .collect();
    let mut written: Vec<usize> = vec![0; tensors.len()];
    let mut out = SlabOutputs::new();
    for (first, slab) in slabs() {
        let bytes = &weight[slab.start * row_bytes..slab.end * row_bytes];
        let report = match given {
            None => compressor.compress_rows(first, bytes, Some(&whole), global, &mut out),
            Some(given) if given.scales.len() > 1 => {
                let per_row = given.scales.len() / rows;
                let range = slab.start * per_row..slab.end * per_row;
                let given =
                    Given { scales: &given.scales[range.clone()], zero_points: given.zero_points.map(|z| &z[range]) };
                compressor.compress_rows_with(first, bytes, given, global, &mut out)
            }
            Some(given) => compressor.compress_rows_with(first, bytes, given, global, &mut out),
        };
        assert_eq!(report.unwrap().rows, slab.len());
        for (idx, tensor) in tensors.iter_mut().enumerate() {
            if let Some(range) = compressor.output_range(idx, first, slab.len()) {
                written[idx] += range.len();
                tensor[range].copy_from_slice(out.bytes(idx));
            }
        }
    }
    let rest = match given {
        None => compressor.finish(Some(&whole), global),
        Some(given) => compressor.finish_with(given, global),
    };
    for (idx, bytes) in rest.unwrap() {
        written[idx] += bytes.len();
        tensors[idx].copy_from_slice(&bytes);
    }
    assert_eq!(written, tensors.iter().map(Vec::len).collect::<Vec<_>>());
    compressor.outputs().iter().map(|spec| spec.name.clone()).zip(tensors).collect()
}

#[test]
fn golden_weights_become_the_references_disk_tensors_in_any_slabs() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let (mut compared, mut refused) = (0, 0);
    for case in manifest["weight_cases"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        let scheme = QuantizationScheme::from_json(&case["scheme"]).unwrap();
        let format = CompressionFormat::from_name(case["format"].as_str().unwrap()).unwrap();
        let input = formats.array(&case["input"]);
        let (rows, cols) = (input.shape[0], input.shape[1]);
        let compressor = WeightCompressor::new(&scheme, format, input.dtype, rows, cols);
        if UNSOUND.iter().any(|it| id.starts_with(it)) {
            assert!(matches!(compressor.unwrap_err().kind(), ErrorKind::Unsupported { .. }), "{id}");
            refused += 1;
            continue;
        }
        let compressor = compressor.unwrap();
        let disk = case["disk"].as_object().unwrap();
        let expected: Vec<_> = disk.keys().filter(|it| it.starts_with("weight")).collect();
        let names: Vec<_> = compressor.outputs().iter().map(|it| &it.name).collect();
        assert_eq!(names, expected, "{id}");
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
            let compressor = compressor.clone().with_isa(isa);
            for slab_rows in [1, 5, rows] {
                let found = compress(&compressor, [rows, cols], &input.data, slab_rows, None);
                for spec in compressor.outputs() {
                    let golden = formats.array(&disk[&spec.name]);
                    assert_eq!((golden.dtype, &golden.shape), (spec.dtype, &spec.shape), "{id} {}", spec.name);
                    let found = &found[&spec.name];
                    // A NaN zero point has either sign in the reference.
                    let same = *found == golden.data
                        || spec.name == "weight_zero_point" && golden.dtype == DType::F8E4M3 && {
                            found.iter().zip(&golden.data).all(|(a, b)| a == b || a & b & 0x7f == 0x7f)
                        };
                    assert!(same, "{id} {} {isa:?} slabs of {slab_rows}", spec.name);
                }
            }
        }
        compared += 1;
    }
    assert_eq!((compared, refused), (138, 2));
}

#[test]
fn given_qparams_give_the_same_bytes_as_the_ones_found() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let mut compared = 0;
    for case in manifest["weight_cases"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        let scheme = QuantizationScheme::from_json(&case["scheme"]).unwrap();
        let block = scheme.weights.as_ref().unwrap().strategy == QuantizationStrategy::Block;
        if block || UNSOUND.iter().any(|it| id.starts_with(it)) {
            continue;
        }
        let format = CompressionFormat::from_name(case["format"].as_str().unwrap()).unwrap();
        let input = formats.array(&case["input"]);
        let shape = [input.shape[0], input.shape[1]];
        let compressor = WeightCompressor::new(&scheme, format, input.dtype, shape[0], shape[1]).unwrap();
        let scales = formats.values(&case["qparams"]["scale"]);
        let zero_points = formats.values(&case["qparams"]["zero_point"]);
        if zero_points.iter().any(|it| it.is_nan()) {
            continue;
        }
        let given = Given { scales: &scales, zero_points: Some(&zero_points) };
        let found = compress(&compressor, shape, &input.data, 7, Some(given));
        assert_eq!(found, compress(&compressor, shape, &input.data, 7, None), "{id}");
        compared += 1;
    }
    assert!(compared > 120, "{compared}");
}

#[test]
fn only_whole_tensor_scales_need_a_first_pass() {
    let first_pass = |name: &str| {
        let scheme = preset(name, vec![]).unwrap();
        let format = match name {
            "NVFP4A16" => CompressionFormat::Nvfp4PackQuantized,
            _ => CompressionFormat::FloatQuantized,
        };
        WeightCompressor::new(&scheme, format, DType::BF16, 2, 128).unwrap().first_pass()
    };
    assert_eq!(first_pass("FP8"), FirstPass::WholeRange);
    assert_eq!(first_pass("NVFP4A16"), FirstPass::WholeRange);
    assert_eq!(first_pass("FP8_DYNAMIC"), FirstPass::None);
    assert_eq!(first_pass("FP8_BLOCK"), FirstPass::None);
}

#[test]
fn groups_that_do_not_divide_are_refused_with_both_numbers() {
    let scheme = preset("W4A16", vec![]).unwrap();
    let new = |cols| WeightCompressor::new(&scheme, CompressionFormat::PackQuantized, DType::BF16, 8, cols);
    let error = new(200).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Shape { .. }), "{error}");
    assert!(error.to_string().contains("200") && error.to_string().contains("128"), "{error}");
    assert!(new(0).is_err());
    let dtype = WeightCompressor::new(&scheme, CompressionFormat::PackQuantized, DType::F64, 8, 128).unwrap_err();
    assert!(matches!(dtype.kind(), ErrorKind::DType { found: DType::F64, .. }));
    for format in CompressionFormat::ALL {
        let fits = matches!(
            format,
            CompressionFormat::PackQuantized
                | CompressionFormat::IntQuantized
                | CompressionFormat::FloatQuantized
                | CompressionFormat::NaiveQuantized
        );
        assert_eq!(WeightCompressor::new(&scheme, format, DType::BF16, 8, 128).is_ok(), fits, "{format:?}");
    }
}

#[test]
fn slabs_cut_at_the_wrong_row_are_refused() {
    let scheme = preset("FP8_BLOCK", vec![]).unwrap();
    let new = WeightCompressor::new(&scheme, CompressionFormat::FloatQuantized, DType::BF16, 300, 4).unwrap();
    let mut out = SlabOutputs::new();
    assert_eq!(new.row_quantum(), 128);
    for (first, bytes, fits) in
        [(0, 128 * 8, true), (128, 172 * 8, true), (0, 100 * 8, false), (64, 64 * 8, false), (256, 44 * 8 - 1, false)]
    {
        assert_eq!(new.compress_rows(first, &vec![0; bytes], None, None, &mut out).is_ok(), fits, "{first} {bytes}");
    }
}

#[test]
fn non_finite_weights_are_counted_and_the_first_is_named() {
    let scheme = preset("W4A16", vec![]).unwrap();
    let new = WeightCompressor::new(&scheme, CompressionFormat::PackQuantized, DType::F32, 4, 128).unwrap();
    let mut weight = vec![1.0f32; 4 * 128];
    weight[300] = f32::NAN;
    weight[301] = f32::NEG_INFINITY;
    let bytes: Vec<u8> = weight.iter().flat_map(|it| it.to_le_bytes()).collect();
    let report = new.compress_rows(2, &bytes[1024..], None, None, &mut SlabOutputs::new()).unwrap();
    assert_eq!((report.first_non_finite, report.n_non_finite), (Some(300), 2));
    let range = new.scan(0, &bytes[..1024]).merge(new.scan(2, &bytes[1024..]));
    assert_eq!((range.first_non_finite, range.n_non_finite), (Some(300), 2));
    assert!(range.min.is_nan());
}

/// Every preset with weights, and the format it is written in.
pub(crate) const PRESETS: [(&str, CompressionFormat); 12] = [
    ("W4A16", CompressionFormat::PackQuantized),
    ("W3A16", CompressionFormat::PackQuantized),
    ("W8A16", CompressionFormat::PackQuantized),
    ("W4A16_ASYM", CompressionFormat::PackQuantized),
    ("W4A8", CompressionFormat::IntQuantized),
    ("W8A8", CompressionFormat::IntQuantized),
    ("FP8", CompressionFormat::FloatQuantized),
    ("FP8_DYNAMIC", CompressionFormat::FloatQuantized),
    ("FP8_BLOCK", CompressionFormat::FloatQuantized),
    ("NVFP4A16", CompressionFormat::Nvfp4PackQuantized),
    ("MXFP4A16", CompressionFormat::Mxfp4PackQuantized),
    ("MXFP8A16", CompressionFormat::Mxfp8Quantized),
];

#[test]
fn rows_as_short_as_a_group_take_the_whole_tensors_scale_on_every_instruction_set() {
    let scheme = preset("FP8", vec![]).unwrap();
    for (float, cols) in [(DType::BF16, 16), (DType::BF16, 32), (DType::F16, 16), (DType::F32, 8)] {
        let compressor = WeightCompressor::new(&scheme, CompressionFormat::FloatQuantized, float, 3, cols).unwrap();
        let weight = random_weight(float, 3 * cols, 1, 0);
        let bytes = |isa| compress(&compressor.clone().with_isa(isa), [3, cols], &weight, 1, None);
        let plain = bytes(Isa::Portable);
        assert!(plain["weight"].iter().any(|code| code & 0x7f == 0x7e), "the largest code occurs");
        assert_eq!(bytes(Isa::Avx2), plain, "{float} {cols}");
        assert_eq!(bytes(Isa::Avx512), plain, "{float} {cols}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Raw bit patterns, specials included, in every dtype, cut and instruction set.
    #[test]
    fn bytes_do_not_depend_on_slabs_or_instruction_sets(
        which in 0..PRESETS.len(),
        float in prop::sample::select(vec![DType::BF16, DType::F16, DType::F32]),
        rows in 1usize..70,
        blocks in 1usize..3,
        odd_cols in 1usize..150,
        slab_rows in 1usize..40,
        exponents in 1u32..256,
        seed: u64,
    ) {
        let (name, format) = PRESETS[which];
        let scheme = preset(name, vec![]).unwrap();
        let is_grouped = scheme.weights.as_ref().unwrap().group_size.is_some();
        let cols = if is_grouped { 128 * blocks } else { odd_cols };
        let weight = random_weight(float, rows * cols, exponents, seed);
        let compressor = WeightCompressor::new(&scheme, format, float, rows, cols).unwrap();
        let plain = compress(&compressor.clone().with_isa(Isa::Portable), [rows, cols], &weight, rows, None);
        for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
            let compressor = compressor.clone().with_isa(isa);
            let found = compress(&compressor, [rows, cols], &weight, slab_rows, None);
            prop_assert!(found == plain, "{name} {float} {isa:?}");
        }
    }
}

/// Random patterns whose exponents cover `exponents` of the type's range, so that some inputs are all ordinary
/// and some are full of subnormals, infinities and NaNs.
pub(crate) fn random_weight(float: DType, n: usize, exponents: u32, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 32) as u32
    };
    let mut out = Vec::new();
    for _ in 0..n {
        let (bits, pick) = (next(), next());
        let exponent = (127 + exponents / 2).min(255).wrapping_sub(pick % exponents) & 0xff;
        let value = f32::from_bits((bits & 0x807f_ffff) | (exponent << 23));
        let value = match pick >> 24 {
            0 => 0.0,
            1 => -0.0,
            _ => value,
        };
        match float {
            DType::BF16 => out.extend(half::bf16::from_f32(value).to_le_bytes()),
            DType::F16 => out.extend(half::f16::from_f32(value).to_le_bytes()),
            _ => out.extend(value.to_le_bytes()),
        }
    }
    out
}
