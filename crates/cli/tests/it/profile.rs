//! `oneshot --profile`: the instruction set is part of what determines the bytes.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    checkpoints::{assert_same_contents, read_tensors},
    oneshot::{Cell, MODELS, PARTITIONS, RECIPES},
};

/// FNV-1a of what a portable run of GPTQ, and of AWQ, on the small Llama writes and says of its losses, on every machine.
const PORTABLE: [u64; 2] = [0xd36d_478d_f2fc_f09b, 0xb476_09f2_cd82_5cd1];

fn cell(recipe: usize) -> Cell {
    Cell::new(&MODELS[0], &RECIPES[recipe], PARTITIONS[0])
}

fn report(out: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(out.join("report.json")).unwrap()).unwrap()
}

/// Of all tensors by name, and of the losses to their last bits.
fn digest(out: &Path) -> u64 {
    let mut tensors: Vec<_> = read_tensors(out).into_iter().collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let mut bytes: Vec<u8> = tensors.into_iter().flat_map(|(name, it)| [name.into_bytes(), it.2].concat()).collect();
    let report = report(out);
    for module in report["modules"].as_array().unwrap() {
        bytes.extend(module["loss"].as_f64().map_or(0, f64::to_bits).to_le_bytes());
    }
    for mapping in report["said"].as_array().unwrap().iter().flat_map(|it| it["data"].as_array().into_iter().flatten())
    {
        bytes.extend(mapping["loss"].as_f64().map_or(0, f64::to_bits).to_le_bytes());
    }
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn a_portable_run_gives_the_same_bytes_and_losses_on_every_machine() {
    for (recipe, expected) in [0, 2].into_iter().zip(PORTABLE) {
        let cell = cell(recipe);
        let out = cell.out("out");
        cell.run(&out, "--profile portable").expect(0);
        assert_eq!(report(&out)["fingerprints"]["fingerprints"]["numerics profile"], "portable");
        assert_eq!(format!("{:#x}", digest(&out)), format!("{expected:#x}"));
    }
}

#[test]
fn a_run_goes_on_under_the_profile_that_it_began_with() {
    let cell = cell(0);
    let (whole, out) = (cell.out("whole"), cell.out("out"));
    cell.run(&whole, "--profile portable").expect(0);
    assert!(cell.kill_with("--profile portable", &out, 2, 0));
    let other = cell.out("other");
    cell.run(&other, "").expect(0);
    // Where nothing is faster, the default is portable.
    if report(&other)["fingerprints"]["fingerprints"]["numerics profile"] != "portable" {
        cell.run(&out, "").expect(77).says(&["numerics profile", "--profile NAME"]);
    }
    cell.run(&out, "--profile portable").expect(0);
    assert_same_contents(&whole, &out);
}

#[test]
fn avx512_gives_the_bytes_of_avx2_and_what_the_processor_lacks_is_refused() {
    let cell = cell(0);
    let [narrow, wide] = ["avx2", "avx512"].map(|name| (cell.run(&cell.out(name), &format!("--profile {name}")), name));
    for (ran, name) in [&narrow, &wide] {
        assert!(ran.code == 0 || (ran.code == 77 && ran.err.contains(name) && !cell.out(name).exists()), "{}", ran.err);
    }
    if wide.0.code == 0 {
        assert_same_contents(&cell.out("avx2"), &cell.out("avx512"));
    }
    cell.run(&cell.out("none"), "--profile sse9").expect(2).says(&["sse9", "avx512-vnni"]);
}
