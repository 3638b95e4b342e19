//! Kill tests: a run that dies at any change of the file system, resumed, gives the same bytes.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::AtomicI64,
};

use compressed_tensors::DType;
use indexmap::IndexMap;
use serde_json::json;

use super::{Existing, Finish, Generated, Opened, OutputPlan, ShardPlan, TensorSpec, UnitCommit, Writer, disk::Disk};
use crate::{
    error::{Class, Error, ErrorKind, Result},
    source::{Companion, Source, Treatment},
};

fn spec(name: &str, dtype: DType, shape: &[usize]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), dtype, shape: shape.to_vec() }
}

fn plan(dir: &Path) -> OutputPlan {
    let shard = |idx: usize, tensors| ShardPlan {
        file_name: format!("model-0000{idx}-of-00002.safetensors"),
        tensors,
        metadata: IndexMap::from([("format".to_owned(), "pt".to_owned())]),
    };
    OutputPlan {
        dir: dir.join("out"),
        shards: vec![
            shard(1, vec![spec("a", DType::U8, &[5]), spec("b", DType::F32, &[3]), spec("empty", DType::I8, &[0])]),
            shard(2, vec![spec("c", DType::BF16, &[7])]),
        ],
        fingerprints: IndexMap::from([("source".to_owned(), "1".to_owned()), ("recipe".to_owned(), "2".to_owned())]),
        ..OutputPlan::default()
    }
}

fn data(name: &str, n_bytes: usize) -> Vec<u8> {
    (0..n_bytes).map(|it| it as u8 ^ name.as_bytes()[0]).collect()
}

fn companion(dir: &Path) -> Companion {
    let path = dir.join("tokenizer.json");
    fs::write(&path, b"{\"tokens\": []}").unwrap();
    Companion { name: "sub/tokenizer.json".to_owned(), path, treatment: Treatment::Copy }
}

/// What every run of the tests does: three units, one of them with a file of its own, then the end.
fn run(dir: &Path, plan: &OutputPlan, disk: Disk) -> Result<bool> {
    let Opened::Work(writer) = Writer::open_on(plan, disk)? else { return Ok(false) };
    let done: Vec<String> = writer.resumed().done.iter().map(|it| it.name.clone()).collect();
    for (unit, tensors) in [("first", vec![("a", 5), ("b", 12)]), ("second", vec![("c", 14), ("empty", 0)])] {
        if done.iter().any(|it| it == unit) {
            continue;
        }
        for (name, n_bytes) in &tensors {
            let bytes = data(name, *n_bytes);
            let (head, tail) = bytes.split_at(n_bytes / 2);
            // The second half first: the hash is completed from the file.
            writer.write_at(name, head.len() as u64, tail)?;
            writer.write_at(name, 0, head)?;
        }
        let tensors = tensors.iter().map(|it| it.0.to_owned()).collect();
        let snapshot = Some(json!({"seen": unit}));
        writer.commit(&[UnitCommit { name: unit.to_owned(), tensors, files: Vec::new(), snapshot }])?;
    }
    if !done.iter().any(|it| it == "third") {
        let mask = spec("mask", DType::U8, &[9]);
        let file_name = "model-third.safetensors";
        writer.write_unit_file(file_name, &IndexMap::new(), &[(&mask, &data("mask", 9))])?;
        let files = vec![file_name.to_owned()];
        writer.commit(&[UnitCommit { name: "third".to_owned(), files, ..UnitCommit::default() }])?;
    }
    let report = json!({"fingerprints": writer.fingerprint_record()});
    let finish = Finish {
        companions: vec![companion(dir)],
        generated: vec![Generated { name: "report.json".to_owned(), bytes: report.to_string().into_bytes() }],
        config: Some(b"{}\n".to_vec()),
        ..Finish::default()
    };
    writer.finish(&finish)?;
    Ok(true)
}

/// A disk without a fault.
fn lasting() -> Disk {
    failing_after(i64::MAX)
}

fn failing_after(n_changes: i64) -> Disk {
    Disk { fuse: Some(AtomicI64::new(n_changes)), ..Disk::default() }
}

/// Every file below a directory with its bytes.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(
                tree(&path).into_iter().map(|(it, bytes)| (Path::new(path.file_name().unwrap()).join(it), bytes)),
            );
        } else {
            out.insert(PathBuf::from(path.file_name().unwrap()), fs::read(&path).unwrap());
        }
    }
    out
}

fn expected() -> BTreeMap<PathBuf, Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(dir.path(), &plan(dir.path()), lasting()).unwrap());
    tree(&dir.path().join("out"))
}

/// A directory with a config must be a whole model at every moment.
fn check_no_half_model(out: &Path) {
    if out.join("config.json").exists() {
        let source = Source::open(out).unwrap();
        assert_eq!(source.tensors().len(), 5);
        for entry in source.tensors() {
            assert_eq!(source.read(entry).unwrap(), data(&entry.name, entry.n_bytes() as usize));
        }
    }
}

