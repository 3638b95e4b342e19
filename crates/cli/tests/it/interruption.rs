//! Runs that are killed, stopped or out of space: what they leave, and that the same command ends in the same bytes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    thread,
};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::{
    checkpoints::{assert_same_contents, contents, llama},
    command::{Ran, quantize, quantize_command, verify_sound},
    sparse::{self, Sparse},
};

/// A search on one thread: slow enough to be met at work.
const SLOW: &str = "--scheme W2A16 --observer memoryless_mse --threads 1 --format json";

struct Scene {
    dir: TempDir,
}

impl Scene {
    /// A source of `n_shards` times `n_modules` modules of 16 MiB; a run commits whenever it has done 256 MiB.
    fn new(n_shards: usize, n_modules: usize) -> Self {
        let dir = tempdir().unwrap();
        let module = |idx: usize| Sparse::new(&format!("model.layers.{idx}.up_proj.weight"), &[4096, 2048]);
        let shard = |idx: usize| (idx * n_modules..(idx + 1) * n_modules).map(module).collect();
        let shards: Vec<Vec<Sparse>> = (0..n_shards).map(shard).collect();
        sparse::write(&dir.path().join("in"), &json!({"model_type": "llama"}), &shards);
        Self { dir }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("in")
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn work(&self, file: &str) -> PathBuf {
        self.output().join(".llmc").join(file)
    }

    fn run(&self, options: &str) -> Ran {
        quantize(&self.source(), &self.output(), options)
    }

    /// Starts a run and returns it once it holds the output, which is before its first weight.
    fn start(&self) -> Child {
        let mut child = quantize_command(&self.source(), &self.output(), SLOW).spawn().unwrap();
        let pid = child.id().to_string();
        let holder = || fs::read_to_string(self.work("lock")).unwrap_or_default();
        wait(&mut child, || holder().split_whitespace().next() == Some(&pid));
        child
    }

    /// Units that are committed.
    fn n_committed(&self) -> usize {
        fs::read_to_string(self.work("journal.jsonl")).map_or(0, |it| it.lines().count())
    }

    fn has_shards_in_place(&self) -> bool {
        let names = fs::read_dir(self.output()).unwrap().map(|it| it.unwrap().file_name());
        names.into_iter().any(|it| it.to_str().unwrap().ends_with(".safetensors"))
    }

    /// Fails where a loader could take what is there for a model.
    #[track_caller]
    fn is_no_model(&self) {
        assert!(!self.output().join("config.json").exists());
        assert!(self.work("plan.json").exists());
    }

    /// Gives the command again, and compares with a run that nothing stopped; returns how many units were kept.
    #[track_caller]
    fn ends_in_the_same_bytes(&self, options: &str) -> u64 {
        self.run(options).expect(0);
        let clean = self.dir.path().join("clean");
        quantize(&self.source(), &clean, &SLOW.replace("--threads 1", "--threads 2")).expect(0);
        assert_same_contents(&clean, &self.output());
        assert!(!self.work("").exists());
        let report: Value = serde_json::from_slice(&fs::read(self.output().join("report.json")).unwrap()).unwrap();
        report["n_resumed"].as_u64().unwrap()
    }
}

/// Waits for `condition`, or for the end of `child`.
fn wait(child: &mut Child, condition: impl Fn() -> bool) -> bool {
    while child.try_wait().unwrap().is_none() {
        if condition() {
            return true;
        }
        thread::yield_now();
    }
    false
}

pub(crate) fn signal(child: Child, name: &str) -> Ran {
    let sent = Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
    child.wait_with_output().unwrap().into()
}

#[test]
fn a_killed_run_goes_on_and_ends_in_the_same_bytes() {
    let scene = Scene::new(3, 17);
    type Moment = fn(&Scene) -> bool;
    // Before the plan is written, after it, within the second batch, within the third.
    let moments: [(Moment, usize); 4] = [
        (|_| true, 0),
        (|it| it.work("plan.json").exists(), 0),
        (|it| it.n_committed() >= 16, 16),
        (|it| it.n_committed() >= 32, 32),
    ];
    for (moment, n_least) in moments {
        let mut child = scene.start();
        assert!(wait(&mut child, || moment(&scene)), "it ended before it could be killed");
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None);
        assert!(scene.n_committed() >= n_least, "{} of {n_least}", scene.n_committed());
        assert!(!scene.output().join("config.json").exists());
    }
    // While files are put in place; it may be faster.
    let mut child = scene.start();
    wait(&mut child, || scene.has_shards_in_place());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(scene.ends_in_the_same_bytes(SLOW) >= 32);
}

