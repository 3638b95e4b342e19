//! Round to nearest against the plain loops, and against what a written weight is read back as.
#![allow(clippy::unwrap_used, reason = "tests")]

use compressed_tensors::{
    args::QuantizationArgs,
    numbers::Float,
    quantize::{ScaleMap, fake_quantize},
    scales::Arithmetic,
};

use super::algorithm::WeightSpec;
use crate::goldens::cases;

#[test]
fn scales_and_values_are_the_references_in_every_layout_and_type() {
    for case in cases("qparams", "fake_quantize", 22) {
        let mut fields = case.params.clone();
        let fields_map = fields.as_object_mut().unwrap();
        let float = if case.params["dtype"] == "bfloat16" { Float::BF16 } else { Float::F32 };
        fields_map.retain(|key, _| !matches!(key.as_str(), "dtype" | "flattened_shape"));
        let args = QuantizationArgs::from_json(&fields).unwrap();
        let shape = case.shape("W");
        let weight: Vec<f32> = case.input("W").iter().map(|it| float.round(*it)).collect();
        let spec = WeightSpec { args: &args, float, rows: shape[0], cols: shape[1] };
        let qparams = spec.minmax(&weight, None).unwrap();
        assert_eq!(qparams.scales, case.output("scale"), "{}", case.id);
        assert_eq!(qparams.zero_points.as_ref().unwrap(), &case.output("zero_point"), "{}", case.id);
        if case.has_output("global_scale") {
            assert_eq!(qparams.global_scale, Some(case.output("global_scale")[0]), "{}", case.id);
        }
        let mut rounded = weight.clone();
        spec.round_to_nearest(&qparams, &mut rounded).unwrap();
        assert_eq!(rounded, case.output("fake_quant"), "{}", case.id);

        let map = ScaleMap::weight(&args, &shape).unwrap();
        let mut plain = vec![0.0; weight.len()];
        fake_quantize(&Arithmetic::of(&args).unwrap(), (&weight, float), &map, &qparams, &mut plain).unwrap();
        assert_eq!(rounded, plain, "{}", case.id);
    }
}