#[test]
fn a_run_that_dies_at_any_step_resumes_to_the_same_bytes() {
    let expected = expected();
    let mut n_deaths = 0;
    for n_changes in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path());
        match run(dir.path(), &plan, failing_after(n_changes)) {
            Ok(_) => break,
            Err(e) => assert!(matches!(e.class(), Class::Io | Class::CannotCreate), "{n_changes}: {e}"),
        }
        n_deaths += 1;
        check_no_half_model(&plan.dir);
        run(dir.path(), &plan, lasting()).unwrap_or_else(|e| panic!("resume after {n_changes}: {e}"));
        assert_eq!(tree(&plan.dir), expected, "after {n_changes} changes");
    }
    assert!(n_deaths > 50, "{n_deaths}");
}

#[test]
fn a_resumed_run_may_die_again_and_again() {
    let expected = expected();
    for step in [3, 7, 11] {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(dir.path());
        let mut n_changes = 1;
        while run(dir.path(), &plan, failing_after(n_changes)).is_err() {
            check_no_half_model(&plan.dir);
            n_changes += step;
        }
        assert_eq!(tree(&plan.dir), expected);
    }
}

#[test]
fn an_overwriting_run_that_dies_at_any_step_leaves_no_half_model() {
    let expected = expected();
    for n_changes in (0..).step_by(3) {
        let dir = tempfile::tempdir().unwrap();
        let mut plan = plan(dir.path());
        run(dir.path(), &plan, lasting()).unwrap();
        plan.existing = Existing::Overwrite;
        let died = run(dir.path(), &plan, failing_after(n_changes)).is_err();
        check_no_half_model(&plan.dir);
        run(dir.path(), &plan, lasting()).unwrap();
        assert_eq!(tree(&plan.dir), expected, "after {n_changes} changes");
        if !died {
            break;
        }
    }
}

#[test]
fn a_full_disk_is_an_io_error_with_path_and_number_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path());
    let error = (0..).map(|it| run(dir.path(), &plan, failing_after(it))).find_map(|it| {
        let error: Error = it.err()?;
        (error.class() == Class::Io).then_some(error)
    });
    let error = error.unwrap();
    let ErrorKind::Io { source, .. } = error.kind() else { panic!("{error}") };
    assert_eq!(source.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()));
    assert!(error.place().path.is_some());
    assert!(run(dir.path(), &plan, lasting()).unwrap());
}

#[test]
fn the_same_plan_finished_is_already_done() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path());
    assert!(run(dir.path(), &plan, lasting()).unwrap());
    assert!(!run(dir.path(), &plan, lasting()).unwrap());
}

#[test]
fn data_reaches_the_disk_before_its_name_and_the_config_is_last() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path());
    let Opened::Work(writer) = Writer::open_on(&plan, lasting()).unwrap() else { panic!("not done yet") };
    let begun = writer.disk.trace.lock().unwrap().len();
    for (name, n_bytes) in [("a", 5), ("b", 12), ("c", 14)] {
        writer.write_at(name, 0, &data(name, n_bytes)).unwrap();
    }
    let unit = |name: &str, tensors: &[&str]| UnitCommit {
        name: name.to_owned(),
        tensors: tensors.iter().map(|it| (*it).to_owned()).collect(),
        ..UnitCommit::default()
    };
    // Two units in one commit share its syncs.
    writer.commit(&[unit("first", &["a", "b"]), unit("second", &["c"])]).unwrap();
    let trace = writer.disk.trace.lock().unwrap()[begun..].to_vec();
    let changes: Vec<&str> = trace.iter().map(String::as_str).filter(|it| !it.starts_with("open")).collect();
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let expected = [
        format!("write to {one}"),
        format!("write to {one}"),
        format!("write to {two}"),
        format!("sync {one}"),
        format!("sync {two}"),
        "set the length of journal.jsonl".to_owned(),
        "write to journal.jsonl".to_owned(),
        "sync journal.jsonl".to_owned(),
    ];
    assert_eq!(changes, expected);

    writer.commit(&[unit("third", &["empty"])]).unwrap();
    writer.finish_in_place(&Finish { config: Some(b"{}".to_vec()), ..Finish::default() }).unwrap();
    let trace = writer.disk.trace.lock().unwrap().clone();
    let at = |what: &str| trace.iter().rposition(|it| it == what).unwrap_or_else(|| panic!("{what}: {trace:?}"));
    assert!(at(&format!("rename {two}")) < at("create config.json"));
    assert!(at("rename model.safetensors.index.json") < at("create config.json"));
    assert_eq!(trace[at("create config.json") - 1], "sync out");
    let end: Vec<&str> = trace[at("create config.json")..].iter().map(String::as_str).collect();
    assert_eq!(
        end,
        [
            "create config.json",
            "write to config.json",
            "sync config.json",
            "rename config.json",
            "sync out",
            "remove plan.json",
            "remove .llmc",
            "sync out"
        ]
    );
}
