//! Dynamic activations, bit for bit.

use compressed_tensors::{
    ErrorKind,
    dynamic::{dynamic_qparams, fake_quantize_dynamic},
    numbers::Float,
};

use crate::golden::{Formats, args, assert_same, values};

#[test]
fn scales_and_fake_quantized_activations_are_the_references() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let cases = manifest["dynamic_cases"].as_array().unwrap();
    for case in cases {
        let id = case["id"].as_str().unwrap();
        let args = args(&case["args"]);
        let (x, float, shape) = formats.dense(&case["input"]);
        let global = case.get("input_global_scale").map(|it| formats.values(it)[0]);
        let (map, qparams) = dynamic_qparams(&args, (&x, float), &shape, global).unwrap();
        let scale = formats.array(&case["scale"]);
        assert_eq!(map.scale_shape(), scale.shape, "{id}");
        assert_eq!(qparams.dtype.dtype(), scale.dtype, "{id}");
        assert_same(&qparams.scales, &values(&scale), id);
        assert_same(qparams.zero_points.as_ref().unwrap(), &formats.values(&case["zero_point"]), id);
        let mut found = vec![0.0; x.len()];
        let dtype = fake_quantize_dynamic(&args, (&x, float), &shape, global, &mut found).unwrap();
        let expected = formats.array(&case["fq"]);
        assert_eq!(dtype.dtype(), expected.dtype, "{id}");
        assert_same(&found, &values(&expected), id);
    }
    assert_eq!(cases.len(), 60);
}

#[test]
fn a_missing_global_scale_and_a_wrong_shape_are_refused() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let case = |id: &str| {
        let all = manifest["dynamic_cases"].as_array().unwrap();
        args(&all.iter().find(|it| it["id"].as_str().unwrap().contains(id)).unwrap()["args"])
    };
    let x = [1.0; 48];
    let error = dynamic_qparams(&case("nvfp4"), (&x, Float::F32), &[3, 16], None).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::MissingTensor { tensor } if tensor == "input_global_scale"));
    for shape in [&[3, 15][..], &[usize::MAX, 2], &[48]] {
        let error = dynamic_qparams(&case("mxfp4"), (&x, Float::F32), shape, None).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Shape { tensor, .. } if tensor == "activation"), "{error}");
    }
}
