//! Transform matrices, random draws and their application against the goldens.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use compressed_tensors::{
    Array, DType, ErrorKind, ModuleTensors,
    transforms::{
        DEFAULT_SEED, KnownHadamard, MersenneTwister, Precision, TransformArgs, TransformFactory, TransformLocation,
        TransformMatrix, TransformScheme, WeightKind, apply_to_activation, apply_to_weight, known_sizes, saved_tensors,
    },
};
use serde_json::Value;
use testkit::{GoldenTensor, Goldens};

fn array(golden: GoldenTensor) -> Array {
    let dtype = DType::from_safetensors_name(&golden.dtype).unwrap();
    Array { dtype, shape: golden.shape, data: golden.data }
}

fn signs(golden: &GoldenTensor) -> Vec<f64> {
    golden.data.iter().map(|it| f64::from(*it as i8)).collect()
}

fn floats(array: &Array) -> Vec<f64> {
    match array.dtype {
        DType::F64 => array.data.as_chunks().0.iter().map(|it| f64::from_le_bytes(*it)).collect(),
        DType::F32 => array.data.as_chunks().0.iter().map(|it| f64::from(f32::from_le_bytes(*it))).collect(),
        DType::BF16 => array.data.as_chunks().0.iter().map(|it| half::bf16::from_le_bytes(*it).to_f64()).collect(),
        other => panic!("{other}"),
    }
}

#[test]
fn sylvester_matrices_are_the_references() {
    let goldens = Goldens::open("formats");
    let manifest = goldens.json("manifest.json");
    let cases = manifest["hadamard"]["deterministic"].as_array().unwrap();
    assert_eq!(cases.len(), 8);
    for case in cases {
        let size = case["size"].as_u64().unwrap() as usize;
        let matrix = TransformMatrix::hadamard(size, Precision::F32).unwrap();
        assert_eq!(matrix.entries(), signs(&goldens.tensor(&case["matrix"])), "size {size}");
    }
}

#[test]
fn random_hadamard_matrices_are_the_references() {
    let goldens = Goldens::open("formats");
    let manifest = goldens.json("manifest.json");
    let cases = manifest["hadamard"]["random"].as_array().unwrap();
    assert_eq!(cases.len(), 19);
    for case in cases {
        let size = case["size"].as_u64().unwrap() as usize;
        let seed = case["seed"].as_u64().unwrap();
        assert_eq!(seed, DEFAULT_SEED);
        let mut rng = MersenneTwister::new(seed);
        let matrix = TransformMatrix::random_hadamard(size, Precision::F32, &mut rng).unwrap();
        assert_eq!(matrix.entries(), signs(&goldens.tensor(&case["matrix"])), "size {size}");
    }
}

#[test]
fn exactly_the_sizes_that_fail_in_the_reference_are_refused() {
    let manifest = Goldens::open("formats").json("manifest.json");
    let expected: Vec<u64> = serde_json::from_value(manifest["hadamard"]["unsupported_random_sizes"].clone()).unwrap();
    assert_eq!(expected.len(), 28);
    let refused: Vec<u64> = (1..=40)
        .filter(|n| {
            TransformMatrix::random_hadamard(*n as usize, Precision::F32, &mut MersenneTwister::new(0)).is_err()
        })
        .collect();
    assert_eq!(refused, expected);
    for size in [0, 3, 12] {
        let error = TransformMatrix::hadamard(size, Precision::F32).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidField { field, .. } if field == "size"));
    }
}

#[test]
fn the_committed_table_is_the_references_known_matrices() {
    let goldens = Goldens::open("formats");
    let manifest = goldens.json("manifest.json");
    let cases = manifest["hadamard"]["known"].as_array().unwrap();
    assert_eq!(cases.len(), 66);
    assert_eq!(known_sizes().count(), 66);
    for case in cases {
        let size = case["size"].as_u64().unwrap() as usize;
        let known = KnownHadamard::of_size(size).unwrap();
        let bits = goldens.tensor(&case["bits"]).data;
        for at in 0..size * size {
            assert_eq!(known.is_positive(at / size, at % size), bits[at / 8] >> (at % 8) & 1 == 1, "size {size}");
        }
    }
}

