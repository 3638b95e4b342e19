//! Outputs: what is refused before work, what resumes, what a finished one looks like.

use std::{
    fs::{self, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::symlink,
    path::Path,
};

use checkpoint::{
    Class, Error, ErrorKind, Existing, Finish, Generated, IndexRule, Opened, OutputPlan, ShardPlan, Source, TensorSpec,
    UnitCommit, WORK_DIR, Writer,
};
use compressed_tensors::DType;
use indexmap::IndexMap;
use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::model_dir::{ModelDir, assert_at, bytes_file};

fn spec(name: &str, dtype: DType, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

fn plan_in(dir: &Path) -> OutputPlan {
    OutputPlan {
        dir: dir.join("out"),
        shards: vec![ShardPlan {
            file_name: "model.safetensors".to_owned(),
            tensors: vec![spec("a", DType::U8, &[6]), spec("b", DType::U8, &[4])],
            metadata: IndexMap::new(),
        }],
        fingerprints: [("source", "s"), ("recipe", "r"), ("settings", "t")].map(|(k, v)| (k.into(), v.into())).into(),
        ..OutputPlan::default()
    }
}

fn open(plan: &OutputPlan) -> Writer {
    match Writer::open_or_resume(plan).unwrap() {
        Opened::Work(writer) => *writer,
        Opened::AlreadyDone => panic!("the output is not finished"),
    }
}

fn fault(plan: &OutputPlan) -> Error {
    Writer::open_or_resume(plan).map(|_| ()).expect_err("the output is refused")
}

fn unit(name: &str, snapshot: Option<Value>) -> UnitCommit {
    UnitCommit { name: name.to_owned(), tensors: vec![name.to_owned()], snapshot, ..UnitCommit::default() }
}

fn write_both(writer: &Writer) {
    writer.write_at("a", 0, b"aaaaaa").unwrap();
    writer.commit(&[unit("a", Some(json!({"random": [1, 0.1]})))]).unwrap();
    writer.write_at("b", 0, b"bbbb").unwrap();
    writer.commit(&[unit("b", None)]).unwrap();
}

fn finish(writer: Writer) {
    let report = json!({"fingerprints": writer.fingerprint_record()}).to_string().into_bytes();
    let generated = vec![Generated { name: "report.json".to_owned(), bytes: report }];
    writer.finish(&Finish { generated, config: Some(b"{}\n".to_vec()), ..Finish::default() }).unwrap();
}

fn done_names(writer: &Writer) -> Vec<&str> {
    writer.resumed().done.iter().map(|it| it.name.as_str()).collect()
}

/// A directory with an unfinished output of two units.
fn unfinished() -> (TempDir, OutputPlan) {
    let dir = tempdir().unwrap();
    let plan = plan_in(dir.path());
    write_both(&open(&plan));
    (dir, plan)
}

#[test]
fn a_finished_output_is_read_back_and_has_no_work_directory() {
    let dir = tempdir().unwrap();
    let plan = OutputPlan {
        shards: vec![ShardPlan {
            file_name: "model.safetensors".to_owned(),
            tensors: vec![
                spec("z", DType::U8, &[3]),
                spec("scale", DType::BF16, &[1, 2]),
                spec("a", DType::U8, &[1]),
                spec("ids", DType::I64, &[]),
            ],
            metadata: [("format".to_owned(), "pt".to_owned())].into(),
        }],
        ..plan_in(dir.path())
    };
    let writer = open(&plan);
    for (name, bytes) in [("z", &b"zzz"[..]), ("scale", b"SSSS"), ("a", b"a"), ("ids", b"IIIIIIII")] {
        writer.write_at(name, 0, bytes).unwrap();
        writer.commit(&[unit(name, None)]).unwrap();
    }
    let index = IndexRule::Always("x.safetensors.index.json".to_owned());
    let finished = writer.finish(&Finish { config: Some(b"{}\n".to_vec()), index, ..Finish::default() }).unwrap();
    assert_eq!(finished.total_size, 16);
    assert_eq!(finished.files, ["config.json", "model.safetensors", "x.safetensors.index.json"]);

    // Wider elements first, then by name, so that every tensor is aligned; the data begins at a multiple of 8.
    let source = Source::open(&plan.dir).unwrap();
    let seen: Vec<_> = source.tensors().map(|it| (it.name.as_str(), it.range.start % 8)).collect();
    assert_eq!(seen, [("ids", 0), ("scale", 0), ("a", 4), ("z", 5)]);
    assert_eq!(source.read(source.get("z").unwrap()).unwrap(), b"zzz");
    assert_eq!(source.shards()[0].metadata["format"], "pt");
    assert!(source.warnings().is_empty());
    let names: Vec<_> = fs::read_dir(&plan.dir).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let index = fs::read_to_string(plan.dir.join("x.safetensors.index.json")).unwrap();
    let expected = "{\n  \"metadata\": {\n    \"total_size\": 16\n  },\n  \"weight_map\": {\n    \"a\": \"model.safetensors\",\n    \"ids\": \"model.safetensors\",\n    \"scale\": \"model.safetensors\",\n    \"z\": \"model.safetensors\"\n  }\n}\n";
    assert_eq!(index, expected);
}

#[test]
fn the_same_command_resumes_with_units_and_snapshots() {
    let (_dir, plan) = unfinished();
    let writer = open(&plan);
    assert_eq!(done_names(&writer), ["a", "b"]);
    assert_eq!(writer.resumed().done[0].snapshot, Some(json!({"random": [1, 0.1]})));
    assert_eq!(writer.resumed().done[0].tensors["a"], blake3::hash(b"aaaaaa").to_hex().as_str());
    let mut read = [0; 4];
    writer.read_into("a", 1, &mut read).unwrap();
    assert_eq!(&read, b"aaaa");
    finish(writer);
    assert!(matches!(Writer::open_or_resume(&plan).unwrap(), Opened::AlreadyDone));
}

#[test]
fn a_torn_last_line_costs_its_unit_only() {
    let (_dir, plan) = unfinished();
    let journal = plan.dir.join(WORK_DIR).join("journal.jsonl");
    let whole = fs::read(&journal).unwrap();
    let first_line = whole.iter().position(|it| *it == b'\n').unwrap() + 1;
    for len in [first_line, first_line + 1, whole.len() - 40, whole.len() - 1] {
        fs::write(&journal, &whole[..len]).unwrap();
        let writer = open(&plan);
        assert_eq!(done_names(&writer), ["a"], "cut at {len}");
        // A shorter line after the torn one leaves nothing of it.
        writer.write_at("b", 0, b"bbbb").unwrap();
        writer.commit(&[unit("b", None)]).unwrap();
        drop(writer);
        assert_eq!(fs::read(&journal).unwrap(), whole);
    }
    let mut flipped = whole;
    flipped[first_line + 20] ^= 1;
    fs::write(&journal, &flipped).unwrap();
    assert_eq!(done_names(&open(&plan)), ["a"]);
}

#[test]
fn a_damaged_unit_is_done_again() {
    let (_dir, plan) = unfinished();
    let shard = plan.dir.join(WORK_DIR).join("shards/model.safetensors");
    let mut file = OpenOptions::new().read(true).write(true).open(&shard).unwrap();
    file.seek(SeekFrom::End(-9)).unwrap();
    let mut byte = [0];
    file.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"a");
    file.seek(SeekFrom::End(-9)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
    drop(file);
    let writer = open(&plan);
    assert_eq!(writer.resumed().damaged, ["a"]);
    assert_eq!(done_names(&writer), ["b"]);
    assert_eq!(writer.uncommitted(), ["a"]);
    drop(writer);
    // What was dropped stays dropped, and can be written again.
    let writer = open(&plan);
    assert_eq!(writer.resumed().damaged, [""; 0]);
    writer.write_at("a", 0, b"aaaaaa").unwrap();
    writer.commit(&[unit("a", None)]).unwrap();
    finish(writer);
    let source = Source::open(&plan.dir).unwrap();
    assert_eq!(source.read(source.get("a").unwrap()).unwrap(), b"aaaaaa");
}

#[test]
fn a_shard_that_was_cut_is_redone() {
    let (_dir, plan) = unfinished();
    let shard = plan.dir.join(WORK_DIR).join("shards/model.safetensors");
    let bytes = fs::metadata(&shard).unwrap().len();
    OpenOptions::new().write(true).open(&shard).unwrap().set_len(bytes - 2).unwrap();
    let writer = open(&plan);
    assert_eq!(writer.resumed().damaged, ["b"]);
    assert_eq!(done_names(&writer), ["a"]);
}

#[test]
fn a_damaged_file_of_a_unit_is_done_again() {
    let dir = tempdir().unwrap();
    let plan = plan_in(dir.path());
    let writer = open(&plan);
    let mask = spec("mask", DType::U8, &[3]);
    let write = |writer: &Writer, bytes: &[u8]| {
        writer.write_unit_file("model-u.safetensors", &IndexMap::new(), &[(&mask, bytes)]).unwrap();
        let files = vec!["model-u.safetensors".to_owned()];
        writer.commit(&[UnitCommit { name: "u".to_owned(), files, ..UnitCommit::default() }]).unwrap();
    };
    write(&writer, b"123");
    drop(writer);
    let path = plan.dir.join(WORK_DIR).join("shards/model-u.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() = b'4';
    fs::write(&path, bytes).unwrap();
    let writer = open(&plan);
    assert_eq!(writer.resumed().damaged, ["u"]);
    write(&writer, b"123");
    write_both(&writer);
    drop(writer);
    let writer = open(&plan);
    assert_eq!(done_names(&writer), ["u", "a", "b"]);
    let finished = writer.finish(&Finish { config: Some(b"{}".to_vec()), ..Finish::default() }).unwrap();
    assert_eq!(finished.weight_map["mask"], "model-u.safetensors");
    let source = Source::open(&plan.dir).unwrap();
    assert_eq!(source.read(source.get("mask").unwrap()).unwrap(), b"123");
}

#[test]
fn another_fingerprint_is_refused_and_named() {
    let (dir, plan) = unfinished();
    let mut other = plan.clone();
    other.fingerprints.insert("recipe".to_owned(), "r2".to_owned());
    other.fingerprints.shift_remove("settings");
    let error = fault(&other);
    assert_eq!(error.class(), Class::Refused);
    assert!(
        matches!(error.kind(), ErrorKind::FingerprintChanged { differing } if differing == &["recipe", "settings"])
    );
    let mut other = plan_in(dir.path());
    other.shards[0].tensors[0].shape = vec![7];
    assert!(matches!(fault(&other).kind(), ErrorKind::FingerprintChanged { differing } if differing == &["layout"]));
    // Refusing changed nothing.
    assert_eq!(done_names(&open(&plan)), ["a", "b"]);
}

#[test]
fn an_abandoned_run_leaves_nothing_but_files_that_are_not_its_own() {
    let (_dir, plan) = unfinished();
    open(&plan).abandon().unwrap();
    assert!(!plan.dir.exists());

    let writer = open(&plan);
    fs::write(plan.dir.join("notes.txt"), "mine").unwrap();
    writer.abandon().unwrap();
    let left: Vec<_> = fs::read_dir(&plan.dir).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(left, ["notes.txt"]);
}

#[test]
fn overwriting_starts_afresh() {
    let (_dir, mut plan) = unfinished();
    plan.fingerprints.insert("recipe".to_owned(), "r2".to_owned());
    plan.existing = Existing::Overwrite;
    let writer = open(&plan);
    assert!(writer.resumed().done.is_empty());
    write_both(&writer);
    finish(writer);
    assert!(Source::open(&plan.dir).is_ok());
}

#[test]
fn overwriting_removes_outputs_and_leaves_other_files_and_link_targets() {
    let dir = tempdir().unwrap();
    let plan = OutputPlan { existing: Existing::Overwrite, ..plan_in(dir.path()) };
    fs::create_dir(&plan.dir).unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(plan.dir.join(name), bytes).unwrap();
    put("notes.txt", b"mine");
    put("model-00001-of-00009.safetensors", b"old");
    put("odd.safetensors", b"old");
    put("model.safetensors.index.json", br#"{"weight_map": {"x": "odd.safetensors", "y": "../victim.safetensors"}}"#);
    fs::write(dir.path().join("victim.safetensors"), b"keep").unwrap();
    fs::write(dir.path().join("victim.json"), b"keep").unwrap();
    symlink(dir.path().join("victim.json"), plan.dir.join("config.json")).unwrap();
    let writer = open(&plan);
    write_both(&writer);
    finish(writer);
    let mut names: Vec<_> = fs::read_dir(&plan.dir).unwrap().map(|it| it.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "notes.txt", "report.json"]);
    assert_eq!(fs::read(dir.path().join("victim.json")).unwrap(), b"keep");
    assert_eq!(fs::read(dir.path().join("victim.safetensors")).unwrap(), b"keep");
}

#[test]
fn overwriting_refuses_weights_that_nothing_explains() {
    let dir = tempdir().unwrap();
    let plan = OutputPlan { existing: Existing::Overwrite, ..plan_in(dir.path()) };
    fs::create_dir(&plan.dir).unwrap();
    fs::write(plan.dir.join("precious.safetensors"), b"keep").unwrap();
    fs::write(plan.dir.join("config.json"), b"{}").unwrap();
    assert!(matches!(fault(&plan).kind(), ErrorKind::OutputExists { found } if found == &["precious.safetensors"]));
    assert!(plan.dir.join("config.json").exists());
}

#[test]
fn two_writers_on_one_output_are_refused() {
    let dir = tempdir().unwrap();
    let plan = plan_in(dir.path());
    let first = open(&plan);
    for existing in [Existing::Resume, Existing::Overwrite] {
        let error = fault(&OutputPlan { existing, ..plan.clone() });
        assert_eq!(error.class(), Class::CannotCreate, "{error}");
        assert!(matches!(error.kind(), ErrorKind::Locked { pid, .. } if *pid == Some(std::process::id())), "{error}");
    }
    write_both(&first);
    drop(first);
    // The lock file stays behind, as after a kill; the lock does not.
    assert!(plan.dir.join(WORK_DIR).join("lock").exists());
    assert_eq!(done_names(&open(&plan)), ["a", "b"]);
}

#[test]
fn foreign_files_in_the_output_are_refused_without_a_trace() {
    let dir = tempdir().unwrap();
    let plan = plan_in(dir.path());
    fs::create_dir(&plan.dir).unwrap();
    fs::write(plan.dir.join("thesis.txt"), b"").unwrap();
    let error = fault(&plan);
    assert_eq!(error.class(), Class::Refused);
    assert!(matches!(error.kind(), ErrorKind::OutputExists { found } if found == &["thesis.txt"]));
    assert!(!plan.dir.join(WORK_DIR).exists());
    // A finished output of another plan is no different.
    fs::remove_file(plan.dir.join("thesis.txt")).unwrap();
    let writer = open(&plan);
    write_both(&writer);
    finish(writer);
    let mut other = plan.clone();
    other.fingerprints.insert("recipe".to_owned(), "r2".to_owned());
    assert!(matches!(fault(&other).kind(), ErrorKind::OutputExists { .. }));
}

#[test]
fn an_output_that_touches_its_input_is_refused() {
    let root = tempdir().unwrap();
    let model = root.path().join("models/m");
    fs::create_dir_all(model.join("sub")).unwrap();
    fs::write(model.join("model.safetensors"), bytes_file(&[("x", 1)])).unwrap();
    symlink(root.path().join("models"), root.path().join("alias")).unwrap();
    let before = fs::read(model.join("model.safetensors")).unwrap();
    for out in
        ["models/m", "models/m/sub", "models/m/new/deeper", "models", "alias/m", "alias/m/out", "models/./m/../m"]
    {
        for existing in [Existing::Resume, Existing::Overwrite] {
            let plan = OutputPlan {
                dir: root.path().join(out),
                inputs: Source::open(&model).unwrap().paths(),
                existing,
                ..plan_in(root.path())
            };
            let error = fault(&plan);
            assert!(matches!(error.kind(), ErrorKind::OutputIsInput { .. }), "{out}: {error}");
            assert_eq!(error.class(), Class::Refused);
        }
    }
    assert_eq!(fs::read(model.join("model.safetensors")).unwrap(), before);
    // A neighbour is fine.
    let plan = OutputPlan { dir: root.path().join("alias/n"), inputs: vec![model], ..plan_in(root.path()) };
    open(&plan);
}

#[test]
fn an_output_behind_a_link_is_refused() {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("real")).unwrap();
    symlink(dir.path().join("real"), dir.path().join("out")).unwrap();
    let error = fault(&plan_in(dir.path()));
    assert!(matches!(error.kind(), ErrorKind::Unsafe { .. }), "{error}");
    fs::remove_file(dir.path().join("out")).unwrap();
    fs::create_dir(dir.path().join("out")).unwrap();
    symlink(dir.path().join("real"), dir.path().join("out").join(WORK_DIR)).unwrap();
    assert!(matches!(fault(&plan_in(dir.path())).kind(), ErrorKind::Unsafe { .. }));
    assert_eq!(fs::read_dir(dir.path().join("real")).unwrap().count(), 0);
}

#[test]
fn an_output_that_cannot_be_created_says_so_before_work() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("out"), b"").unwrap();
    let error = fault(&plan_in(dir.path()));
    assert_eq!(error.class(), Class::CannotCreate, "{error}");
    for place in [dir.path().join("out/below"), dir.path().join("n".repeat(4096)), "/proc/llm-compressor/out".into()] {
        let error = fault(&OutputPlan { dir: place, ..plan_in(dir.path()) });
        assert_eq!(error.class(), Class::CannotCreate, "{error}");
    }
    let mut plan = plan_in(&dir.path().join("huge"));
    plan.shards[0].tensors.push(spec("huge", DType::F32, &[1 << 40, 1 << 10]));
    let error = fault(&plan);
    assert!(matches!(error.kind(), ErrorKind::NoSpace { needs, has } if needs > has), "{error}");
    assert_eq!(error.class(), Class::CannotCreate);
    assert!(!dir.path().join("huge").exists());
}

