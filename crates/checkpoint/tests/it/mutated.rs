//! Mutated headers: none panics, and what is accepted holds together.

use checkpoint::{Header, MAX_NAME_BYTES, MAX_RANK};
use serde_json::json;

const N_MUTANTS: u32 = 10_000;

/// A small generator with a fixed seed (xorshift), so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }
}

const DATA_BYTES: u64 = 60;

fn seed_header() -> Vec<u8> {
    json!({
        "__metadata__": {"format": "pt"},
        "model.layers.0.q.weight": {"dtype": "BF16", "shape": [4, 2], "data_offsets": [0, 16]},
        "model.layers.0.k.weight": {"dtype": "F32", "shape": [2, 5], "data_offsets": [16, 56]},
        "bias": {"dtype": "U8", "shape": [4], "data_offsets": [56, 60]},
        "none": {"dtype": "F64", "shape": [0, 3], "data_offsets": [60, 60]},
    })
    .to_string()
    .into_bytes()
}

fn mutate(text: &mut Vec<u8>, dice: &mut Dice) {
    const PIECES: &[&str] = &[
        "0",
        "9",
        "-",
        "1e9",
        "\"",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "null",
        "\\u0000",
        "18446744073709551615",
        "U8",
        " ",
    ];
    let at = dice.roll(text.len());
    match dice.roll(6) {
        0 => text[at] = dice.roll(256) as u8,
        1 if text.len() > 1 => drop(text.remove(at)),
        2 => {
            let piece = PIECES[dice.roll(PIECES.len())].bytes();
            text.splice(at..at, piece);
        }
        3 => text.truncate(at.max(1)),
        4 => {
            // Another digit keeps the syntax and breaks the arithmetic.
            let digits: Vec<usize> = (0..text.len()).filter(|it| text[*it].is_ascii_digit()).collect();
            if !digits.is_empty() {
                text[digits[dice.roll(digits.len())]] = b'0' + dice.roll(10) as u8;
            }
        }
        _ => {
            let end = (at + 1 + dice.roll(40)).min(text.len());
            let piece = text[at..end].to_vec();
            let to = dice.roll(text.len());
            text.splice(to..to, piece);
        }
    }
}

#[test]
fn mutated_headers_never_panic_and_accepted_ones_cover_the_data() {
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let (mut n_accepted, mut n_refused) = (0, 0);
    for _ in 0..N_MUTANTS {
        let mut text = seed_header();
        for _ in 0..=dice.roll(3) {
            mutate(&mut text, &mut dice);
        }
        let Ok(header) = Header::parse(&text, DATA_BYTES) else {
            n_refused += 1;
            continue;
        };
        n_accepted += 1;
        let mut at = 0;
        for tensor in &header.tensors {
            assert!(tensor.name.len() <= MAX_NAME_BYTES && tensor.shape.len() <= MAX_RANK);
            assert_eq!(tensor.start, at);
            let elements: usize = tensor.shape.iter().product();
            assert_eq!(tensor.dtype.byte_len(elements).unwrap() as u64, tensor.end - tensor.start);
            at = tensor.end;
        }
        assert_eq!(at, DATA_BYTES);
        let mut names: Vec<_> = header.tensors.iter().map(|it| &it.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), header.tensors.len());
    }
    // Both sides must be exercised: renamed tensors pass, most other changes do not.
    assert!(n_accepted > 300 && n_refused > 5_000, "{n_accepted} accepted, {n_refused} refused");
}
