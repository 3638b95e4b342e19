//! The min-max observers, bit for bit.

use compressed_tensors::{
    ErrorKind,
    minmax::{MinMaxObserver, Running},
    numbers::Float,
    quantize::{ScaleMap, fake_quantize},
    scales::Arithmetic,
};

use crate::golden::{Formats, args, assert_same, values};

#[test]
fn running_ranges_and_their_scales_are_the_references() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let cases = manifest["observer_cases"].as_array().unwrap();
    for case in cases {
        let id = case["id"].as_str().unwrap();
        let args = args(&case["args"]);
        let running = Running::named(case["observer"].as_str().unwrap(), &args).unwrap();
        let batches = case["batches"].as_array().unwrap();
        let (_, float, _) = formats.dense(&batches[0]);
        let mut observer = MinMaxObserver::new(running, float);
        for batch in batches {
            let (x, _, shape) = formats.dense(batch);
            observer.observe(&x, &ScaleMap::calibrated(&args, &shape).unwrap()).unwrap();
        }
        if case.get("min").is_some() {
            let (mins, maxs): (Vec<f32>, Vec<f32>) = observer.ranges().iter().copied().unzip();
            assert_same(&mins, &formats.values(&case["min"]), id);
            assert_same(&maxs, &formats.values(&case["max"]), id);
        }
        let qparams = observer.qparams(&args, None).unwrap().stored_as(float);
        let scale = formats.array(&case["qparams"]["scale"]);
        assert_eq!(observer.scale_shape(), scale.shape, "{id}");
        assert_same(&qparams.scales, &values(&scale), id);
        assert_same(qparams.zero_points.as_ref().unwrap(), &formats.values(&case["qparams"]["zero_point"]), id);
        if let Some(global) = case["qparams"].get("global_scale") {
            assert_same(&[observer.global_scale(&args).unwrap()], &formats.values(global), id);
        }
        if let Some(fake) = case.get("fq_of_last_batch") {
            let (x, _, shape) = formats.dense(batches.last().unwrap());
            let map = ScaleMap::calibrated(&args, &shape).unwrap();
            let mut found = vec![0.0; x.len()];
            fake_quantize(&Arithmetic::of(&args).unwrap(), (&x, float), &map, &qparams, &mut found).unwrap();
            assert_same(&found, &formats.values(fake), id);
        }
    }
    assert_eq!(cases.len(), 33);
}

#[test]
fn an_unknown_observer_and_a_change_of_shape_are_refused() {
    let tensor = args(&serde_json::json!({"num_bits": 8, "strategy": "attn_head"}));
    let error = Running::named("mse", &tensor).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownName { name, .. } if name == "mse"));
    let mut observer = MinMaxObserver::new(Running::All, Float::F32);
    observer.observe(&[0.0; 12], &ScaleMap::calibrated(&tensor, &[1, 3, 2, 2]).unwrap()).unwrap();
    let other = ScaleMap::calibrated(&tensor, &[1, 4, 1, 3]).unwrap();
    assert!(matches!(observer.observe(&[0.0; 12], &other).unwrap_err().kind(), ErrorKind::Shape { .. }));
}