#[test]
fn calls_that_break_the_contract_are_named() {
    let dir = tempdir().unwrap();
    let plan = plan_in(dir.path());
    let writer = open(&plan);
    let broken = |result: checkpoint::Result<()>, word: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Contract { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    broken(writer.write_at("x", 0, b""), "not planned");
    broken(writer.write_at("b", 1, b"bbbb"), "leave");
    broken(writer.write_at("b", u64::MAX, b"bbbb"), "leave");
    broken(writer.commit(&[unit("b", None)]), "nothing");
    writer.write_at("b", 1, b"bbb").unwrap();
    broken(writer.commit(&[unit("b", None)]), "not wholly written");
    writer.write_at("b", 0, b"b").unwrap();
    writer.commit(&[unit("b", None)]).unwrap();
    broken(writer.commit(&[unit("b", None)]), "twice");
    broken(writer.write_at("b", 0, b"b"), "committed already");
    broken(writer.write_unit_file("model.safetensors", &IndexMap::new(), &[]), "taken");
    broken(writer.finish(&Finish::default()).map(|_| ()), "1 planned tensors");
    let mut twice = plan;
    twice.shards[0].tensors.push(spec("a", DType::U8, &[1]));
    broken(Writer::open_or_resume(&twice).map(|_| ()), "planned twice");
}

#[test]
fn bytes_written_twice_are_hashed_as_they_are_in_the_end() {
    let dir = tempdir().unwrap();
    let plan = plan_in(dir.path());
    let writer = open(&plan);
    for (offset, bytes) in [(0, &b"xxx"[..]), (3, b"yyy"), (1, b"zz"), (4, b"w")] {
        writer.write_at("a", offset, bytes).unwrap();
    }
    writer.commit(&[unit("a", None)]).unwrap();
    drop(writer);
    let writer = open(&plan);
    assert_eq!(done_names(&writer), ["a"]);
    assert_eq!(writer.resumed().done[0].tensors["a"], blake3::hash(b"xzzywy").to_hex().as_str());
}

#[test]
fn slabs_from_many_threads_make_whole_tensors() {
    let dir = tempdir().unwrap();
    let mut plan = plan_in(dir.path());
    plan.shards[0].tensors = (0..8).map(|it| spec(&format!("t{it}"), DType::U8, &[64, 64])).collect();
    let writer = open(&plan);
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let writer = &writer;
            scope.spawn(move || {
                for tensor in 0..8_u8 {
                    for row in (thread..64).step_by(4) {
                        writer.write_at(&format!("t{tensor}"), row * 64, &[tensor ^ row as u8; 64]).unwrap();
                    }
                }
            });
        }
    });
    std::thread::scope(|scope| {
        for tensor in 0..8 {
            let writer = &writer;
            scope.spawn(move || writer.commit(&[unit(&format!("t{tensor}"), None)]).unwrap());
        }
    });
    drop(writer);
    let writer = open(&plan);
    assert_eq!((writer.resumed().done.len(), writer.resumed().damaged.len()), (8, 0));
    finish(writer);
    let source = Source::open(&plan.dir).unwrap();
    let bytes = source.read(source.get("t5").unwrap()).unwrap();
    assert!(bytes.chunks(64).enumerate().all(|(row, it)| it == [5 ^ row as u8; 64]));
}

