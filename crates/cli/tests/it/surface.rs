//! The verbs that only show something, the help, and wrong command lines.

use tempfile::tempdir;

use crate::{
    checkpoints::{config_of, llama_sized, read_tensors},
    command::{command, quantize, run},
};

const VERBS: [&str; 10] =
    ["oneshot", "model-free-ptq", "convert", "eval", "inspect", "verify", "report", "recipe", "list", "explain"];

#[test]
fn inspect_folds_layers_that_look_alike() {
    let dir = tempdir().unwrap();
    let source = llama_sized(3, 128, 256).write(&dir.path().join("in"));
    let output = dir.path().join("out");
    quantize(&source, &output, "--scheme W4A16").expect(0);
    let path = output.to_str().unwrap();
    let folded = run(&["inspect", path]).expect(0);
    assert_eq!(folded.err, "");
    assert!(folded.out.contains("0-2 (3 alike)"), "{}", folded.out);
    assert_eq!(folded.out.matches("q_proj").count(), 1, "{}", folded.out);
    assert!(folded.out.contains("W4A16 (pack-quantized)"), "{}", folded.out);
    let all = run(&["inspect", path, "--all"]).expect(0);
    assert_eq!(all.out.matches("q_proj").count(), 3, "{}", all.out);
    let json = run(&["inspect", path, "--format", "json"]).expect(0).json();
    let text = json.to_string();
    for name in ["model.layers.2.self_attn.q_proj", "W4A16", "pack-quantized"] {
        assert!(text.contains(name), "{name} is not in {text}");
    }
    run(&["inspect", "nowhere/at/all"]).expect(66);
}

#[test]
fn every_listed_name_can_be_explained() {
    for topic in ["schemes", "formats", "converters", "observers", "modifiers"] {
        let entries = run(&["list", topic, "--format", "json"]).expect(0).json();
        let human = run(&["list", topic]).expect(0);
        assert!(!entries.as_array().unwrap().is_empty());
        for entry in entries.as_array().unwrap() {
            let name = entry["name"].as_str().unwrap();
            assert!(human.out.contains(name), "{topic} {name}");
            assert!(!entry["summary"].as_str().unwrap().is_empty(), "{topic} {name}");
            let page = run(&["explain", name]).expect(0);
            assert!(page.out.contains(name), "{}", page.out);
        }
    }
    run(&["explain", "W4A61"]).expect(2).says(&["W4A61", "W4A16"]);
}

#[test]
fn exit_codes_are_listed_as_they_are() {
    let codes = run(&["list", "exit-codes"]).expect(0);
    for code in ["0", "2", "3", "65", "66", "73", "74", "75", "77", "130", "143"] {
        assert!(codes.out.lines().any(|it| it.split_whitespace().next() == Some(code)), "{code}: {}", codes.out);
    }
}

#[test]
fn wrong_command_lines_exit_with_2_and_say_how_it_goes() {
    for line in [
        "",
        "compress",
        "model-free-ptq",
        "model-free-ptq a",
        "model-free-ptq a b",
        "model-free-ptq a b --scheme",
        "model-free-ptq a b --scheme W4A16 --config c.json",
        "model-free-ptq a b --scheme W4A16 --threads many",
        "model-free-ptq a b --scheme W4A16 --max-memory much",
        "model-free-ptq a b --scheme W4A16 --quiet --verbose",
        "convert a b",
        "verify",
        "inspect",
        "list",
        "list things",
        "explain",
    ] {
        let ran = run(&line.split_whitespace().collect::<Vec<_>>()).expect(2);
        assert!(ran.err.contains("Usage: ") || ran.err.contains("--help"), "{line}: {}", ran.err);
        assert_eq!(ran.out, "", "{line}");
    }
}

#[test]
fn every_verb_has_help_that_documents_each_option() {
    let top = run(&["--help"]).expect(0);
    assert_eq!(top.err, "");
    for verb in VERBS {
        assert!(top.out.contains(verb), "{}", top.out);
        let long = run(&[verb, "--help"]).expect(0).out;
        let short = run(&[verb, "-h"]).expect(0).out;
        assert!(long.len() >= short.len());
        assert!(long.contains(&format!("Usage: llmcompressor {verb}")), "{long}");
        // In the short form an option and its text share a line, or the text follows on the next.
        let lines: Vec<&str> = short.lines().collect();
        // Text that goes on in a column of its own may begin with an option's name.
        let is_option = |it: &str| it.trim_start().starts_with('-') && it.len() - it.trim_start().len() <= 6;
        for (idx, line) in lines.iter().enumerate().filter(|it| is_option(it.1)) {
            let after = line.trim().split_once("  ").map(|it| it.1.trim());
            let next = lines.get(idx + 1).map(|it| it.trim()).filter(|it| !it.starts_with('-'));
            assert!(after.or(next).is_some_and(|it| !it.is_empty()), "{verb}: `{line}` says nothing");
        }
    }
    let version = run(&["--version"]).expect(0);
    assert!(version.out.starts_with("llmcompressor "), "{}", version.out);
}

#[test]
fn a_reader_that_stops_early_is_no_fault() {
    let mut child = command(["list", "schemes"]).spawn().unwrap();
    drop(child.stdout.take());
    let status = child.wait_with_output().unwrap();
    assert_eq!(status.status.code(), Some(0));
    assert!(status.stderr.is_empty(), "{}", String::from_utf8_lossy(&status.stderr));
}

#[test]
fn several_groups_come_from_a_config_and_the_first_that_matches_wins() {
    let dir = tempdir().unwrap();
    let source = llama_sized(1, 128, 256).write(&dir.path().join("in"));
    let weights = |bits: u32| serde_json::json!({"num_bits": bits, "type": "int", "strategy": "group", "group_size": 32, "symmetric": true});
    let config = serde_json::json!({
        "quant_method": "compressed-tensors",
        "config_groups": {
            "small": {"targets": ["re:.*mlp.*"], "weights": weights(4)},
            "large": {"targets": ["Linear"], "weights": weights(8)},
        },
        "ignore": ["re:.*down_proj"],
    });
    let file = dir.path().join("groups.json");
    std::fs::write(&file, config.to_string()).unwrap();
    let output = dir.path().join("out");
    quantize(&source, &output, &format!("--config {}", file.display())).expect(0);
    let verdict = crate::command::verify_sound(&output, &source, 15.0);
    assert_eq!(verdict["n_compressed"], 6);
    let section = &config_of(&output)["quantization_config"];
    assert_eq!(section["format"], "pack-quantized");
    assert_eq!(section["config_groups"].as_object().unwrap().len(), 2);
    assert_eq!(section["ignore"][0], "re:.*down_proj");
    let made = read_tensors(&output);
    let n_words = |it: &str| made[&format!("model.layers.0.{it}.weight_packed")].1[1];
    assert_eq!((n_words("mlp.up_proj"), n_words("self_attn.q_proj")), (128 * 4 / 32, 128 * 8 / 32));
}
