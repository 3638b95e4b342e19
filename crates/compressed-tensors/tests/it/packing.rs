//! Bit packing against the golden words of both layouts.

use compressed_tensors::{
    Array,
    packing::{Layout, PackedDim, pack, transpose, unpack},
};
use serde_json::Value;

use crate::golden::Formats;

fn words(array: &Array) -> Vec<i32> {
    array.data.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
}

fn codes(array: &Array) -> Vec<i8> {
    array.data.iter().map(|b| *b as i8).collect()
}

#[test]
fn dense_words_are_the_references_in_both_directions() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let cases = manifest["packing_cases"].as_array().unwrap();
    for case in cases {
        let bits = case["num_bits"].as_u64().unwrap() as u32;
        let dim = if case["packed_dim"] == 0 { PackedDim::Rows } else { PackedDim::Cols };
        let (q, packed) = (formats.array(&case["q"]), formats.array(&case["packed"]));
        let [.., rows, cols] = q.shape[..] else { panic!("{case}") };
        let slices: usize = q.shape[..q.shape.len() - 2].iter().product();
        let (q, packed) = (codes(&q), words(&packed));
        for (q, packed) in q.chunks(q.len() / slices).zip(packed.chunks(packed.len() / slices)) {
            assert_eq!(pack(q, rows, cols, bits, dim).unwrap(), packed, "{case}");
            assert_eq!(unpack(packed, rows, cols, bits, dim, Layout::Dense).unwrap(), q, "{case}");
        }
    }
    assert_eq!(cases.len(), 64);
}

#[test]
fn words_of_the_older_layout_are_read() {
    let formats = Formats::open();
    let manifest = formats.0.json("sparse_manifest.json");
    let cases: Vec<&Value> =
        manifest["cases"].as_array().unwrap().iter().filter(|it| it["kind"] == "legacy-pack").collect();
    for case in &cases {
        let bits = case["num_bits"].as_u64().unwrap() as u32;
        let input = formats.array(&case["input"]);
        let (rows, cols) = (input.shape[0], input.shape[1]);
        let input = codes(&input);
        for (dim, key) in [(PackedDim::Cols, "packed_dim1"), (PackedDim::Rows, "packed_dim0")] {
            let packed = words(&formats.array(&case[key]));
            assert_eq!(unpack(&packed, rows, cols, bits, dim, Layout::Legacy).unwrap(), input, "{case}");
        }
    }
    assert!(!cases.is_empty());
}

proptest::proptest! {
    #[test]
    fn packing_is_a_bijection(bits in 1u32..=8, rows in 0usize..5, cols in 0usize..70, seed: u64) {
        let half = 1i64 << (bits - 1);
        let mut state = seed | 1;
        let q: Vec<i8> = (0..rows * cols).map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 40) as i64 % (2 * half) - half) as i8
        }).collect();
        for dim in [PackedDim::Cols, PackedDim::Rows] {
            let packed = pack(&q, rows, cols, bits, dim).unwrap();
            proptest::prop_assert_eq!(&unpack(&packed, rows, cols, bits, dim, Layout::Dense).unwrap(), &q);
            // Packing what was unpacked gives the same words: no bit is free.
            let again = pack(&unpack(&packed, rows, cols, bits, dim, Layout::Dense).unwrap(), rows, cols, bits, dim);
            proptest::prop_assert_eq!(again.unwrap(), packed);
        }
        proptest::prop_assert_eq!(transpose(&transpose(&q, rows, cols), cols, rows), q);
    }
}