#[test]
fn random_draws_are_torchs() {
    let goldens = Goldens::open("formats");
    let manifest = goldens.json("manifest.json");
    let cases = manifest["hadamard"]["rng"].as_object().unwrap();
    assert_eq!(cases.len(), 12);
    for (name, reference) in cases {
        let (draw, seed) = name.split_once(".seed").unwrap();
        let mut rng = MersenneTwister::new(if seed == "default" { DEFAULT_SEED } else { seed.parse().unwrap() });
        let golden = goldens.tensor(reference);
        let n = golden.shape[0];
        let got: Vec<u8> = match draw {
            "randint2" => (0..n).flat_map(|_| f64::from(rng.bit()).to_le_bytes()).collect(),
            "randperm32" => rng.permutation(n).unwrap().iter().flat_map(|it| (*it as i64).to_le_bytes()).collect(),
            "rand_f32" => (0..n).flat_map(|_| rng.uniform_f32().to_le_bytes()).collect(),
            "rand_f64" => (0..n).flat_map(|_| rng.uniform_f64().to_le_bytes()).collect(),
            other => panic!("{other}"),
        };
        assert_eq!(got, golden.data, "{name}");
    }
}

fn linear(goldens: &Goldens, case: &Value) -> ModuleTensors {
    ["weight", "bias"].map(|name| (name.to_owned(), array(goldens.tensor(&case[name])))).into_iter().collect()
}

/// Largest distance, as a part of the largest value.
fn distance(a: &Array, b: &Array) -> f64 {
    assert_eq!((a.dtype, &a.shape), (b.dtype, &b.shape));
    let (a, b) = (floats(a), floats(b));
    let largest = b.iter().fold(0.0, |m: f64, it| m.max(it.abs()));
    a.iter().zip(&b).fold(0.0, |m: f64, (x, y)| m.max((x - y).abs())) / largest
}

#[test]
fn every_transform_case_is_reproduced() {
    let goldens = Goldens::open("formats");
    let manifest = goldens.json("manifest.json");
    let cases = manifest["transform_cases"].as_array().unwrap();
    assert_eq!(cases.len(), 26);
    let mut n_exact = 0;
    for case in cases {
        let id = case["id"].as_str().unwrap();
        let scheme = TransformScheme::from_json(&case["scheme"]).unwrap();
        assert_eq!(scheme.to_json(), case["scheme"], "{id}");
        let args = &scheme.apply[0];
        let mut module = linear(&goldens, case);
        let width = WeightKind::Linear.transformed_size(args.location, &module["weight"].shape).unwrap();
        let mut factory = TransformFactory::new(&scheme).unwrap();
        let matrix = factory.matrix(args, width).unwrap();

        // Of the random matrix under `inverse` the golden keeps what was drawn, not the inverse.
        let forward = factory.matrix(&TransformArgs { inverse: false, ..args.clone() }, width).unwrap();
        let golden = array(goldens.tensor(&case["matrix"]));
        assert_eq!(forward.stored().entries(), floats(&golden), "{id}");
        assert_eq!(forward.precision().dtype(), golden.dtype, "{id}");

        let exact = case["exact"].as_bool().unwrap();
        n_exact += usize::from(exact);
        let check = |got: &Array, name: &str| {
            let expected = array(goldens.tensor(&case[name]));
            if exact {
                assert_eq!(got, &expected, "{id} {name}");
            } else {
                // Sums in another order: a part in 10^6 in f32, one step of bf16.
                let tolerance = if got.dtype == DType::BF16 { 1.0 / 256.0 } else { 1e-6 };
                let distance = distance(got, &expected);
                assert!(distance <= tolerance, "{id} {name}: {distance}");
            }
        };
        if args.location.is_online() {
            let mut x = array(goldens.tensor(&case["x"]));
            apply_to_activation(&matrix, &mut x).unwrap();
            check(&x, "y");
            let saved = saved_tensors("R", args.location, &matrix);
            let expected = case["saved_params"].as_object().unwrap();
            assert_eq!(saved.len(), expected.len(), "{id}");
            for (name, tensor) in &saved {
                let torch_name = format!("torch.{}", tensor.dtype.torch_name().unwrap());
                assert_eq!(expected[name], serde_json::json!([torch_name, tensor.shape]), "{id} {name}");
            }
            assert_eq!(saved[&format!("R_{}.weight", args.location.as_str())], golden, "{id}");
            if case.get("perm").is_some() {
                let name = format!("R_{}.perm", args.location.as_str());
                assert_eq!(saved[&name], array(goldens.tensor(&case["perm"])), "{id}");
            }
        } else {
            apply_to_weight(WeightKind::Linear, args.location, &matrix, &mut module).unwrap();
            check(&module["weight"], "new_weight");
            check(&module["bias"], "new_bias");
        }
    }
    assert_eq!(n_exact, 14);
}

fn f32_array(shape: &[usize], values: impl IntoIterator<Item = f32>) -> Array {
    let data = values.into_iter().flat_map(f32::to_le_bytes).collect();
    Array { dtype: DType::F32, shape: shape.to_vec(), data }
}

fn product(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let (rows, cols) = (a.len() / n, b.len() / n);
    (0..rows * cols).map(|at| (0..n).map(|k| a[at / cols * n + k] * b[k * cols + at % cols]).sum()).collect()
}

