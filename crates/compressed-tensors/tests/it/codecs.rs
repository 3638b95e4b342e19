//! Codecs: the golden modules both ways, companions, and what older and broken files hold.

use compressed_tensors::{
    Array, DType, ErrorKind, ModuleTensors,
    codec::{CODECS, Codec, codec},
    format::CompressionFormat,
    numbers::write_f32,
    packing::{Layout, PackedDim, pack},
    presets::preset,
    scheme::QuantizationScheme,
    weight_compressor::TensorSpec,
    weight_decompressor::{StoredPart, StoredRows, WeightDecompressor},
};
use proptest::prelude::*;
use serde_json::Value;

use crate::{
    compressor::{PRESETS, random_weight},
    golden::{Formats, assert_same, values},
};

fn module(formats: &Formats, tensors: &Value) -> ModuleTensors {
    tensors.as_object().unwrap().iter().map(|(name, it)| (name.clone(), formats.array(it))).collect()
}

struct Case<'a> {
    id: &'a str,
    scheme: QuantizationScheme,
    codec: &'static dyn Codec,
    value: &'a Value,
}

fn cases(manifest: &Value) -> Vec<Case<'_>> {
    let cases = manifest["weight_cases"].as_array().unwrap();
    let case = |value: &'_ Value| -> (QuantizationScheme, &'static dyn Codec) {
        let format = CompressionFormat::from_name(value["format"].as_str().unwrap()).unwrap();
        (QuantizationScheme::from_json(&value["scheme"]).unwrap(), codec(format).unwrap())
    };
    cases
        .iter()
        .map(|value| {
            let (scheme, codec) = case(value);
            Case { id: value["id"].as_str().unwrap(), scheme, codec, value }
        })
        .collect()
}

#[test]
fn stored_golden_modules_decompress_as_in_the_reference() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let cases = cases(&manifest);
    for Case { id, scheme, codec, value } in &cases {
        let disk = module(&formats, &value["disk"]);
        let is_unsound = id.starts_with("x_fp4_g16_noglobal");
        for name in codec.required(scheme) {
            assert!(disk.contains_key(name) || is_unsound, "{id} {name}");
        }
        let dense = codec.decompress(disk, scheme).unwrap();
        let after = value["after_decompress"].as_object().unwrap();
        assert_eq!(dense.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>(), "{id}");
        for (name, spec) in after {
            let array = &dense[name];
            let shape: Vec<usize> =
                spec[1].as_array().unwrap().iter().map(|it| it.as_u64().unwrap() as usize).collect();
            assert_eq!((array.dtype.torch_name(), &array.shape), (spec[0].as_str(), &shape), "{id} {name}");
        }
        let found = values(&dense["weight"]);
        let fake = formats.values(&value["fq"]);
        match value["decompressed_vs_fq"].as_str().unwrap() {
            "identical" => assert_same(&found, &fake, id),
            "different" => assert_same(&found, &formats.values(&value["decompressed"]), id),
            _ => assert_same(&found, &fake.iter().map(|it| it + 0.0).collect::<Vec<_>>(), id),
        }
        if value["disk"].get("weight_zero_point").is_some() {
            assert_same(&values(&dense["weight_zero_point"]), &formats.values(&value["qparams"]["zero_point"]), id);
        }
    }
    assert_eq!(cases.len(), 140);
}

