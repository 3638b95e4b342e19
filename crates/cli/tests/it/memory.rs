//! Peak memory of whole runs on tensors larger than the ceiling.

use std::{
    fs,
    io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write},
    process::Command,
};

use rustix::io::ioctl_fionbio;
use serde_json::{Value, json};
use tempfile::tempdir;
use testkit::fixture;

use crate::{
    checkpoints::{Checkpoint, Tensor},
    command::{Ran, command, convert_command, quantize, quantize_command},
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
    line.starts_with(phase) && line.ends_with("/s")
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

/// Config and tensors of a Llama with `layers` layers, widths `[C, I, V]`.
fn llama(layers: usize, [c, i, v]: [usize; 3]) -> (Value, Vec<(String, Vec<usize>)>) {
    let text = fs::read(fixture("tiny-llama").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    let fields = [("num_hidden_layers", layers), ("hidden_size", c), ("intermediate_size", i), ("vocab_size", v)];
    fields.into_iter().for_each(|(field, value)| config[field] = json!(value));
    [("num_attention_heads", 4), ("num_key_value_heads", 4), ("head_dim", c / 4)]
        .into_iter()
        .for_each(|(field, value)| config[field] = json!(value));
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![v, c])];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        ["q_proj", "k_proj", "v_proj", "o_proj"].iter().for_each(|it| add(&format!("self_attn.{it}"), &[c, c]));
        ["gate_proj", "up_proj"].iter().for_each(|it| add(&format!("mlp.{it}"), &[i, c]));
        add("mlp.down_proj", &[c, i]);
        ["input_layernorm", "post_attention_layernorm"].iter().for_each(|it| add(it, &[c]));
    }
    tensors.extend([("model.norm.weight".to_owned(), vec![c]), ("lm_head.weight".to_owned(), vec![v, c])]);
    (config, tensors)
}

#[test]
fn a_model_larger_than_the_ceiling_is_judged_within_it() {
    const MIB: u64 = 144;
    let dir = tempdir().unwrap();
    let (config, tensors) = llama(40, [512, 1536, 1024]);
    let n_bytes: usize = tensors.iter().map(|(_, shape)| 2 * shape.iter().product::<usize>()).sum();
    assert!(n_bytes as u64 > MIB << 20, "{n_bytes}");
    let tensors: Vec<Sparse> = tensors.iter().map(|(name, shape)| Sparse::new(name, shape)).collect();
    let model = sparse::write(&dir.path().join("model"), &config, &[tensors]);
    let ids = dir.path().join("ids.json");
    fs::write(&ids, json!([(0..24).collect::<Vec<_>>(), (50..70).collect::<Vec<_>>()]).to_string()).unwrap();
    let judge = |options: &[&str]| {
        let mut command = command(["eval", "--token-ids"]);
        command.arg(&ids).arg(&model).args(options);
        command
    };
    let ceiling = format!("{MIB}MiB");
    stays_below(MIB, "evaluating: ", judge(&["--max-memory", &ceiling]));
    assert!(peak_kib(judge(&[]), "evaluating: ") > MIB << 10, "without a ceiling all weights stay");
}

#[test]
fn four_times_the_samples_take_no_more_memory_where_activations_spill() {
    let dir = tempdir().unwrap();
    let (config, tensors) = llama(2, [256, 256, 2048]);
    let tensors = tensors.iter().map(|(name, shape)| Tensor::bf16(name, shape)).collect();
    let model = Checkpoint::single(config, tensors).write(&dir.path().join("model"));
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(fixture("tiny-llama").join(file), model.join(file)).unwrap();
    }
    let recipe = dir.path().join("recipe.yaml");
    let modifier = json!({"GPTQModifier": {"targets": "Linear", "ignore": ["lm_head"], "scheme": "W4A16"}});
    fs::write(&recipe, json!({"quant_stage": {"quant_modifiers": modifier}}).to_string()).unwrap();
    let data = dir.path().join("data.jsonl");
    let row = |row: usize| json!({"input_ids": (0..512).map(|i| (i * 7 + row * 13 + i * i) % 256).collect::<Vec<_>>()});
    fs::write(&data, (0..64).map(|it| row(it).to_string() + "\n").collect::<String>()).unwrap();
    let calibrate = |samples: &str, ceiling: &str| {
        let mut command = command(["oneshot", "--seq-len", "512", "--no-verify", "--num-samples", samples]);
        command.arg(&model).arg("--recipe").arg(&recipe).arg("--data").arg(&data).args(["--max-memory", ceiling]);
        command.arg("--out").arg(dir.path().join(format!("out-{samples}-{ceiling}")));
        command
    };
    let refused = Ran::from(calibrate("64", "1MiB").output().unwrap()).expect(77);
    let least: u64 = refused.err.split("--max-memory ").last().unwrap().trim().parse().unwrap();
    let peak = |samples: &str, ceiling: u64| peak_kib(calibrate(samples, &ceiling.to_string()), "compressing: ");
    let ceiling = least + (8 << 20);
    let (few, many) = (peak("16", ceiling), peak("64", ceiling));
    let all = peak("64", 4 << 30);
    // What flows from wave to wave of 64 samples takes 16 MiB a value.
    assert!(many <= few + (8 << 10), "{many} KiB after {few} KiB");
    assert!(many <= ceiling >> 10, "{many} KiB, allowed are {} KiB", ceiling >> 10);
    assert!(all > few + (16 << 10), "what fits is not spilled");
}
