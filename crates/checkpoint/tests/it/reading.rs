//! What a good directory yields.

use std::{fs, os::unix::fs::symlink};

use checkpoint::{Class, ErrorKind, Links, Source, Treatment};
use compressed_tensors::DType;
use serde_json::json;

use crate::model_dir::{ModelDir, S1, S2, assert_at, bytes_file, safetensors};

#[test]
fn shards_and_tensors_come_in_file_order() {
    let dir = ModelDir::sharded();
    let source = Source::open(dir.path()).unwrap();
    let seen: Vec<_> = source.tensors().map(|it| (it.name.as_str(), it.shard_idx, it.n_bytes())).collect();
    assert_eq!(seen, [("a", 0, 4), ("b", 0, 2), ("c", 1, 3)]);
    assert_eq!(source.shards().iter().map(|it| it.file_name.as_str()).collect::<Vec<_>>(), [S1, S2]);
    assert_eq!(source.read(source.get("b").unwrap()).unwrap(), [2, 2]);
    assert_eq!(source.config().unwrap()["model_type"], "llama");
    assert!(source.warnings().is_empty(), "{:?}", source.warnings());
    assert!(matches!(source.require("d").unwrap_err().kind(), ErrorKind::NoSuchTensor));
}

#[test]
fn a_part_of_a_tensor_is_read_at_its_offset_and_never_past_its_end() {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "w": {"dtype": "I16", "shape": [2, 2], "data_offsets": [0, 8]},
        "e": {"dtype": "F32", "shape": [0, 4], "data_offsets": [8, 8]},
        "s": {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]},
    });
    let dir = ModelDir::single(&safetensors(&header, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]));
    let source = Source::open(dir.path()).unwrap();
    let w = source.get("w").unwrap();
    assert_eq!((w.dtype, &w.shape[..]), (DType::I16, &[2, 2][..]));
    let mut part = [0; 3];
    source.read_into(w, 4, &mut part).unwrap();
    assert_eq!(part, [4, 5, 6]);
    let past = source.read_into(w, 6, &mut part).unwrap_err();
    assert!(matches!(past.kind(), ErrorKind::Contract { .. }));
    assert_eq!(past.place().tensor.as_deref(), Some("w"));
    assert_eq!(source.read(source.get("e").unwrap()).unwrap(), b"");
    assert_eq!(source.shards()[0].metadata["format"], "pt");
}

#[test]
fn shards_without_an_index_are_all_read() {
    let dir = ModelDir::empty();
    dir.put("b.safetensors", &bytes_file(&[("y", 1)]));
    dir.put("a.safetensors", &bytes_file(&[("x", 1)]));
    let source = Source::open(dir.path()).unwrap();
    assert_eq!(source.tensors().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["x", "y"]);
    assert!(source.index().is_none());
}

#[test]
fn a_file_that_the_index_does_not_name_is_a_warning() {
    let dir = ModelDir::sharded();
    dir.put("consolidated.safetensors", &bytes_file(&[("a", 4)]));
    let source = Source::open(dir.path()).unwrap();
    assert!(source.warnings()[0].contains("`consolidated.safetensors`"), "{:?}", source.warnings());
}

#[test]
fn a_wrong_total_size_is_a_warning() {
    let dir = ModelDir::sharded();
    let text = json!({"metadata": {"total_size": 8}, "weight_map": {"a": S1, "b": S1, "c": S2}});
    dir.put("model.safetensors.index.json", text.to_string().as_bytes());
    assert!(Source::open(dir.path()).unwrap().warnings()[0].contains("total_size 8"));
}

#[test]
fn a_file_cut_after_opening_is_an_error_that_names_file_and_tensor() {
    let dir = ModelDir::single(&bytes_file(&[("a", 100), ("b", 100)]));
    let source = Source::open(dir.path()).unwrap();
    let b = source.get("b").unwrap();
    source.read(b).unwrap();
    let file = fs::OpenOptions::new().write(true).open(dir.file("model.safetensors")).unwrap();
    file.set_len(b.range.start + 50).unwrap();
    let error = source.read(b).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Changed { .. }), "{error}");
    assert!(error.to_string().contains("changed while reading"), "{error}");
    assert_eq!(error.place().tensor.as_deref(), Some("b"));
    assert_at(&error, "model.safetensors");
    assert_eq!(error.class(), Class::BadInput);
    assert!(matches!(source.check_unchanged().unwrap_err().kind(), ErrorKind::Changed { .. }));
}

#[test]
fn a_replaced_file_is_found_when_it_is_opened_again() {
    let dir = ModelDir::empty();
    for idx in 0..12 {
        dir.put(&format!("{idx:02}.safetensors"), &bytes_file(&[(format!("t{idx}").as_str(), 5)]));
    }
    let source = Source::open(dir.path()).unwrap();
    for entry in source.tensors() {
        assert_eq!(source.read(entry).unwrap(), [1; 5]);
    }
    // The first file is no longer among the open ones.
    fs::remove_file(dir.file("00.safetensors")).unwrap();
    dir.put("00.safetensors", &bytes_file(&[("u", 5)]));
    let error = source.read(source.get("t0").unwrap()).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Changed { .. }), "{error}");
}

