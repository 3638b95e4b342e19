//! The retired sparse formats against `formats/sparse_manifest.json`, which an older release wrote.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use compressed_tensors::{
    Array, DType, ErrorKind, ModuleTensors,
    args::QuantizationArgs,
    retired::{
        compress_marlin_24, compress_sparse_24_bitmask, compress_sparse_bitmask, decompress_marlin_24,
        decompress_sparse_24_bitmask, decompress_sparse_bitmask, follows_mask_structure, top_two_of_four,
    },
};
use proptest::prelude::*;
use serde_json::Value;

use crate::golden::{Formats, values};

fn cases(kind: &str) -> (Formats, Vec<Value>) {
    let formats = Formats::open();
    let manifest = formats.0.json("sparse_manifest.json");
    let all = manifest["cases"].as_array().unwrap();
    assert_eq!(all.len(), 33);
    let cases = all.iter().filter(|it| it["kind"] == kind).cloned().collect();
    (formats, cases)
}

fn disk(formats: &Formats, case: &Value) -> ModuleTensors {
    case["disk"].as_object().unwrap().iter().map(|(name, it)| (name.clone(), formats.array(it))).collect()
}

fn assert_same_tensors(got: &ModuleTensors, expected: &ModuleTensors, id: &Value) {
    assert_eq!(got.len(), expected.len(), "{id}");
    for (name, tensor) in expected {
        assert_eq!(&got[name], tensor, "{id} {name}");
    }
}

/// Zeros of either sign made positive.
fn without_negative_zero(mut array: Array) -> Array {
    let width = array.dtype.bits() / 8;
    if array.dtype != DType::I8 {
        for element in array.data.chunks_mut(width) {
            if element[..width - 1].iter().all(|it| *it == 0) && element[width - 1] == 0x80 {
                element[width - 1] = 0;
            }
        }
    }
    array
}

#[test]
fn sparse_bitmask_is_written_and_read_as_in_the_reference() {
    let (formats, cases) = cases("sparse-bitmask");
    assert_eq!(cases.len(), 10);
    for case in &cases {
        let dense = formats.array(&case["input"]);
        let expected = disk(&formats, case);
        assert_same_tensors(&compress_sparse_bitmask(&dense).unwrap(), &expected, &case["id"]);
        assert_eq!(decompress_sparse_bitmask(&expected).unwrap(), without_negative_zero(dense), "{}", case["id"]);
    }
}

#[test]
fn sparse_24_bitmask_is_written_and_read_as_in_the_reference() {
    let (formats, cases) = cases("sparse-24-bitmask");
    assert_eq!(cases.len(), 10);
    for case in &cases {
        let dense = formats.array(&case["input"]);
        assert!(follows_mask_structure(&dense, "2:4").unwrap());
        let expected = disk(&formats, case);
        assert_same_tensors(&compress_sparse_24_bitmask(&dense).unwrap(), &expected, &case["id"]);
        assert_eq!(decompress_sparse_24_bitmask(&expected).unwrap(), dense, "{}", case["id"]);
    }
}

#[test]
fn ties_are_resolved_as_by_the_references_library() {
    let (formats, cases) = cases("tie-table");
    assert_eq!(cases.len(), 1);
    let table = formats.array(&cases[0]["tensor"]).data;
    assert_eq!(table.len(), 256);
    for (idx, expected) in table.iter().enumerate() {
        let magnitudes = [idx / 64, idx / 16 % 4, idx / 4 % 4, idx % 4].map(|it| it as f32);
        let kept = top_two_of_four(magnitudes);
        let bits = kept.iter().enumerate().fold(0, |bits, (i, it)| bits | u8::from(*it) << i);
        assert_eq!(bits, *expected, "{magnitudes:?}");
    }
    assert_eq!(top_two_of_four([f32::NAN, 9.0, 1.0, f32::NAN]), [true, false, false, true]);
}