#[test]
fn golden_modules_compress_to_the_references_tensors() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let mut compared = 0;
    for Case { id, scheme, codec, value } in cases(&manifest) {
        let mut tensors = module(&formats, &value["disk"]);
        tensors.retain(|name, _| name.starts_with("input"));
        tensors.insert("input_zero_point".to_owned(), Array { dtype: DType::I8, shape: vec![1], data: vec![0] });
        tensors.insert("weight".to_owned(), formats.array(&value["input"]));
        tensors.insert("weight_scale".to_owned(), formats.array(&value["qparams"]["scale"]));
        let zero_point = formats.array(&value["qparams"]["zero_point"]);
        tensors.insert("weight_zero_point".to_owned(), zero_point);
        if let Some(global) = value["qparams"].get("global_scale") {
            tensors.insert("weight_global_scale".to_owned(), formats.array(global));
        }
        let found = match codec.compress(tensors, &scheme) {
            Ok(found) => found,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }), "{id}");
                assert!(id.starts_with("x_fp4"), "{id}: {error}");
                continue;
            }
        };
        let mut expected = module(&formats, &value["disk"]);
        if scheme.input_activations.as_ref().is_none_or(|it| !it.symmetric) {
            // Only a symmetric input's zero point is dropped.
            expected.insert("input_zero_point".to_owned(), found["input_zero_point"].clone());
        }
        assert_eq!(found.len(), expected.len(), "{id}");
        for (name, array) in &expected {
            let found = &found[name];
            assert_eq!((found.dtype, &found.shape), (array.dtype, &array.shape), "{id} {name}");
            if array.dtype == DType::F8E4M3 {
                assert_same(&values(found), &values(array), id);
            } else {
                assert_eq!(found.data, array.data, "{id} {name}");
            }
        }
        let weight = formats.array(&value["input"]);
        let specs = codec.outputs(&scheme, weight.dtype, weight.shape[0], weight.shape[1]).unwrap();
        for spec in specs {
            assert_eq!((spec.dtype, &spec.shape), (found[&spec.name].dtype, &found[&spec.name].shape), "{id}");
        }
        compared += 1;
    }
    assert_eq!(compared, 138);
}

#[test]
fn the_dense_codec_keeps_everything() {
    let scheme = preset("W4A16", vec![]).unwrap();
    let mut tensors = ModuleTensors::new();
    for name in ["weight", "weight_zero_point", "bias"] {
        tensors.insert(name.to_owned(), Array { dtype: DType::I8, shape: vec![1], data: vec![7] });
    }
    let dense = codec(CompressionFormat::Dense).unwrap();
    assert_eq!(dense.compress(tensors.clone(), &scheme).unwrap(), tensors);
    assert_eq!(dense.decompress(tensors.clone(), &scheme).unwrap(), tensors);
}

#[test]
fn every_codec_is_registered_under_its_name_and_retired_ones_are_refused() {
    for codec in CODECS {
        assert!(compressed_tensors::codec::codec(codec.format()).unwrap().name() == codec.name());
        assert!(!codec.page().is_empty());
    }
    assert_eq!(CODECS.len(), 8);
    let error = codec(CompressionFormat::Marlin24).err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::UnknownName { what: "codec", .. }), "{error}");
}

fn f32_array(shape: Vec<usize>, values: &[f32]) -> Array {
    let mut data = vec![0; values.len() * 4];
    write_f32(DType::F32, values, &mut data).unwrap();
    Array { dtype: DType::F32, shape, data }
}

fn i32_array(shape: Vec<usize>, values: &[i32]) -> Array {
    Array { dtype: DType::I32, shape, data: values.iter().flat_map(|it| it.to_le_bytes()).collect() }
}

#[test]
fn columns_follow_their_group_index_and_a_negative_one_means_column_order() {
    let scheme: Value = serde_json::json!({"targets": [], "weights": {"num_bits": 4, "group_size": 2}});
    let scheme = QuantizationScheme::from_json(&scheme).unwrap();
    let codes: Vec<i8> = vec![1, 2, 3, 4, 5, 6, 7, -8];
    let words = pack(&codes, 2, 4, 4, PackedDim::Cols).unwrap();
    let pack_codec = codec(CompressionFormat::PackQuantized).unwrap();
    let read = |g_idx: Option<[i32; 4]>| {
        let mut tensors = ModuleTensors::new();
        tensors.insert("weight_packed".to_owned(), i32_array(vec![2, 1], &words));
        tensors.insert("weight_scale".to_owned(), f32_array(vec![2, 2], &[1.0, 10.0, 100.0, 1000.0]));
        let shape = [2i64, 4].iter().flat_map(|it| it.to_le_bytes()).collect();
        tensors.insert("weight_shape".to_owned(), Array { dtype: DType::I64, shape: vec![2], data: shape });
        if let Some(g_idx) = g_idx {
            tensors.insert("weight_g_idx".to_owned(), i32_array(vec![4], &g_idx));
        }
        pack_codec.decompress(tensors, &scheme).map(|dense| {
            assert!(!dense.contains_key("weight_g_idx"));
            values(&dense["weight"])
        })
    };
    let in_order = [1.0, 2.0, 30.0, 40.0, 500.0, 600.0, 7000.0, -8000.0];
    assert_eq!(read(None).unwrap(), in_order);
    assert_eq!(read(Some([-1, 0, 0, 1])).unwrap(), in_order);
    let reordered = [10.0, 2.0, 30.0, 4.0, 5000.0, 600.0, 7000.0, -800.0];
    assert_eq!(read(Some([1, 0, 1, 0])).unwrap(), reordered);
    let error = read(Some([2, 0, 1, 0])).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Shape { tensor, .. } if tensor == "weight_g_idx"), "{error}");
}

