//! Tokenizer files made to crash, and mutated inputs of every reader.

use std::{fs, path::Path};

use calibration::{
    ErrorKind, SpecialTokens, Tokenizer, TokenizerConfig,
    chat::{ChatTemplate, TemplateInputs},
    panic_is_guarded,
    source::open,
};
use serde_json::{Value, json};
use testkit::fixture;

use crate::word_tokenizer::vocabulary;

/// Says nothing about panics that are caught and reported as errors, as the program's own hook does.
fn quiet_about_guarded_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !panic_is_guarded() {
                usual(info);
            }
        }));
    });
}

fn file(changes: Value) -> Vec<u8> {
    let mut file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary(), "unk_token": "<unk>"}});
    for (key, value) in changes.as_object().unwrap() {
        file[key] = value.clone();
    }
    file.to_string().into_bytes()
}

fn load_and_encode(bytes: &[u8]) -> calibration::Result<Vec<u32>> {
    let tokenizer = Tokenizer::from_bytes(bytes, TokenizerConfig::default())?;
    tokenizer.encode("the cat sat on aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa mats ünï", SpecialTokens::Add)
}

#[test]
fn tokenizer_files_made_to_crash_are_errors() {
    quiet_about_guarded_panics();
    load_and_encode(&file(json!({}))).unwrap();
    let bpe = |vocab: Value, merges: Value| {
        json!({"model": {"type": "BPE", "dropout": null, "unk_token": null,
        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "vocab": vocab, "merges": merges}})
    };
    let prefixed = json!({"model": {"type": "BPE", "dropout": null, "unk_token": null,
        "continuing_subword_prefix": "a very long prefix", "end_of_word_suffix": null, "fuse_unk": false,
        "byte_fallback": false, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}});
    let template = json!({"post_processor": {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "none", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": {}}});
    for (name, changes) in [
        ("merge out of vocabulary", bpe(json!({"a": 0}), json!(["a b"]))),
        ("merge of one part", bpe(json!({"a": 0}), json!(["a"]))),
        ("long prefix", prefixed),
        ("zero length", json!({"pre_tokenizer": {"type": "FixedLength", "length": 0}})),
        ("charsmap", json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////////"}})),
        ("short charsmap", json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AA=="}})),
        ("template without its token", template),
        ("unknown model", json!({"model": {"type": "Nothing"}})),
        (
            "bad pattern",
            json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated",
            "invert": false}}),
        ),
        ("unknown word", json!({"model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "<unk>"}})),
        ("unigram without unknown", json!({"model": {"type": "Unigram", "unk_id": 9, "vocab": [["a", 0.0]]}})),
        ("negative id", json!({"model": {"type": "WordLevel", "vocab": {"x": -1}, "unk_token": "x"}})),
    ] {
        let error = load_and_encode(&file(changes)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Tokenizer { .. }), "{name}: {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), "{\"version\": ").unwrap();
    let error = Tokenizer::from_dir(folder.path()).err().unwrap();
    assert_eq!(error.place().unwrap().path, folder.path().join("tokenizer.json"));
    let absent = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_dir(absent.path()).err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::Absent), "{error}");
}

#[test]
fn patterns_that_backtrace_without_end_are_stopped() {
    quiet_about_guarded_panics();
    let bomb = json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated",
        "invert": false}});
    // Either the engine needs no backtracking for it, or it stops: the test ends.
    let _ = load_and_encode(&file(bomb));
    let look_around = json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?=(a+)+b)(a+)+$"},
        "behavior": "Isolated", "invert": false}});
    let _ = load_and_encode(&file(look_around));
}

/// A small generator with a fixed sequence, so that a failure comes back.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n.max(1)
    }

    /// Changes, removes, doubles or cuts a few bytes.
    fn mutate(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 if !bytes.is_empty() => bytes[at] = self.below(256) as u8,
                1 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                2 if !bytes.is_empty() => {
                    bytes.remove(at);
                }
                3 => bytes.truncate(at),
                4 => bytes.insert(at, b"\"\\{}[],:\n%\0\xff"[self.below(12)]),
                _ => {
                    let end = (at + self.below(40)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
        }
        bytes
    }
}

