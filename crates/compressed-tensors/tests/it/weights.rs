//! The 140 weight cases: scales, codes and fake-quantized values, bit for bit.

use compressed_tensors::{
    args::QuantizationStrategy,
    quantize::{Division, Qparams, ScaleMap, code_bytes, code_values, fake_quantize, quantize},
    scales::{Arithmetic, Code, global_scale},
};

use crate::golden::{Formats, args, assert_same};

#[test]
fn scales_codes_and_fake_quantized_weights_are_the_references() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let cases = manifest["weight_cases"].as_array().unwrap();
    for case in cases {
        let id = case["id"].as_str().unwrap();
        let args = args(&case["scheme"]["weights"]);
        let (x, float, shape) = formats.dense(&case["input"]);
        let arithmetic = Arithmetic::of(&args).unwrap();
        let map = ScaleMap::weight(&args, &shape).unwrap();
        let ranges = map.ranges(&x);
        let global = (args.strategy == QuantizationStrategy::TensorGroup).then(|| {
            let amax = ranges.iter().fold(0.0f32, |amax, (min, max)| amax.max(*max).max(-min));
            global_scale(amax, float)
        });
        if let Some(global) = global {
            assert_same(&[global], &formats.values(&case["qparams"]["global_scale"]), id);
        }
        let qparams = Qparams::from_ranges(&arithmetic, &ranges, float, global).stored_as(float);
        let scale = formats.array(&case["qparams"]["scale"]);
        assert_eq!(map.scale_shape(), scale.shape, "{id}");
        assert_same(&qparams.scales, &crate::golden::values(&scale), id);
        assert_same(qparams.zero_points.as_ref().unwrap(), &formats.values(&case["qparams"]["zero_point"]), id);

        let mut codes = vec![0.0; x.len()];
        quantize(&arithmetic, (&x, float), &map, &qparams, Division::Eager, &mut codes).unwrap();
        let expected = formats.array(&case["q"]);
        let mut bytes = vec![0; expected.data.len()];
        code_bytes(arithmetic.code, &codes, &mut bytes).unwrap();
        if arithmetic.code == Code::E4M3 {
            let mut golden = vec![0.0; x.len()];
            code_values(Code::E4M3, &expected.data, &mut golden).unwrap();
            assert_same(&codes, &golden, id);
        } else {
            assert_eq!(bytes, expected.data, "{id}");
        }
        let mut fake = vec![0.0; x.len()];
        fake_quantize(&arithmetic, (&x, float), &map, &qparams, &mut fake).unwrap();
        assert_same(&fake, &formats.values(&case["fq"]), id);
    }
    assert_eq!(cases.len(), 140);
}

#[test]
fn division_in_f32_gives_the_codes_of_the_gpu_model() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let weights = manifest["weight_cases"].as_array().unwrap();
    let cases = manifest["gpu_model"]["cases"].as_array().unwrap();
    for case in cases {
        let id = case["case"].as_str().unwrap();
        let weight = weights.iter().find(|it| it["id"] == case["case"]).unwrap();
        let args = args(&weight["scheme"]["weights"]);
        let (x, float, shape) = formats.dense(&weight["input"]);
        let arithmetic = Arithmetic::of(&args).unwrap();
        let map = ScaleMap::weight(&args, &shape).unwrap();
        let qparams = Qparams {
            scales: formats.values(&weight["qparams"]["scale"]),
            dtype: float,
            zero_points: Some(formats.values(&weight["qparams"]["zero_point"])),
            global_scale: None,
        };
        let mut codes = [vec![0.0; x.len()], vec![0.0; x.len()]];
        for (division, codes) in [Division::F32, Division::Eager].into_iter().zip(&mut codes) {
            quantize(&arithmetic, (&x, float), &map, &qparams, division, codes).unwrap();
        }
        // Integers are stored without the sign of zero.
        let found: Vec<f32> = match arithmetic.code {
            Code::Int { .. } => codes[0].iter().map(|code| code + 0.0).collect(),
            _ => codes[0].clone(),
        };
        assert_same(&found, &formats.values(&case["q_float32_division"]), id);
        let differing = codes[0].iter().zip(&codes[1]).filter(|(a, b)| a != b).count();
        assert_eq!(Some(differing as u64), case["differs_from_eager"].as_u64(), "{id}");
    }
    assert_eq!(cases.len(), 10);
}
