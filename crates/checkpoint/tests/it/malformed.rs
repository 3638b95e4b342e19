//! Damaged directories: each fault is found before any tensor is read, with its kind and its place.

use std::fs;

use checkpoint::{Class, Error, ErrorKind, Source};
use serde_json::json;

use crate::model_dir::{ModelDir, S1, S2, assert_at, bytes_file, raw};

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn a_cut_shard_is_found_wherever_it_is_cut() {
    let whole = bytes_file(&[("a", 40), ("b", 24)]);
    let header_end = whole.len() - 64;
    for len in [0, 1, 7, 8, 20, header_end - 1, header_end, header_end + 30, whole.len() - 1] {
        let dir = ModelDir::single(&whole[..len]);
        let error = dir.bad_input_at("model.safetensors");
        let &ErrorKind::Truncated { needed, actual } = error.kind() else { panic!("{len}: {error}") };
        assert_eq!(actual, len as u64);
        assert!(needed > actual, "{error}");
    }
}

fn header(text: &str, data: &[u8]) -> Error {
    ModelDir::single(&raw(text.as_bytes(), data)).bad_input_at("model.safetensors")
}

fn tensor(text: &str, data: &[u8]) -> Error {
    let error = header(text, data);
    assert_eq!(error.place().tensor.as_deref(), Some("w"), "{error}");
    error
}

#[test]
fn bytes_after_the_last_tensor_are_refused() {
    let mut grown = bytes_file(&[("a", 4)]);
    grown.extend([0; 3]);
    let error = ModelDir::single(&grown).bad_input_at("model.safetensors");
    assert!(matches!(error.kind(), ErrorKind::TrailingBytes { extra: 3, .. }), "{error}");
}