fn read_all(path: &Path) -> calibration::Result<usize> {
    let mut source = open(path)?;
    let n = source.count()?;
    for index in 0..n {
        // A bad row is an error of its own; its neighbours can still be read.
        if let Err(error) = source.row(index) {
            assert_eq!(error.place().map(|place| place.path.as_path()), Some(path), "{error}");
        }
    }
    Ok(n)
}

#[test]
fn mutated_data_files_are_rows_or_errors() {
    let folder = tempfile::tempdir().unwrap();
    let lines = "{\"text\": \"the \\\"cat\\\"\", \"n\": [1, 2]}\n\n{\"text\": \"a\"}\r\n{\"text\": \"é\", \"input_ids\": [1]}\n";
    let array = "[{\"text\": \"the, [cat]\"}, {\"text\": \"a\"},\n [1, 2]]";
    let csv = "id,text\n1,\"a \"\"b\"\"\nc\"\n2,x\n\n3,\"y, z\"\n";
    let mut draws = Draws(1);
    let (mut read, mut refused) = (0, 0);
    for (name, content) in [("x.jsonl", lines), ("x.json", array), ("x.csv", csv), ("x.txt", "a\n\nb\r\nc")] {
        let path = folder.path().join(name);
        for _ in 0..400 {
            // A new file: some file systems wait for the disk when an old one is cut and written again.
            let _ = fs::remove_file(&path);
            fs::write(&path, draws.mutate(content.as_bytes())).unwrap();
            match read_all(&path) {
                Ok(_) => read += 1,
                Err(error) => {
                    assert_eq!(error.place().map(|place| place.path.as_path()), Some(path.as_path()), "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(read > 100 && refused > 100, "{read} read, {refused} refused");
}

#[test]
fn mutated_tokenizer_files_are_tokenizers_or_errors() {
    quiet_about_guarded_panics();
    let bpe = json!({"model": {"type": "BPE", "dropout": null, "unk_token": "a", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
        "vocab": {"a": 0, "b": 1, "ab": 2, "c": 3, "abc": 4}, "merges": [["a", "b"], ["ab", "c"]]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}}}});
    let mut draws = Draws(2);
    let (mut read, mut refused) = (0, 0);
    for content in [file(json!({})), file(bpe)] {
        load_and_encode(&content).unwrap();
        for _ in 0..500 {
            match load_and_encode(&draws.mutate(&content)) {
                Ok(_) => read += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(read > 50 && refused > 50, "{read} read, {refused} refused");
    let config = fs::read(fixture("tiny-llama").join("tokenizer_config.json")).unwrap();
    for _ in 0..500 {
        let _ = TokenizerConfig::from_json(&draws.mutate(&config));
    }
}

#[test]
fn mutated_templates_are_text_or_errors() {
    quiet_about_guarded_panics();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/chat_templates.json");
    let cases: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let messages = vec![json!({"role": "user", "content": "x"}), json!({"role": "assistant", "content": "y"})];
    let inputs = TemplateInputs { messages, ..Default::default() };
    let mut draws = Draws(3);
    let (mut read, mut refused) = (0, 0);
    for case in cases["cases"].as_array().unwrap() {
        for _ in 0..60 {
            let mutated = draws.mutate(case["template"].as_str().unwrap().as_bytes());
            let mutated = String::from_utf8_lossy(&mutated);
            match ChatTemplate::compile(&mutated)
                .and_then(|template| template.render(&inputs, &TokenizerConfig::default()))
            {
                Ok(_) => read += 1,
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::Template { .. }), "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(read > 100 && refused > 100, "{read} read, {refused} refused");
}