#[test]
fn marlin_24_is_written_as_in_the_reference_and_comes_back() {
    let (formats, cases) = cases("marlin-24");
    assert_eq!(cases.len(), 4);
    for case in &cases {
        let args = QuantizationArgs::from_checkpoint_json(&case["weights"]).unwrap();
        let (weight, scale) = (formats.array(&case["input"]), formats.array(&case["scale"]));
        let expected = disk(&formats, case);
        assert_same_tensors(&compress_marlin_24(&weight, &scale, &args).unwrap(), &expected, &case["id"]);

        // Compressing what was read gives the same codes, so nothing is lost on the way back.
        let read = decompress_marlin_24(&expected, &args).unwrap();
        assert_same_tensors(&compress_marlin_24(&read, &scale, &args).unwrap(), &expected, &case["id"]);
        let step = values(&scale).into_iter().fold(0.0, f32::max);
        for (a, b) in values(&read).iter().zip(values(&weight)) {
            // Half a step, and the roundings of quotient and product to f16.
            assert!((a - b).abs() <= step * 0.6, "{}: {a} {b}", case["id"]);
        }
    }
}

#[test]
fn grouped_marlin_scales_are_permuted_where_groups_are_shorter_than_the_kept_columns() {
    let args = QuantizationArgs::from_json(&serde_json::json!({"num_bits": 4, "group_size": 128})).unwrap();
    let f16 = |shape: [usize; 2], value: &dyn Fn(usize) -> f32| Array {
        dtype: DType::F16,
        shape: shape.to_vec(),
        data: (0..shape[0] * shape[1]).flat_map(|i| half::f16::from_f32(value(i)).to_le_bytes()).collect(),
    };
    let scale = f16([64, 4], &|i| 0.5 + i as f32 / 64.0);
    let weight = f16([64, 512], &|i| if i % 4 < 2 { (i % 11) as f32 - 5.0 } else { 0.0 });
    let compressed = compress_marlin_24(&weight, &scale, &args).unwrap();
    let row: Vec<f32> = values(&compressed["scale_packed"])[..8].to_vec();
    assert_eq!(row, [0, 4, 1, 5, 2, 6, 3, 7].map(|r| 0.5 + (r * 4) as f32 / 64.0));
    let read = decompress_marlin_24(&compressed, &args).unwrap();
    assert_same_tensors(&compress_marlin_24(&read, &scale, &args).unwrap(), &compressed, &Value::Null);
}

#[test]
fn marlin_24_refuses_what_its_kernel_cannot_run() {
    let args = |value: Value| QuantizationArgs::from_json(&value).unwrap();
    let int4 = args(serde_json::json!({"num_bits": 4, "strategy": "channel"}));
    let zeros = |dtype: DType, shape: [usize; 2]| Array {
        dtype,
        shape: shape.to_vec(),
        data: vec![0; shape[0] * shape[1] * dtype.bits() / 8],
    };
    let f16 = DType::F16;
    let refuse = |weight: Array, scale: Array, args: &QuantizationArgs| {
        compress_marlin_24(&weight, &scale, args).unwrap_err().kind().clone()
    };
    let dense =
        Array { data: [0x3c00_u16; 64 * 32].iter().flat_map(|it| it.to_le_bytes()).collect(), ..zeros(f16, [64, 32]) };
    let ones = Array { data: [0x3c00_u16; 64].iter().flat_map(|it| it.to_le_bytes()).collect(), ..zeros(f16, [64, 1]) };
    let quad = refuse(dense, ones.clone(), &int4);
    assert!(matches!(quad, ErrorKind::Unsupported { what } if what.contains("row 0, column 0")));
    for shape in [[32, 32], [64, 16], [0, 32]] {
        let kind = refuse(zeros(f16, shape), zeros(f16, [shape[0], 1]), &int4);
        assert!(matches!(kind, ErrorKind::Shape { tensor, .. } if tensor == "weight"), "{shape:?}");
    }
    let scale = refuse(zeros(f16, [64, 32]), zeros(f16, [64, 2]), &int4);
    assert!(matches!(scale, ErrorKind::Shape { tensor, .. } if tensor == "weight_scale"));
    let codes = refuse(zeros(DType::I8, [64, 32]), ones.clone(), &int4);
    assert!(matches!(codes, ErrorKind::DType { found: DType::I8, .. }));
    for other in [
        serde_json::json!({"num_bits": 3, "strategy": "channel"}),
        serde_json::json!({"num_bits": 4, "group_size": 32}),
        serde_json::json!({"num_bits": 4, "strategy": "channel", "symmetric": false}),
        serde_json::json!({"num_bits": 8, "type": "float", "strategy": "channel"}),
    ] {
        let kind = refuse(zeros(f16, [64, 32]), ones.clone(), &args(other));
        assert!(matches!(kind, ErrorKind::Unsupported { .. }));
    }

    let good = compress_marlin_24(&zeros(f16, [64, 32]), &ones, &int4).unwrap();
    for (name, change) in [("meta", 0u8), ("scale_packed", 1), ("weight_packed", 2)] {
        let mut module = good.clone();
        match change {
            0 => module[name].data.fill(0),
            1 => module[name].shape = vec![64, 1],
            _ => module[name].data.truncate(8),
        }
        let kind = decompress_marlin_24(&module, &int4).unwrap_err().kind().clone();
        match kind {
            ErrorKind::InvalidField { field: it, .. } | ErrorKind::Shape { tensor: it, .. } => assert_eq!(it, name),
            other => panic!("{other}"),
        }
        module.shift_remove(name);
        let kind = decompress_marlin_24(&module, &int4).unwrap_err().kind().clone();
        assert!(matches!(kind, ErrorKind::MissingTensor { tensor } if tensor == name));
    }
}

