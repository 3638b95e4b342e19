//! Peak memory of whole runs on tensors larger than the ceiling.

use std::{
    fs,
    io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write},
    process::Command,
};

use rustix::io::ioctl_fionbio;
use serde_json::json;
use tempfile::tempdir;

use crate::{
    command::{command, convert_command, quantize, quantize_command},
    sparse::{self, Sparse},
};

/// What a run may hold at most, whatever it works on.
const CEILING_MIB: u64 = 512;

/// Runs to the end and returns the highest resident set, in KiB, after the line of stderr that begins with `phase`.
///
/// The kernel keeps the peak itself, and only of a process that lives: this one cannot print its result, and so
/// cannot end, before the pipe that it prints to is emptied.
#[track_caller]
fn peak_kib(mut command: Command, phase: &str) -> u64 {
    let (mut reader, writer) = full_pipe();
    let mut child = command.stdout(writer).spawn().unwrap();
    // The command holds the other end too.
    drop(command);
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let said: Vec<String> = stderr.by_ref().map(Result::unwrap).take_while(|it| !is_end_of(phase, it)).collect();
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:"));
    io::copy(&mut reader, &mut io::sink()).unwrap();
    assert!(child.wait().unwrap().success(), "{said:?}");
    line.and_then(|it| it.split_whitespace().next()?.parse().ok()).unwrap()
}

fn is_end_of(phase: &str, line: &str) -> bool {
    line.starts_with(phase) && line.ends_with("GB/s")
}

/// A pipe that takes nothing before something is read from it.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    ioctl_fionbio(&writer, true).unwrap();
    while writer.write(&[b' '; 4096]).is_ok() {}
    ioctl_fionbio(&writer, false).unwrap();
    (reader, writer)
}

#[track_caller]
fn stays_below(ceiling_mib: u64, phase: &str, command: Command) {
    let peak = peak_kib(command, phase);
    assert!(peak <= ceiling_mib << 10, "{peak} KiB, allowed are {ceiling_mib} MiB");
}

#[test]
fn a_matrix_larger_than_the_ceiling_streams_through_it() {
    let dir = tempdir().unwrap();
    let weight = Sparse::new("model.layers.0.mlp.up_proj.weight", &[5 << 16, 1024]);
    let source = sparse::write(&dir.path().join("in"), &json!({"model_type": "llama"}), &[vec![weight]]);
    let output = dir.path().join("out");
    // Two passes, the first for the global scale.
    stays_below(CEILING_MIB, "compressing: ", quantize_command(&source, &output, "--scheme NVFP4A16"));
    let mut verify = command(["verify", "--source"]);
    verify.arg(&source).arg(&output);
    stays_below(CEILING_MIB, "comparing: ", verify);
}

#[test]
fn experts_of_every_layout_stream_through_a_small_part_of_them() {
    // An expert of Llama 4 has 5120 inputs and 2 times 8192 outputs: 160 MiB.
    let (c, i) = (5120, 8192);
    let dir = tempdir().unwrap();
    for (model_type, gate_up) in
        [("qwen3_moe", [1, 2 * i, c]), ("llama4_text", [1, c, 2 * i]), ("gpt_oss", [1, c, 2 * i])]
    {
        let source = dir.path().join(model_type);
        let tensor = Sparse::new("model.layers.0.mlp.experts.gate_up_proj", &gate_up);
        sparse::write(&source, &json!({"model_type": model_type}), &[vec![tensor]]);
        let output = dir.path().join(format!("{model_type}-out"));
        stays_below(
            128,
            "compressing: ",
            quantize_command(&source, &output, "--scheme W2A16 --threads 2 --max-memory 32MiB"),
        );
    }
}

#[test]
fn the_widest_matrix_of_an_8b_model_is_exported_without_an_option() {
    let dir = tempdir().unwrap();
    let weight = Sparse::new("model.layers.0.mlp.up_proj.weight", &[14336, 4096]);
    let source = sparse::write(&dir.path().join("in"), &json!({"model_type": "llama"}), &[vec![weight]]);
    let (packed, exported) = (dir.path().join("packed"), dir.path().join("exported"));
    quantize(&source, &packed, "--scheme W4A16").expect(0);
    stays_below(CEILING_MIB, "converting: ", convert_command(&packed, &exported, "--to auto-awq"));
}