#[test]
fn words_of_the_older_layout_decompress() {
    let scheme: Value = serde_json::json!({"targets": [], "weights": {"num_bits": 3, "strategy": "channel"}});
    let scheme = QuantizationScheme::from_json(&scheme).unwrap();
    let codes: Vec<i8> = (0..64).map(|i| (i % 8) as i8 - 4).collect();
    let per_row = Layout::Legacy.words(32, 3);
    let mut words = vec![0i32; 2 * per_row];
    for (i, code) in codes.iter().enumerate() {
        let (row, col) = (i / 32, i % 32);
        words[row * per_row + col / 10] |= i32::from(code + 4) << (3 * (col % 10));
    }
    let mut tensors = ModuleTensors::new();
    tensors.insert("weight_packed".to_owned(), i32_array(vec![2, per_row], &words));
    tensors.insert("weight_scale".to_owned(), f32_array(vec![2, 1], &[1.0, 2.0]));
    tensors.insert("weight_shape".to_owned(), i32_array(vec![2], &[2, 32]));
    let dense = codec(CompressionFormat::PackQuantized).unwrap().decompress(tensors, &scheme).unwrap();
    let expected: Vec<f32> =
        codes.iter().enumerate().map(|(i, code)| f32::from(*code) * if i < 32 { 1.0 } else { 2.0 }).collect();
    assert_eq!(values(&dense["weight"]), expected);
}