#[test]
fn companions_are_copied_byte_for_byte_unless_generated() {
    let model = ModelDir::single(&bytes_file(&[("x", 1)]));
    model.put("tokenizer.json", &[7; 3000]);
    model.put("sub/vocab.txt", b"v");
    model.put("recipe.yaml", b"old");
    model.put("pytorch_model.bin", b"no");
    let source = Source::open(model.path()).unwrap();
    let dir = tempdir().unwrap();
    let plan = OutputPlan { inputs: source.paths(), ..plan_in(dir.path()) };
    let writer = open(&plan);
    write_both(&writer);
    let finish = Finish {
        companions: source.companions().to_vec(),
        generated: vec![Generated { name: "recipe.yaml".to_owned(), bytes: b"new".to_vec() }],
        config: Some(b"{}\n".to_vec()),
        ..Finish::default()
    };
    let finished = writer.finish(&finish).unwrap();
    assert_eq!(finished.files, ["config.json", "model.safetensors", "recipe.yaml", "sub/vocab.txt", "tokenizer.json"]);
    assert_eq!(fs::read(plan.dir.join("tokenizer.json")).unwrap(), [7; 3000]);
    assert_eq!(fs::read(plan.dir.join("recipe.yaml")).unwrap(), b"new");
}

#[test]
fn a_generated_name_that_leaves_the_output_is_refused() {
    for name in ["../x", "/tmp/x", "", "a/../../x"] {
        let (_dir, plan) = unfinished();
        let generated = vec![Generated { name: name.to_owned(), bytes: Vec::new() }];
        let error = open(&plan).finish(&Finish { generated, ..Finish::default() }).unwrap_err();
        assert_eq!(error.class(), Class::Refused, "{name}: {error}");
        assert_at(&error, "out");
    }
}

