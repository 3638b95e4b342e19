//! Runs the built command.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// The result that `--format json` printed.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stderr: {}\nstdout: {}", self.err, self.out);
        self
    }

    /// Fails unless stderr has all of `texts`.
    #[track_caller]
    pub(crate) fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.err.contains(text), "`{text}` is not in: {}", self.err);
        }
        self
    }
}

impl From<Output> for Ran {
    fn from(it: Output) -> Self {
        Self {
            code: it.status.code().unwrap_or(-1),
            out: String::from_utf8(it.stdout).unwrap(),
            err: String::from_utf8(it.stderr).unwrap(),
        }
    }
}

/// The command with an environment that decides nothing.
pub(crate) fn command<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_llmcompressor"));
    command.args(arguments).env_remove("RUST_LOG").env("HF_HUB_OFFLINE", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub(crate) fn run(arguments: &[&str]) -> Ran {
    command(arguments).output().unwrap().into()
}

/// `model-free-ptq` with `options`, separated by blanks.
pub(crate) fn quantize(source: &Path, output: &Path, options: &str) -> Ran {
    quantize_command(source, output, options).output().unwrap().into()
}

pub(crate) fn quantize_command(source: &Path, output: &Path, options: &str) -> Command {
    two_paths("model-free-ptq", source, output, options)
}

/// `convert` with `options`, separated by blanks.
pub(crate) fn convert(source: &Path, output: &Path, options: &str) -> Ran {
    convert_command(source, output, options).output().unwrap().into()
}

pub(crate) fn convert_command(source: &Path, output: &Path, options: &str) -> Command {
    two_paths("convert", source, output, options)
}

/// `verify --source`, as a verdict.
#[track_caller]
pub(crate) fn verify(output: &Path, source: &Path) -> Value {
    let (output, source) = (output.to_str().unwrap(), source.to_str().unwrap());
    let ran = run(&["verify", output, "--source", source, "--format", "json"]);
    assert!(ran.code == 0 || ran.code == 3, "{ran:?}");
    let verdict = ran.json();
    assert_eq!(verdict["sound"], Value::Bool(ran.code == 0));
    verdict
}

/// Fails unless `output` is sound and no farther from `source` than `least_db`.
#[track_caller]
pub(crate) fn verify_sound(output: &Path, source: &Path, least_db: f64) -> Value {
    let verdict = verify(output, source);
    assert_eq!(verdict["faults"], serde_json::json!([]));
    for module in verdict["modules"].as_array().unwrap() {
        let db = module["sqnr_db"].as_f64().unwrap_or(f64::INFINITY);
        assert!(db >= least_db, "{module}");
    }
    verdict
}

fn two_paths(verb: &str, source: &Path, output: &Path, options: &str) -> Command {
    let mut command = command([verb]);
    command.arg(source).arg(output).args(options.split_whitespace());
    command
}