#[test]
fn embeddings_take_up_a_transform_on_either_side() {
    let (rows, cols) = (70, 130);
    let weight = f32_array(&[rows, cols], (0..rows * cols).map(|i| (i * 37 % 101) as f32 - 50.0));
    let dense = floats(&weight);
    for (location, n) in [(TransformLocation::WeightInput, rows), (TransformLocation::WeightOutput, cols)] {
        let matrix = TransformMatrix::random(n, Precision::F64, &mut MersenneTwister::new(1)).unwrap();
        let mut module = ModuleTensors::from_iter([("weight".to_owned(), weight.clone())]);
        assert_eq!(WeightKind::Embedding.transformed_size(location, &weight.shape).unwrap(), n);
        apply_to_weight(WeightKind::Embedding, location, &matrix, &mut module).unwrap();
        let m = matrix.entries();
        let expected = if location == TransformLocation::WeightInput {
            product(&m, &dense, rows)
        } else {
            product(&dense, &m, cols)
        };
        for (got, expected) in floats(&module["weight"]).iter().zip(expected) {
            assert!((got - expected).abs() < 1e-3, "{got} {expected}");
        }
    }
}

#[test]
fn an_input_transform_and_its_inverse_in_the_weight_cancel() {
    let scheme = serde_json::json!({"type": "random-hadamard", "randomize": true, "precision": "torch.float64", "apply": [
        {"targets": "Linear", "location": "input"}, {"targets": "Linear", "location": "weight_input", "inverse": true}]});
    let scheme = TransformScheme::from_json(&scheme).unwrap();
    let mut factory = TransformFactory::new(&scheme).unwrap();
    let matrices = [0, 1].map(|i| factory.matrix(&scheme.apply[i], 24).unwrap());
    let mut x = f32_array(&[2, 24], (0..48).map(|i| (i % 7) as f32 - 3.0));
    let mut module =
        ModuleTensors::from_iter([("weight".to_owned(), f32_array(&[3, 24], (0..72).map(|i| (i % 5) as f32)))]);
    let y = |x: &Array, w: &Array| {
        let (x, w) = (floats(x), floats(w));
        (0..6).map(|at| (0..24).map(|k| x[at / 3 * 24 + k] * w[at % 3 * 24 + k]).sum()).collect::<Vec<f64>>()
    };
    let before = y(&x, &module["weight"]);
    apply_to_activation(&matrices[0], &mut x).unwrap();
    apply_to_weight(WeightKind::Linear, TransformLocation::WeightInput, &matrices[1], &mut module).unwrap();
    for (a, b) in before.iter().zip(y(&x, &module["weight"])) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn modules_that_a_matrix_does_not_fit_are_refused_and_unchanged() {
    let matrix = TransformMatrix::hadamard(16, Precision::F64).unwrap();
    let good = f32_array(&[16, 16], (0..256).map(|i| i as f32));
    let module = |weight: Array| ModuleTensors::from_iter([("weight".to_owned(), weight)]);
    let refuse = |mut it: ModuleTensors, location| {
        let before = it.clone();
        let error = apply_to_weight(WeightKind::Linear, location, &matrix, &mut it).unwrap_err();
        assert_eq!(it, before);
        error
    };
    let at = TransformLocation::WeightOutput;
    let shape = refuse(module(f32_array(&[8, 16], vec![0.0; 128])), at);
    assert!(matches!(shape.kind(), ErrorKind::Shape { tensor, found, .. } if tensor == "weight" && found == &[8, 16]));
    let flat = refuse(module(f32_array(&[256], vec![0.0; 256])), at);
    assert!(matches!(flat.kind(), ErrorKind::Shape { .. }));
    let codes = refuse(module(Array { dtype: DType::I8, shape: vec![16, 16], data: vec![0; 256] }), at);
    assert!(matches!(codes.kind(), ErrorKind::DType { found: DType::I8, .. }));
    let cut = refuse(module(Array { data: vec![0; 9], ..good.clone() }), at);
    assert!(matches!(cut.kind(), ErrorKind::Shape { .. }));
    assert!(matches!(refuse(ModuleTensors::new(), at).kind(), ErrorKind::MissingTensor { .. }));
    let location = refuse(module(good.clone()), TransformLocation::Input);
    assert!(matches!(location.kind(), ErrorKind::InvalidField { field, .. } if field == "location"));
    let mut with_bias = module(good);
    with_bias.insert("bias".to_owned(), f32_array(&[15], vec![0.0; 15]));
    assert!(matches!(refuse(with_bias, at).kind(), ErrorKind::Shape { tensor, .. } if tensor == "bias"));
}