#[test]
fn files_of_the_reference_writer_are_written_again_byte_for_byte() {
    let golden = |name: &str| testkit::goldens_dir("formats").join(name);
    let files = [
        golden("weights_w8a16.safetensors"),
        golden("packing.safetensors"),
        golden("converters.safetensors"),
        testkit::fixture("tiny-llama").join("model.safetensors"),
    ];
    for file in files {
        let model = ModelDir::single(&fs::read(&file).unwrap());
        let source = Source::open(model.path()).unwrap();
        let dir = tempdir().unwrap();
        // The order in the plan does not matter.
        let mut tensors: Vec<_> = source.tensors().map(|it| spec(&it.name, it.dtype, &it.shape)).collect();
        tensors.reverse();
        let shard = ShardPlan {
            file_name: "model.safetensors".to_owned(),
            tensors,
            metadata: source.shards()[0].metadata.clone(),
        };
        let plan = OutputPlan { shards: vec![shard], inputs: source.paths(), ..plan_in(dir.path()) };
        let writer = open(&plan);
        for entry in source.tensors() {
            writer.write_at(&entry.name, 0, &source.read(entry).unwrap()).unwrap();
        }
        let tensors = source.tensors().map(|it| it.name.clone()).collect();
        writer.commit(&[UnitCommit { name: "all".to_owned(), tensors, ..UnitCommit::default() }]).unwrap();
        finish(writer);
        let same = fs::read(plan.dir.join("model.safetensors")).unwrap() == fs::read(&file).unwrap();
        assert!(same, "{}", file.display());
    }
}

