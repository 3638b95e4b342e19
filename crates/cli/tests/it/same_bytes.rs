//! What is written depends on neither threads nor memory.

use tempfile::tempdir;

use crate::{
    checkpoints::{Checkpoint, Tensor, assert_same_contents, config_of, llama_sized, read_tensors},
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

#[test]
fn where_shards_are_cut_changes_no_tensor() {
    let dir = tempdir().unwrap();
    let source = model().write(&dir.path().join("in"));
    for scheme in ["W4A16", "NVFP4A16"] {
        let whole = dir.path().join(format!("{scheme}-whole"));
        quantize(&source, &whole, &format!("--scheme {scheme} --threads 1")).expect(0);
        for size in ["10KB", "100KB", "1GB"] {
            let cut = dir.path().join(format!("{scheme}-{size}"));
            let options = format!("--scheme {scheme} --threads 4 --max-memory 2MiB --max-shard-size {size}");
            quantize(&source, &cut, &options).expect(0);
            assert_eq!(config_of(&whole), config_of(&cut));
            let (a, b) = (read_tensors(&whole), read_tensors(&cut));
            let differing: Vec<_> = a.keys().chain(b.keys()).filter(|it| a.get(*it) != b.get(*it)).collect();
            assert!(differing.is_empty(), "{scheme} {size}: {differing:?}");
            verify_sound(&cut, &source, 14.0);
        }
    }
}
