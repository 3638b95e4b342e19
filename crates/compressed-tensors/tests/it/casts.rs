//! Every 16-bit pattern through the casts, and the global scale table.

use compressed_tensors::{
    numbers::{Float, e2m1_to_f32, e4m3_to_f32, f32_to_e2m1, f32_to_e4m3},
    scales::{Code, clamp, global_scale, mx_code},
};

use crate::golden::{Formats, assert_same, values};

#[test]
fn every_16_bit_pattern_casts_as_in_the_reference() {
    let formats = Formats::open();
    let casts = &formats.manifest()["casts"];
    for float in [Float::BF16, Float::F16] {
        let name = float.dtype().to_string().to_lowercase();
        let e4m3 = formats.array(&casts[format!("e4m3_clamped.{name}")]).data;
        let e2m1 = formats.array(&casts[format!("fp4_code.{name}")]).data;
        let mut compared = 0;
        for (i, (&e4m3, &e2m1)) in e4m3.iter().zip(&e2m1).enumerate() {
            let pattern = (i + 32768) as u16;
            let value = match float {
                Float::BF16 => half::bf16::from_bits(pattern).to_f32(),
                _ => half::f16::from_bits(pattern).to_f32(),
            };
            if value.is_nan() {
                continue;
            }
            compared += 1;
            assert_eq!(f32_to_e4m3(clamp(value, -448.0, 448.0)), e4m3, "{value:e}");
            assert_eq!(f32_to_e2m1(clamp(value, -6.0, 6.0)), e2m1, "{value:e}");
        }
        assert_eq!(compared, if float == Float::BF16 { 65536 - 254 } else { 65536 - 2046 });
        for (bits, code) in [(4, Code::E2M1), (8, Code::E4M3)] {
            let case = &casts[format!("mx_code{bits}.{name}")];
            let expected = formats.array(&case["code"]).data;
            let amax = formats.values(&case["amax"]);
            assert!(amax.len() > 30000, "{}", amax.len());
            for (amax, expected) in amax.iter().zip(expected) {
                assert_eq!(mx_code(*amax, float, code), expected, "{name} {bits} {amax:e}");
            }
        }
    }
}

#[test]
fn f32_values_cast_to_e4m3_as_in_the_reference() {
    let formats = Formats::open();
    let casts = &formats.manifest()["casts"];
    let expected = formats.array(&casts["e4m3_clamped.f32"]["code"]).data;
    let found: Vec<u8> = formats
        .values(&casts["e4m3_clamped.f32"]["x"])
        .iter()
        .map(|value| f32_to_e4m3(clamp(*value, -448.0, 448.0)))
        .collect();
    assert_eq!(found, expected);
}

#[test]
fn codes_decode_as_in_the_reference() {
    let formats = Formats::open();
    let casts = &formats.manifest()["casts"];
    let decoded: Vec<f32> = (0..=255).map(e4m3_to_f32).collect();
    assert_same(&decoded, &formats.values(&casts["e4m3_decode"]), "e4m3");
    let unpacked = formats.array(&casts["fp4_unpack"]);
    let expected = values(&unpacked);
    assert_eq!(expected.len(), 512);
    for (i, pair) in expected.chunks_exact(2).enumerate() {
        assert_same(&[e2m1_to_f32(i as u8), e2m1_to_f32(i as u8 >> 4)], pair, "e2m1");
    }
}

#[test]
fn global_scales_are_the_references() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let table = manifest["global_scale_table"].as_array().unwrap();
    for row in table {
        let (amax, float, _) = formats.dense(&row["amax"]);
        let found: Vec<f32> = amax.iter().map(|amax| global_scale(*amax, float)).collect();
        assert_same(&found, &formats.values(&row["global_scale"]), float.dtype().torch_name().unwrap());
    }
    assert_eq!(table.len(), 3);
}