#[test]
fn reads_from_many_threads_agree() {
    let names: Vec<String> = (0..64).map(|it| format!("t{it}")).collect();
    let specs: Vec<_> = names.iter().map(|it| (it.as_str(), 1000)).collect();
    let dir = ModelDir::single(&bytes_file(&specs));
    let source = Source::open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (idx, entry) in source.tensors().enumerate() {
                    assert_eq!(source.read(entry).unwrap(), vec![idx as u8 + 1; 1000]);
                }
            });
        }
    });
}

#[test]
fn the_fingerprint_follows_shards_config_and_companions() {
    let dir = ModelDir::sharded();
    let print = || Source::open(dir.path()).unwrap().fingerprint().to_owned();
    let first = print();
    assert_eq!(first, print());
    dir.put("config.json", br#"{"model_type": "llama" }"#);
    let second = print();
    assert_ne!(first, second);
    let file = fs::OpenOptions::new().write(true).open(dir.file(S2)).unwrap();
    file.set_modified(std::time::UNIX_EPOCH).unwrap();
    let third = print();
    assert_ne!(second, third);
    dir.put("tokenizer.json", b"{}");
    assert_ne!(third, print());
}

#[test]
fn the_cache_layout_of_the_hub_is_read() {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("models--org--name");
    let snapshot = model.join("snapshots/abc");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(model.join("blobs")).unwrap();
    for (blob, name, bytes) in [
        ("b0", "config.json", b"{}".to_vec()),
        ("b1", "model.safetensors", bytes_file(&[("a", 4)])),
        ("b2", "tokenizer.json", b"{}".to_vec()),
    ] {
        fs::write(model.join("blobs").join(blob), bytes).unwrap();
        symlink(format!("../../blobs/{blob}"), snapshot.join(name)).unwrap();
    }
    let source = Source::open(&snapshot).unwrap();
    assert_eq!(source.read(source.get("a").unwrap()).unwrap(), [1; 4]);
    assert_eq!(source.companions()[0].name, "tokenizer.json");
    assert_eq!(source.paths().len(), 2);
}

#[test]
fn a_link_out_of_the_directory_is_refused_unless_links_are_followed() {
    let dir = ModelDir::empty();
    let outside = ModelDir::single(&bytes_file(&[("a", 4)]));
    symlink(outside.file("model.safetensors"), dir.file("model.safetensors")).unwrap();
    let error = dir.fault();
    assert!(matches!(error.kind(), ErrorKind::Unsafe { .. }), "{error}");
    assert_eq!(error.class(), Class::Refused);
    assert_at(&error, "model.safetensors");
    assert_eq!(Source::open_with(dir.path(), Links::Follow).unwrap().tensors().len(), 1);
}

#[test]
fn a_companion_that_links_out_is_refused() {
    let dir = ModelDir::sharded();
    symlink("/etc/passwd", dir.file("tokenizer.json")).unwrap();
    let error = dir.fault();
    assert_eq!(error.class(), Class::Refused, "{error}");
    assert_at(&error, "tokenizer.json");
}

#[test]
fn loops_and_dangling_links_are_refused() {
    for (target, reason) in [("model.safetensors", "loop"), ("absent", "nowhere")] {
        let dir = ModelDir::empty();
        symlink(target, dir.file("model.safetensors")).unwrap();
        let error = dir.fault();
        assert_eq!(error.class(), Class::Refused, "{error}");
        assert!(error.to_string().contains(reason), "{error}");
    }
}

#[test]
fn companions_are_sorted_into_copied_code_and_left() {
    let dir = ModelDir::sharded();
    for name in [
        "tokenizer.json",
        "merges.txt",
        "modeling_x.py",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "original/consolidated.safetensors",
        "1_Pooling/config.json",
        "picture.png",
        "LICENSE",
        ".gitattributes",
        ".cache/x.json",
    ] {
        dir.put(name, b"x");
    }
    let source = Source::open(dir.path()).unwrap();
    let seen: Vec<_> = source.companions().iter().map(|it| (it.name.as_str(), it.treatment)).collect();
    assert_eq!(
        seen,
        [
            ("1_Pooling/config.json", Treatment::Copy),
            ("LICENSE", Treatment::Copy),
            ("merges.txt", Treatment::Copy),
            ("modeling_x.py", Treatment::CopyCode),
            ("original/consolidated.safetensors", Treatment::OtherWeights),
            ("picture.png", Treatment::Left),
            ("pytorch_model.bin", Treatment::OtherWeights),
            ("pytorch_model.bin.index.json", Treatment::OtherWeights),
            ("tokenizer.json", Treatment::Copy),
        ]
    );
}

#[test]
fn a_fixture_model_is_read_whole() {
    let source = Source::open(testkit::fixture("tiny-llama")).unwrap();
    assert!(source.warnings().is_empty(), "{:?}", source.warnings());
    assert_eq!(source.config().unwrap()["model_type"], "llama");
    assert!(source.get("model.embed_tokens.weight").is_some());
    let copied = source.companions().iter().filter(|it| it.treatment == Treatment::Copy).count();
    assert_eq!(copied, 4);
    let n_bytes: u64 = source.tensors().map(|it| source.read(it).unwrap().len() as u64).sum();
    assert_eq!(source.shards()[0].file_bytes - source.get(&first_name(&source)).unwrap().range.start, n_bytes);
}

fn first_name(source: &Source) -> String {
    source.tensors().next().unwrap().name.clone()
}
