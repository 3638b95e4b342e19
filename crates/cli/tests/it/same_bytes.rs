//! What is written depends on neither threads nor memory.

use tempfile::tempdir;

use crate::{
    checkpoints::{Checkpoint, Tensor, assert_same_contents, llama_sized},
    command::{quantize, verify_sound},
};

/// Tall enough for several slabs of the smallest size, and ragged against blocks of 128.
fn model() -> Checkpoint {
    let mut model = llama_sized(1, 256, 384);
    model.shards[0].push(Tensor::bf16("model.layers.0.extra_proj.weight", &[1000, 256]));
    model
}

#[test]
fn threads_and_memory_do_not_change_the_bytes() {
    let dir = tempdir().unwrap();
    let source = model().write(&dir.path().join("in"));
    for scheme in ["W4A16", "W4A16_ASYM", "FP8_BLOCK", "NVFP4A16"] {
        let first = dir.path().join(format!("{scheme}-1"));
        quantize(&source, &first, &format!("--scheme {scheme} --threads 1")).expect(0);
        verify_sound(&first, &source, 14.0);
        let others = [
            "--threads 2",
            "--threads 4",
            "--threads 8",
            "--threads 3 --max-memory 2MiB",
            "--threads 2 --max-memory 1GiB",
        ];
        for (idx, options) in others.into_iter().enumerate() {
            let other = dir.path().join(format!("{scheme}-other-{idx}"));
            quantize(&source, &other, &format!("--scheme {scheme} {options}")).expect(0);
            assert_same_contents(&first, &other);
        }
    }
}

#[test]
fn an_observer_gives_the_same_bytes_on_any_number_of_threads() {
    let dir = tempdir().unwrap();
    let source = model().write(&dir.path().join("in"));
    let run = |name: &str, threads: usize| {
        let output = dir.path().join(name);
        let options = format!("--scheme W4A16 --observer memoryless_mse --threads {threads} --max-memory {threads}MiB");
        quantize(&source, &output, &options).expect(0);
        output
    };
    assert_same_contents(&run("a", 2), &run("b", 7));
}
