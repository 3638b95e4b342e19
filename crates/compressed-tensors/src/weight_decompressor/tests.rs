//! Vector rows are the plain rows, bit for bit.
#![allow(clippy::unwrap_used, reason = "tests may stop")]

use serde_json::{Value, json};

use super::*;
use crate::weight_compressor::WeightCompressor;

fn random(n: usize, state: &mut u64) -> Vec<u8> {
    let next = |_| {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*state >> 56) as u8
    };
    (0..n).map(next).collect()
}

/// Schemes of every format, with runs of odd, short and long lengths.
fn schemes() -> Vec<(CompressionFormat, Value, usize)> {
    use CompressionFormat as F;
    let group =
        |bits: u32, size: usize, symmetric: bool| json!({"num_bits": bits, "group_size": size, "symmetric": symmetric});
    let mut all = Vec::new();
    for bits in 1..=8 {
        for symmetric in [true, false] {
            all.push((F::PackQuantized, group(bits, 32, symmetric), 96));
            all.push((
                F::PackQuantized,
                json!({"num_bits": bits, "strategy": "channel", "symmetric": symmetric}),
                2571,
            ));
        }
    }
    for symmetric in [true, false] {
        all.push((F::PackQuantized, group(4, 3, symmetric), 2049));
        all.push((F::PackQuantized, group(4, 128, symmetric), 1280));
        all.push((F::PackQuantized, group(3, 1500, symmetric), 3000));
        all.push((F::IntQuantized, json!({"num_bits": 8, "strategy": "channel", "symmetric": symmetric}), 1031));
        all.push((F::IntQuantized, json!({"num_bits": 8, "strategy": "tensor", "symmetric": symmetric}), 40));
    }
    let float = |fields: Value| {
        let mut fields = fields;
        fields["type"] = json!("float");
        fields
    };
    all.push((F::FloatQuantized, float(json!({"num_bits": 8, "strategy": "tensor"})), 1025));
    all.push((F::FloatQuantized, float(json!({"num_bits": 8, "strategy": "channel"})), 2100));
    all.push((F::FloatQuantized, float(json!({"num_bits": 8, "strategy": "block", "block_structure": [2, 24]})), 100));
    all.push((
        F::Nvfp4PackQuantized,
        float(
            json!({"num_bits": 4, "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"}),
        ),
        1040,
    ));
    for (bits, format) in [(4, F::Mxfp4PackQuantized), (8, F::Mxfp8Quantized)] {
        all.push((
            format,
            float(json!({"num_bits": bits, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"})),
            1088,
        ));
    }
    all
}

#[test]
fn rows_of_every_format_are_the_plain_rows_on_every_instruction_set() {
    let (rows, mut state, mut compared) = (3, 1, 0);
    for (format, weights, cols) in schemes() {
        for float in [DType::BF16, DType::F16, DType::F32] {
            let scheme = QuantizationScheme::from_json(&json!({"targets": [], "weights": &weights})).unwrap();
            let specs = WeightCompressor::new(&scheme, format, float, rows, cols).unwrap();
            let back = WeightDecompressor::new(&scheme, format, specs.outputs(), [rows, cols]).unwrap();
            let bytes = |part, state: &mut u64| random(back.input_range(part, 0, rows).len(), state);
            let codes = bytes(StoredPart::Codes, &mut state);
            let mut scale = bytes(StoredPart::Scale, &mut state);
            // The bits of a NaN scale are free, so its exponent is kept from the largest.
            match back.scale {
                Scale::Dense(Float::BF16) => scale.as_chunks_mut::<2>().0.iter_mut().for_each(|it| it[0] &= 0x7f),
                Scale::Dense(Float::F16) => scale.as_chunks_mut::<2>().0.iter_mut().for_each(|it| it[1] &= 0xbf),
                Scale::Dense(Float::F32) => scale.as_chunks_mut::<4>().0.iter_mut().for_each(|it| it[2] &= 0x7f),
                Scale::E4M3 | Scale::Exponent => {}
            }
            let zero_point = (!back.symmetric).then(|| bytes(StoredPart::ZeroPoint, &mut state));
            let global_scale = matches!(back.scale, Scale::E4M3).then_some(3.7);
            let stored = StoredRows {
                codes: &codes,
                scale: &scale,
                zero_point: zero_point.as_deref(),
                global_scale,
                g_idx: None,
            };
            for dtype in [DType::BF16, DType::F16, DType::F32] {
                let read = |back: &WeightDecompressor, stored: &StoredRows<'_>| {
                    let mut out = Vec::new();
                    back.decompress_rows(0, rows, stored, dtype, &mut out).unwrap();
                    out
                };
                // Group numbers that say what the position says lead through the plain loop.
                let g_idx: Vec<i32> = (0..cols).map(|col| (col / back.tile[1]) as i32).collect();
                let plain = read(&back, &StoredRows { g_idx: Some(&g_idx), ..stored });
                for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512] {
                    let found = read(&back.clone().with_isa(isa), &stored);
                    assert!(found == plain, "{} {weights} {float} to {dtype} on {isa:?}", format.name());
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, schemes().len() * 27);
}