#[test]
fn gaps_overlaps_and_swapped_offsets_name_the_tensor() {
    let entry = |name: &str, from: u64, to: u64, n: u64| {
        format!(r#""{name}":{{"dtype":"U8","shape":[{n}],"data_offsets":[{from},{to}]}}"#)
    };
    for (first, second, word) in [
        (entry("a", 0, 4, 4), entry("w", 5, 8, 3), "gap"),
        (entry("a", 0, 4, 4), entry("w", 3, 8, 5), "overlap"),
        (entry("a", 0, 4, 4), entry("w", 8, 4, 4), "before the start"),
    ] {
        let error = tensor(&format!("{{{first},{second}}}"), &[0; 8]);
        assert!(matches!(error.kind(), ErrorKind::Offsets { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    let late = tensor(&format!("{{{}}}", entry("w", 1, 9, 8)), &[0; 9]);
    assert!(matches!(late.kind(), ErrorKind::Offsets { found: (1, 9), .. }), "{late}");
    let past = tensor(&format!("{{{}}}", entry("w", 0, 9, 9)), &[0; 8]);
    assert!(matches!(past.kind(), ErrorKind::Truncated { .. }), "{past}");
}

#[test]
fn shapes_that_disagree_or_overflow_are_refused() {
    for (dtype, shape, offsets) in [
        ("F32", "[2]", "[0,4]"),
        ("F32", "[4294967296,4294967296,4294967296]", "[0,8]"),
        ("U8", "[18446744073709551615]", "[0,8]"),
        ("F32", "[9223372036854775808]", "[0,8]"),
        ("F4", "[3]", "[0,1]"),
    ] {
        let text = format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#);
        let error = tensor(&text, &[0; 8]);
        assert!(matches!(error.kind(), ErrorKind::Shape { .. }), "{text}: {error}");
    }
    let rank = tensor(r#"{"w":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#, &[0]);
    assert!(matches!(rank.kind(), ErrorKind::TooLarge { what: "the rank", found: 9, limit: 8 }), "{rank}");
}

#[test]
fn fields_of_the_wrong_form_are_syntax_faults_at_their_tensor() {
    for entry in [
        r#"{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}"#,
        r#"{"dtype":"U8","shape":[1.5],"data_offsets":[0,1]}"#,
        r#"{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}"#,
        r#"{"dtype":"U8","shape":1,"data_offsets":[0,1]}"#,
        r#"{"dtype":"U8","shape":[1],"data_offsets":[0]}"#,
        r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}"#,
        r#"{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}"#,
        r#"{"dtype":"U8","shape":[1]}"#,
        r#"{"dtype":8,"shape":[1],"data_offsets":[0,1]}"#,
        r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1],"extra":0}"#,
        "[]",
        "null",
    ] {
        let error = tensor(&format!(r#"{{"w":{entry}}}"#), &[0]);
        assert!(matches!(error.kind(), ErrorKind::Syntax { .. }), "{entry}: {error}");
    }
    let dtype = tensor(r#"{"w":{"dtype":"Q4_\u001bK","shape":[1],"data_offsets":[0,1]}}"#, &[0]);
    assert!(matches!(dtype.kind(), ErrorKind::UnknownDType { found } if found == "Q4_\u{1b}K"), "{dtype}");
    assert!(!dtype.to_string().contains('\u{1b}'), "{dtype}");
}

#[test]
fn keys_that_occur_twice_are_refused() {
    let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    for (text, key, name) in [
        (format!(r#"{{"w":{entry},"w":{entry}}}"#), "w", "w"),
        (r#"{"w":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}"#.to_owned(), "dtype", "w"),
        (r#"{"__metadata__":{"a":"1","a":"2"}}"#.to_owned(), "a", "__metadata__"),
        (r#"{"__metadata__":{},"__metadata__":{}}"#.to_owned(), "__metadata__", "__metadata__"),
    ] {
        let error = header(&text, &[0]);
        assert!(matches!(error.kind(), ErrorKind::DuplicateKey { key: it, .. } if it == key), "{text}: {error}");
        assert_eq!(error.place().tensor.as_deref(), Some(name));
    }
}

#[test]
fn metadata_holds_strings_only() {
    for value in [r#"{"a":1}"#, r#"{"a":{}}"#, "[]", r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#] {
        let error = header(&format!(r#"{{"__metadata__":{value}}}"#), &[0]);
        assert!(matches!(error.kind(), ErrorKind::Syntax { .. }), "{value}: {error}");
        assert_eq!(error.place().tensor.as_deref(), Some("__metadata__"));
    }
}

#[test]
fn header_lengths_and_counts_are_capped_before_anything_is_allocated() {
    for length in [u64::MAX, 1 << 40, 100_000_001] {
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend([b'{'; 64]);
        let error = ModelDir::single(&bytes).bad_input_at("model.safetensors");
        assert!(matches!(error.kind(), ErrorKind::TooLarge { found, limit: 100_000_000, .. } if *found == length));
    }
    let name = "n".repeat(1025);
    let long = header(&format!(r#"{{"{name}":{{}}}}"#), &[]);
    assert!(matches!(long.kind(), ErrorKind::TooLarge { found: 1025, limit: 1024, .. }), "{long}");
    assert!(long.to_string().len() < 700, "{long}");
}

#[test]
fn headers_that_are_no_json_object_are_refused() {
    for text in [
        &b""[..],
        b" {}",
        b"[]",
        b"{",
        b"{}x",
        b"{\"\xff\":{}}",
        b"{\"a\":{\"dtype\":\"U8\"",
        "[".repeat(200_000).as_bytes(),
        format!("{{\"w\":{}", "[".repeat(200_000)).as_bytes(),
    ] {
        let error = ModelDir::single(&raw(text, &[])).bad_input_at("model.safetensors");
        assert!(matches!(error.kind(), ErrorKind::Syntax { .. }), "{error}");
    }
    assert!(Source::open(ModelDir::single(&raw(b"{}  ", &[])).path()).is_ok());
}

#[test]
fn an_index_and_its_shards_must_agree() {
    let dir = ModelDir::sharded();
    dir.index(json!({"a": S1, "b": S1, "c": S2, "d": "model-00003-of-00003.safetensors"}));
    let error = dir.bad_input_at(INDEX);
    assert!(
        matches!(error.kind(), ErrorKind::MissingShards { names } if names == &["model-00003-of-00003.safetensors"])
    );

    dir.index(json!({"a": S1, "b": S2, "c": S2, "d": S1}));
    let error = dir.bad_input_at(INDEX);
    assert!(matches!(error.kind(), ErrorKind::MissingTensors { names } if names == &["b", "d"]), "{error}");

    dir.index(json!({"a": S1, "c": S2}));
    let error = dir.bad_input_at(S1);
    assert!(matches!(error.kind(), ErrorKind::UnindexedTensors { names } if names == &["b"]), "{error}");

    dir.index(json!({"a": S1, "b": S1, "c": S2}));
    dir.put(S2, &bytes_file(&[("c", 3), ("a", 4)]));
    let error = dir.bad_input_at(S2);
    assert!(matches!(error.kind(), ErrorKind::TensorTwice { first, second } if first == S1 && second == S2));
    assert_eq!(error.place().tensor.as_deref(), Some("a"));
}

#[test]
fn a_message_lists_ten_names_at_most() {
    let dir = ModelDir::sharded();
    let map: serde_json::Map<_, _> = (0..30).map(|it| (format!("t{it:02}"), json!(S1))).collect();
    dir.index(map.into());
    let text = dir.fault().to_string();
    assert!(text.contains("`t09`, and 20 more") && !text.contains("`t10`"), "{text}");
}

#[test]
fn malformed_indexes_are_placed_at_the_index() {
    for text in
        ["", "[]", "{}", r#"{"weight_map": []}"#, r#"{"weight_map": {"a": 1}}"#, r#"{"metadata": 1, "weight_map": {}}"#]
    {
        let dir = ModelDir::sharded();
        dir.put(INDEX, text.as_bytes());
        let error = dir.bad_input_at(INDEX);
        assert!(matches!(error.kind(), ErrorKind::Syntax { .. }), "{text}: {error}");
    }
    let dir = ModelDir::sharded();
    dir.put(
        INDEX,
        format!(
            r#"{{"weight_map": {{"a": "{S1}",
 "a": "{S2}"}}}}"#
        )
        .as_bytes(),
    );
    let error = dir.bad_input_at(INDEX);
    assert!(matches!(error.kind(), ErrorKind::DuplicateKey { .. }), "{error}");
    assert_eq!(error.place().line_column.unwrap().0, 2);
}

#[test]
fn file_names_in_an_index_that_are_no_plain_names_are_refused_for_safety() {
    let long = "x".repeat(5000);
    for name in
        ["../x", "/etc/x", "C:\\x", "a\\..\\b", "..%2f", "a%5Cb", "x\0y", "", ".", "..", &long, "sub/x.safetensors"]
    {
        let dir = ModelDir::sharded();
        dir.index(json!({"a": name}));
        let error = dir.fault();
        assert_eq!(error.class(), Class::Refused, "{name:?}: {error}");
        assert_at(&error, INDEX);
        assert_eq!(error.place().tensor.as_deref(), Some("a"));
        assert!(matches!(error.kind(), ErrorKind::Unsafe { name: it, .. } if it == name));
    }
}

#[test]
fn pipes_and_folders_named_as_shards_are_refused_and_do_not_hang() {
    let dir = ModelDir::sharded();
    fs::create_dir(dir.file("folder.safetensors")).unwrap();
    dir.index(json!({"a": "folder.safetensors"}));
    let error = dir.fault();
    assert_eq!(error.class(), Class::Refused, "{error}");
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let dir = ModelDir::single(&bytes_file(&[("a", 1)]));
        fs::remove_file(dir.file(name)).ok();
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, dir.file(name), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let error = dir.fault();
        assert_eq!(error.class(), Class::Refused, "{error}");
        assert_at(&error, name);
    }
    let dir = ModelDir::empty();
    std::os::unix::fs::symlink("/dev/zero", dir.file("model.safetensors")).unwrap();
    assert_eq!(dir.fault().class(), Class::Refused);
}

#[test]
fn directories_without_safetensors_say_what_to_do() {
    let dir = ModelDir::empty();
    let error = dir.fault();
    assert_eq!(error.class(), Class::InputAbsent, "{error}");
    dir.put("pytorch_model.bin", b"PK");
    let error = dir.fault();
    assert_eq!(error.class(), Class::BadInput);
    assert!(matches!(error.kind(), ErrorKind::ForeignWeights { found } if found == &["pytorch_model.bin"]));
    assert!(error.to_string().contains("convert them to safetensors"), "{error}");

    let file = Source::open(dir.file("config.json")).unwrap_err();
    assert!(matches!(file.kind(), ErrorKind::NotADirectory), "{file}");
    let absent = Source::open(dir.file("absent")).unwrap_err();
    assert_eq!(absent.class(), Class::InputAbsent);
}

#[test]
fn a_malformed_config_has_line_and_column() {
    for (text, line) in [("{\"a\": 1,\n \"b\": }", 2), ("{\"a\": 1,\n\n \"a\": 2}", 3), ("[1]", 1), ("", 1)] {
        let dir = ModelDir::single(&bytes_file(&[("a", 1)]));
        dir.put("config.json", text.as_bytes());
        let error = dir.bad_input_at("config.json");
        assert_eq!(error.place().line_column.unwrap().0.max(1), line, "{text}: {error}");
    }
    let dir = ModelDir::single(&bytes_file(&[("a", 1)]));
    let file = fs::File::create(dir.file("config.json")).unwrap();
    file.set_len(1 << 30).unwrap();
    assert!(matches!(dir.bad_input_at("config.json").kind(), ErrorKind::TooLarge { .. }));
}