fn matrix(shape: [usize; 2], values: &[f32]) -> Array {
    Array { dtype: DType::F32, shape: shape.to_vec(), data: values.iter().flat_map(|it| it.to_le_bytes()).collect() }
}

#[test]
fn sparse_tensors_that_do_not_agree_are_refused() {
    let good = compress_sparse_bitmask(&matrix([2, 3], &[0.0, 1.0, 2.0, 0.0, 0.0, 3.0])).unwrap();
    let refused = |name: &str, change: &dyn Fn(&mut Array)| {
        let mut module = good.clone();
        change(&mut module[name]);
        decompress_sparse_bitmask(&module).unwrap_err().kind().clone()
    };
    let offsets = refused("row_offsets", &|it| it.data[8] = 9);
    assert!(
        matches!(offsets, ErrorKind::InvalidField { field, found, .. } if field == "row_offsets" && found == "9 at row 1")
    );
    let bits = refused("bitmask", &|it| it.data[0] = 0b111);
    assert!(matches!(bits, ErrorKind::InvalidField { field, .. } if field == "row_offsets"));
    let last = refused("bitmask", &|it| it.data[1] = 0);
    assert!(matches!(last, ErrorKind::Shape { tensor, .. } if tensor == "compressed"));
    let negative = refused("shape", &|it| it.data[7] = 0xff);
    assert!(matches!(negative, ErrorKind::InvalidField { field, .. } if field == "shape"));
    let huge = refused("shape", &|it| it.data[6] = 0x7f);
    assert!(matches!(huge, ErrorKind::InvalidField { .. } | ErrorKind::Shape { .. }));
    let dtype = refused("bitmask", &|it| it.dtype = DType::I8);
    assert!(matches!(dtype, ErrorKind::DType { tensor, .. } if tensor == "bitmask"));
    for name in ["shape", "compressed", "bitmask", "row_offsets"] {
        let mut module = good.clone();
        module.shift_remove(name);
        let kind = decompress_sparse_bitmask(&module).unwrap_err().kind().clone();
        assert!(matches!(kind, ErrorKind::MissingTensor { tensor } if tensor == name));
    }
    for shape in [[1, 3], [3, 2], [2, 5]] {
        let odd = matrix(shape, &vec![1.0; shape[0] * shape[1]]);
        assert!(matches!(compress_sparse_24_bitmask(&odd).unwrap_err().kind(), ErrorKind::Shape { .. }));
    }
    let flat = Array { shape: vec![6], ..matrix([2, 3], &[1.0; 6]) };
    assert!(matches!(compress_sparse_bitmask(&flat).unwrap_err().kind(), ErrorKind::Shape { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_matrix_survives_sparse_bitmask(rows in 0_usize..5, cols in 0_usize..20, seed in any::<u64>()) {
        let value = |i: usize| {
            let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(i as u32 % 64) >> 7 & 3;
            mixed as f32 * 1.5
        };
        let dense = matrix([rows, cols], &(0..rows * cols).map(value).collect::<Vec<_>>());
        let module = compress_sparse_bitmask(&dense).unwrap();
        prop_assert_eq!(decompress_sparse_bitmask(&module).unwrap(), dense);
    }
}
