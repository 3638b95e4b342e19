//! Mutated headers: none panics, and what is accepted holds together.

use checkpoint::{Class, Header, MAX_NAME_BYTES, MAX_RANK, Source, parse_json};
use serde_json::json;

use crate::model_dir::{ModelDir, S1, S2};

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

#[test]
fn mutated_configs_never_panic_and_accepted_ones_are_what_serde_reads() {
    let seed = json!({
        "model_type": "llama", "hidden_size": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
        "rope_scaling": {"factor": 8.0, "rope_type": "llama3"}, "eos_token_id": [1, 2], "nothing": null,
    })
    .to_string()
    .into_bytes();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut n_accepted = 0;
    for _ in 0..N_MUTANTS {
        let mut text = seed.clone();
        for _ in 0..=dice.roll(3) {
            mutate(&mut text, &mut dice);
        }
        if let Ok(value) = parse_json(&text, "the config") {
            n_accepted += 1;
            assert_eq!(value, serde_json::from_slice::<serde_json::Value>(&text).unwrap());
        }
    }
    assert!(n_accepted > 1_000 && n_accepted < N_MUTANTS * 9 / 10, "{n_accepted}");
}

#[test]
fn mutated_indexes_never_panic_and_never_lead_out_of_the_directory() {
    let dir = ModelDir::sharded();
    let seed = json!({"metadata": {"total_size": 9}, "weight_map": {"a": S1, "b": S1, "c": S2}}).to_string();
    let mut dice = Dice(0xd1b5_4a32_d192_ed03);
    let mut n_refused = 0;
    for _ in 0..N_MUTANTS / 10 {
        let mut text = seed.clone().into_bytes();
        for _ in 0..=dice.roll(2) {
            mutate(&mut text, &mut dice);
        }
        dir.put("model.safetensors.index.json", &text);
        match Source::open(dir.path()) {
            Ok(source) => assert!(source.shards().iter().all(|it| it.path.starts_with(source.dir()))),
            Err(e) => {
                n_refused += 1;
                assert!(matches!(e.class(), Class::BadInput | Class::Refused | Class::InputAbsent), "{e}");
                assert!(e.place().path.is_some(), "{e}");
            }
        }
    }
    assert!(n_refused > 500, "{n_refused}");
}
