//! How many golden tensors and properties of the room the tests come to.

use serde_json::Value;

use crate::golden::Formats;

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn is_tensor_group(args: &Value) -> bool {
    args["strategy"] == "tensor_group"
}

/// Scale, zero point, codes, values and disk tensors of one weight.
fn weight(case: &Value) -> usize {
    let args = &case["scheme"]["weights"];
    let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
    let format = text(&case["format"]);
    let is_mx = format.starts_with("mxfp") && text(&args["scale_dtype"]).contains("uint8");
    let is_nvfp4 = format.starts_with("nvfp4");
    let qparams = 2 + usize::from(is_tensor_group(args));
    let disk = match format.as_str() {
        "pack-quantized" => 2 + usize::from(args["symmetric"] == false),
        "nvfp4-pack-quantized" | "mxfp4-pack-quantized" => 1,
        // Values and type.
        _ => 2,
    };
    let has_scale = is_mx || (is_nvfp4 && !args["scale_dtype"].is_null()) || !(format.starts_with("mxfp") || is_nvfp4);
    let dense = match text(&case["decompressed_vs_fq"]).as_str() {
        "different" => 1 + usize::from(format.starts_with("mxfp") || is_nvfp4),
        _ => 0,
    };
    // The last one is the set of tensor names.
    qparams + 2 + disk + usize::from(has_scale) + dense + 1
}

#[test]
fn the_rooms_vectors_are_1871_checks() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let sparse = formats.0.json("sparse_manifest.json");
    let of_kind = |kind: &str| list(&sparse["cases"]).iter().filter(|case| case["kind"] == kind).count();
    let per_field = |cases: &[Value], field: &str| cases.iter().filter(|case| !case[field].is_null()).count();
    let (weights, observers) = (list(&manifest["weight_cases"]), list(&manifest["observer_cases"]));
    let packing = list(&manifest["packing_cases"]).iter().map(|case| match formats.array(&case["q"]).shape[..] {
        [experts, _, _] => experts,
        _ => 1,
    });
    let hadamard = &manifest["hadamard"];
    let (casts, transforms) = (&manifest["casts"], list(&manifest["transform_cases"]));
    // Tensors that a converter makes; those that it copies are not counted.
    let converted = |id: &str| -> usize {
        let is_made = |case: &Value, (name, tensor): (&String, &Value)| match &case["in"][name] {
            Value::Null => true,
            before => formats.array(before) != formats.array(tensor),
        };
        let cases =
            list(&manifest["converter_cases"]).iter().filter(|case| case["id"].as_str().unwrap().starts_with(id));
        cases
            .filter(|case| !case["id"].as_str().unwrap().ends_with(".kv"))
            .map(|case| case["out"].as_object().unwrap().iter().filter(|out| is_made(case, *out)).count())
            .sum()
    };
    // An input transform leaves the bias alone.
    let turns_bias = |case: &&Value| case["scheme"]["apply"][0]["location"] == "weight_output";
    let counts = [
        ("weights, compressor", weights.iter().map(weight).sum(), 1170),
        ("codecs: decompressed", weights.len(), 140),
        ("dynamic: scale, zero point, values", 3 * list(&manifest["dynamic_cases"]).len(), 180),
        ("packing: words, both directions", packing.sum(), 80),
        ("casts: global scales", list(&manifest["global_scale_table"]).len(), 3),
        // One entry says the order, and unpacking e2m1 codes is not counted.
        ("casts: patterns", casts.as_object().unwrap().len() - 2, 10),
        ("transforms: sylvester", list(&hadamard["deterministic"]).len(), 8),
        ("transforms: random", list(&hadamard["random"]).len(), 19),
        ("transforms: draws", hadamard["rng"].as_object().unwrap().len(), 12),
        ("transforms: weights", transforms.len(), 26),
        ("transforms: biases", transforms.iter().filter(turns_bias).count(), 6),
        ("sparse: bitmask, four tensors", 4 * of_kind("sparse-bitmask"), 40),
        ("sparse: 2:4 bitmask, three tensors", 3 * of_kind("sparse-24-bitmask"), 30),
        ("packing: older words, both directions", 2 * of_kind("legacy-pack"), 16),
        ("sparse: marlin, three tensors", 3 * of_kind("marlin-24"), 12),
        ("observers: scale and zero point", 2 * observers.len(), 66),
        ("observers: ranges", per_field(observers, "min"), 27),
        ("observers: global scales", observers.iter().filter(|case| is_tensor_group(&case["args"])).count(), 9),
        ("observers: values", per_field(observers, "fq_of_last_batch"), 6),
        ("converters: awq", converted("awq."), 7),
        ("converters: modelopt", converted("modelopt.nvfp4"), 3),
        ("converters: fp8 blocks", converted("fp8block."), 1),
    ];
    for (what, found, expected) in counts {
        assert_eq!(found, expected, "{what}");
    }
    assert_eq!(counts.iter().map(|it| it.2).sum::<usize>(), 1871);
}