#[test]
fn broken_modules_are_refused_by_kind_and_tensor() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let all = cases(&manifest);
    let case = all.iter().find(|it| it.id == "w4a16_asym.main.bf16").unwrap();
    let good = module(&formats, &case.value["disk"]);
    let broken = |change: &dyn Fn(&mut ModuleTensors)| {
        let mut tensors = good.clone();
        change(&mut tensors);
        case.codec.decompress(tensors, &case.scheme).map(drop).unwrap_err()
    };
    for name in ["weight_packed", "weight_scale", "weight_shape", "weight_zero_point"] {
        let error = broken(&|it| drop(it.shift_remove(name)));
        assert!(matches!(error.kind(), ErrorKind::MissingTensor { tensor } if tensor == name), "{error}");
        let error = broken(&|it| it[name].data.truncate(1));
        assert!(matches!(error.kind(), ErrorKind::Shape { .. }), "{name}: {error}");
        if name != "weight_shape" {
            let error = broken(&|it| it[name].shape.push(3));
            assert!(matches!(error.kind(), ErrorKind::Shape { .. }), "{name}: {error}");
        }
        let error = broken(&|it| it[name].dtype = DType::C64);
        assert!(matches!(error.kind(), ErrorKind::DType { tensor, .. } if tensor == name), "{name}: {error}");
    }
    for dims in [[-1i64, 256], [i64::MAX, i64::MAX], [1 << 40, 256], [32, 0], [0, 0]] {
        let data: Vec<u8> = dims.iter().flat_map(|it| it.to_le_bytes()).collect();
        broken(&|it| it["weight_shape"].data.clone_from(&data));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Compressing what was decompressed, with the same scales, changes nothing. 8-bit integers need f32 weights,
    /// since their products with a 16-bit scale do not fit 16 bits.
    #[test]
    fn codecs_come_back_to_the_same_bytes(
        which in 0..PRESETS.len(),
        rows in 1usize..40,
        blocks in 1usize..3,
        float in prop::sample::select(vec![DType::BF16, DType::F16, DType::F32]),
        seed: u64,
    ) {
        let (name, format) = PRESETS[which];
        let scheme = preset(name, vec![]).unwrap();
        let codec = codec(format).unwrap();
        let float = if matches!(name, "W8A16" | "W8A8") { DType::F32 } else { float };
        let weight = random_weight(float, rows * 128 * blocks, 6, seed);
        let mut tensors = ModuleTensors::new();
        let shape = vec![rows, 128 * blocks];
        tensors.insert("weight".to_owned(), Array { dtype: float, shape, data: weight });
        let packed = codec.compress(tensors, &scheme).unwrap();
        let dense = codec.decompress(packed.clone(), &scheme).unwrap();
        let again = codec.compress(dense, &scheme).unwrap();
        // A signed zero may lose its sign on the way, which integers do not show; floats are compared as values.
        for (name, array) in &packed {
            let found = &again[name];
            prop_assert_eq!((found.dtype, &found.shape), (array.dtype, &array.shape));
            let is_float = matches!(array.dtype, DType::F8E4M3);
            let same = if is_float { values(found) == values(array) } else { without_signed_zeros(format, found) == without_signed_zeros(format, array) };
            prop_assert!(same, "{} {}", codec.name(), name);
        }
    }

    /// Rows decompressed in slabs are the rows decompressed at once.
    #[test]
    fn decompression_does_not_depend_on_slabs(
        which in 0..PRESETS.len(), rows in 1usize..300, slab in 1usize..100, seed: u64,
    ) {
        let (name, format) = PRESETS[which];
        let scheme = preset(name, vec![]).unwrap();
        let codec = codec(format).unwrap();
        let weight = random_weight(DType::F16, rows * 128, 6, seed);
        let mut tensors = ModuleTensors::new();
        tensors.insert("weight".to_owned(), Array { dtype: DType::F16, shape: vec![rows, 128], data: weight });
        let packed = codec.compress(tensors, &scheme).unwrap();
        let specs: Vec<TensorSpec> = packed
            .iter()
            .map(|(name, it)| TensorSpec { name: name.clone(), dtype: it.dtype, shape: it.shape.clone() })
            .collect();
        let decompressor = WeightDecompressor::new(&scheme, format, &specs, [rows, 128]).unwrap();
        let step = slab.div_ceil(decompressor.row_quantum()) * decompressor.row_quantum();
        let codes = packed.get("weight_packed").or(packed.get("weight")).unwrap();
        let mut found = Vec::new();
        let mut out = Vec::new();
        for first in (0..rows).step_by(step) {
            let n = step.min(rows - first);
            let cut = |part, array: &Array| array.data[decompressor.input_range(part, first, n)].to_vec();
            let (codes, scale) = (cut(StoredPart::Codes, codes), cut(StoredPart::Scale, &packed["weight_scale"]));
            let zero_point = packed.get("weight_zero_point").map(|it| cut(StoredPart::ZeroPoint, it));
            let stored = StoredRows {
                codes: &codes,
                scale: &scale,
                zero_point: zero_point.as_deref(),
                global_scale: packed.get("weight_global_scale").map(|it| values(it)[0]),
                g_idx: None,
            };
            decompressor.decompress_rows(first, n, &stored, decompressor.dtype(), &mut out).unwrap();
            found.extend_from_slice(&out);
        }
        let whole = codec.decompress(packed, &scheme).unwrap();
        prop_assert_eq!(found, whole["weight"].data.clone());
    }
}

/// Clears the sign of e2m1 zeros.
fn without_signed_zeros(format: CompressionFormat, array: &Array) -> Vec<u8> {
    let is_nibbles = matches!(format, CompressionFormat::Nvfp4PackQuantized | CompressionFormat::Mxfp4PackQuantized);
    if !is_nibbles || array.dtype != DType::U8 || !(array.shape[1] * 2).is_multiple_of(128) {
        return array.data.clone();
    }
    let clear = |nibble: u8| if nibble == 8 { 0 } else { nibble };
    array.data.iter().map(|byte| clear(byte & 0xf) | clear(byte >> 4) << 4).collect()
}