#[test]
fn every_dtype_is_written_and_read_back() {
    const NAMES: &[&str] = &[
        "BOOL",
        "F4",
        "F6_E2M3",
        "F6_E3M2",
        "U8",
        "I8",
        "F8_E5M2",
        "F8_E4M3",
        "F8_E8M0",
        "F8_E4M3FNUZ",
        "F8_E5M2FNUZ",
        "I16",
        "U16",
        "F16",
        "BF16",
        "I32",
        "U32",
        "F32",
        "C64",
        "F64",
        "I64",
        "U64",
    ];
    let dir = tempdir().unwrap();
    let mut plan = plan_in(dir.path());
    let dtype = |name: &&str| DType::from_safetensors_name(name).unwrap();
    plan.shards[0].tensors = NAMES.iter().map(|it| spec(it, dtype(it), &[2, 8])).collect();
    let writer = open(&plan);
    for name in NAMES {
        let bytes = vec![dtype(name).bits() as u8; dtype(name).byte_len(16).unwrap()];
        writer.write_at(name, 0, &bytes).unwrap();
        writer.commit(&[unit(name, None)]).unwrap();
    }
    finish(writer);
    let source = Source::open(&plan.dir).unwrap();
    assert_eq!(source.tensors().len(), NAMES.len());
    for entry in source.tensors() {
        assert_eq!(entry.dtype, dtype(&entry.name.as_str()));
        assert_eq!(source.read(entry).unwrap(), vec![entry.dtype.bits() as u8; entry.n_bytes() as usize]);
        let aligned = entry.dtype.bits() < 8 || entry.range.start.is_multiple_of(entry.dtype.bits() as u64 / 8);
        assert!(aligned, "{}", entry.name);
    }
}