#[test]
fn a_run_that_is_told_to_stop_does_and_keeps_what_it_has() {
    let scene = Scene::new(1, 12);
    for (name, code) in [("INT", 130), ("TERM", 143), ("HUP", 75), ("INT", 130)] {
        signal(scene.start(), name).expect(code).says(&["error: ", "same command"]);
        scene.is_no_model();
    }
    // Threads and memory are no part of the plan.
    scene.ends_in_the_same_bytes(&format!("{} --max-memory 128MiB", SLOW.replace("--threads 1", "--threads 2")));
}

#[test]
fn an_unfinished_output_takes_no_other_source_and_no_other_command() {
    let scene = Scene::new(1, 6);
    signal(scene.start(), "INT").expect(130);
    let other = SLOW.replace("W2A16", "W3A16");
    scene.run(&other).expect(77).says(&["out", "`scheme` changed", "--overwrite"]);
    scene.run(&format!("{SLOW} --max-shard-size 5MB")).expect(77).says(&["`layout` changed"]);
    scene.run(&format!("{SLOW} --allow-non-finite")).expect(77).says(&["`settings` changed"]);
    let tokenizer = scene.source().join("tokenizer.json");
    fs::write(&tokenizer, "{\"version\": 2}").unwrap();
    scene.run(SLOW).expect(77).says(&["`source` changed", "--overwrite"]);
    scene.is_no_model();
    scene.run(&format!("{SLOW} --overwrite")).expect(0);
    assert_eq!(fs::read(scene.output().join("tokenizer.json")).unwrap(), fs::read(tokenizer).unwrap());
    verify_sound(&scene.output(), &scene.source(), 0.0);
}

#[test]
fn a_weight_that_changed_since_the_run_stopped_is_refused() {
    let scene = Scene::new(2, 3);
    signal(scene.start(), "INT").expect(130);
    let shard = scene.source().join("model-00002-of-00002.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&shard, bytes).unwrap();
    scene.run(SLOW).expect(77).says(&["`source` changed", "--overwrite"]);
    scene.is_no_model();
}

#[test]
fn a_second_run_on_the_same_output_names_the_first() {
    let scene = Scene::new(1, 6);
    let first = scene.start();
    let pid = first.id().to_string();
    scene.run(SLOW).expect(73).says(&["another run holds the output", &pid]);
    scene.run(&format!("{SLOW} --overwrite")).expect(73).says(&[&pid]);
    signal(first, "INT").expect(130);
    // The lock that is left is nobody's.
    scene.run(SLOW).expect(0);
    verify_sound(&scene.output(), &scene.source(), 0.0);
}

/// Runs with files limited to some blocks of at most 1024 bytes: a write beyond them fails as on a full disk.
fn quantize_within(blocks: usize, source: &Path, output: &Path, options: &str) -> Ran {
    let job = quantize_command(source, output, options);
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\"", &blocks.to_string()]);
    limited.arg(job.get_program()).args(job.get_args()).env("HF_HUB_OFFLINE", "1").env_remove("RUST_LOG");
    limited.output().unwrap().into()
}

#[test]
fn a_disk_that_fills_up_stops_the_run_and_the_same_command_goes_on() {
    const OPTIONS: &str = "--scheme W4A16 --format json";
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    fs::write(source.join("tokenizer.json"), "7".repeat(4 << 20)).unwrap();
    let (output, clean) = (dir.path().join("out"), dir.path().join("clean"));
    // The shards do not fit: nothing has been computed yet.
    let ran = quantize_within(8, &source, &output, OPTIONS);
    ran.expect(73).says(&["model.safetensors", "File too large"]);
    assert!(!output.join("config.json").exists());
    // The weights fit, the last file beside them does not.
    let ran = quantize_within(1024, &source, &output, OPTIONS);
    ran.expect(74).says(&["tokenizer.json", "File too large"]);
    assert!(!output.join("config.json").exists() && output.join(".llmc/plan.json").exists());
    let report = quantize(&source, &output, OPTIONS).expect(0).json();
    assert!(report["n_resumed"].as_u64().unwrap() > 7, "{report}");
    quantize(&source, &clean, OPTIONS).expect(0);
    assert_same_contents(&clean, &output);
}

#[test]
fn an_output_that_no_disk_could_hold_is_refused_with_both_numbers() {
    let dir = tempdir().unwrap();
    let weight = |idx: usize| Sparse::new(&format!("model.layers.{idx}.up_proj.weight"), &[1 << 30, 1 << 11]);
    let shards: Vec<Vec<Sparse>> = (0..256).map(|idx| vec![weight(idx)]).collect();
    let source = sparse::write(&dir.path().join("in"), &json!({"model_type": "llama"}), &shards);
    let output = dir.path().join("out");
    // 256 times 2 TiB of 8 bits each.
    let ran = quantize(&source, &output, "--scheme W8A8").expect(73);
    let ran = ran.says(&["the output needs 56", "the disk has"]);
    assert!(ran.out.is_empty());
    assert!(!output.exists() || contents(&output).is_empty());
}
