//! Scales, zero points and rounding by the arithmetic that observers use.

use compressed_tensors::{
    minmax::{MinMaxObserver, Running},
    numbers::{Float, e2m1_to_f32, e4m3_to_f32, f32_to_e2m1, f32_to_e4m3},
    quantize::{Division, Qparams, ScaleMap, fake_quantize, quantize},
    scales::{Arithmetic, Code, global_scale, mx_code},
};
use serde_json::{Value, json};

use super::cases::{Cases, args, assert_same, rounded};

fn scheme(name: &str) -> Value {
    let mx = |bits: i64| json!({"num_bits": bits, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "uint8", "zp_dtype": "uint8"});
    match name {
        "int4_sym" => json!({"num_bits": 4}),
        "int4_asym" => json!({"num_bits": 4, "symmetric": false}),
        "int8_sym" => json!({"num_bits": 8}),
        "int8_asym" => json!({"num_bits": 8, "symmetric": false}),
        "int2_sym" => json!({"num_bits": 2}),
        "int3_asym" => json!({"num_bits": 3, "symmetric": false}),
        "fp8" => json!({"num_bits": 8, "type": "float"}),
        "mxfp4" => mx(4),
        "mxfp8" => mx(8),
        "nvfp4" => json!({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
            "scale_dtype": "float8_e4m3fn", "zp_dtype": "float8_e4m3fn"}),
        other => panic!("unknown scheme {other}"),
    }
}

#[test]
fn scales_and_zero_points_of_ranges_are_the_references() {
    let all = Cases::open();
    let cases = all.of_kind("qparams", "calculate_qparams");
    for case in &cases {
        let arithmetic = Arithmetic::of(&args(&scheme(case.text("scheme")))).unwrap();
        let (mins, maxs) = (case.input("min").0, case.input("max").0);
        let global_scale = case.params()["global_scale"].as_f64().map(|it| it as f32);
        let ranges: Vec<_> = mins.into_iter().zip(maxs).collect();
        let found = Qparams::from_ranges(&arithmetic, &ranges, case.float(), global_scale);
        assert_same(&found.scales, &case.expected("scale"), case.id());
        if arithmetic.symmetric {
            assert!(case.expected("zero_point").iter().all(|it| *it == 0.0));
        }
        assert_same(&found.zero_points.unwrap(), &case.expected("zero_point"), case.id());
    }
    assert_eq!(cases.len(), 30);
}

#[test]
fn global_scales_are_the_references() {
    let all = Cases::open();
    let cases = all.of_kind("qparams", "generate_gparam");
    for case in &cases {
        let amax = match case.text("absmax") {
            "inf" => f32::INFINITY,
            "nan" => f32::NAN,
            number => number.parse::<f64>().unwrap() as f32,
        };
        assert_same(&[global_scale(amax, Float::F32)], &case.expected("global_scale"), case.id());
    }
    assert_eq!(cases.len(), 7);
}

#[test]
fn element_types_and_power_of_two_scales_round_as_the_reference() {
    let all = Cases::open();
    for (kind, round) in [
        ("cast_to_fp4", (|x| e2m1_to_f32(f32_to_e2m1(x))) as fn(f32) -> f32),
        ("cast_to_fp8_e4m3", |x| e4m3_to_f32(f32_to_e4m3(x))),
    ] {
        let cases = all.of_kind("qparams", kind);
        let found: Vec<f32> = cases[0].input("x").0.into_iter().map(round).collect();
        assert_same(&found, &cases[0].expected("y"), kind);
        assert_eq!(cases.len(), 1);
    }
    let cases = all.of_kind("qparams", "mx_scale");
    for case in &cases {
        for (name, code) in [("e8m0_fp4", Code::E2M1), ("e8m0_fp8", Code::E4M3)] {
            let amax = case.input("absmax").0;
            let found: Vec<f32> = amax.iter().map(|it| f32::from(mx_code(*it, case.float(), code))).collect();
            assert_same(&found, &case.expected(name), case.id());
        }
    }
    assert_eq!(cases.len(), 2);
}

#[test]
fn quantized_weights_of_every_layout_are_the_references() {
    let all = Cases::open();
    let cases = all.of_kind("qparams", "fake_quantize");
    for case in &cases {
        let (args, float) = (args(case.params()), case.float());
        let (values, shape) = case.input("W");
        let values = rounded(&values, float);
        let map = ScaleMap::weight(&args, &shape).unwrap();
        let mut observer = MinMaxObserver::new(Running::LastBatch, float);
        observer.observe(&values, &map).unwrap();
        let qparams = observer.qparams(&args, None).unwrap();
        assert_same(&qparams.scales, &case.expected("scale"), case.id());
        assert_same(qparams.zero_points.as_ref().unwrap(), &case.expected("zero_point"), case.id());
        if let Some(global) = case.output("global_scale") {
            assert_same(&[qparams.global_scale.unwrap()], &global, case.id());
        }
        let arithmetic = Arithmetic::of(&args).unwrap();
        let mut found = vec![0.0; values.len()];
        quantize(&arithmetic, (&values, float), &map, &qparams, Division::Eager, &mut found).unwrap();
        assert_same(&found, &case.expected("q"), case.id());
        fake_quantize(&arithmetic, (&values, float), &map, &qparams, &mut found).unwrap();
        assert_same(&found, &case.expected("fake_quant"), case.id());
    }
    assert_eq!(cases.len(), 22);
}
