//! What a oneshot run reports: of every module, of what went wrong, and of the output in the end.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};

use crate::{
    checkpoints::{assert_same_contents, change_tensors},
    command::{run, verify},
    oneshot::{Cell, MODELS, PARTITIONS, RECIPES, token_rows},
};

fn report(out: &Path) -> Value {
    serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap()
}

/// The modules of a report by name, without what differs from run to run.
fn facts(report: &Value) -> BTreeMap<String, Value> {
    let modules = report["modules"].as_array().unwrap().iter().cloned();
    modules
        .map(|mut it| {
            assert!(it["seconds"].as_f64().unwrap() > 0.0, "{it}");
            it.as_object_mut().unwrap().remove("seconds");
            (it["module"].as_str().unwrap().to_owned(), it)
        })
        .collect()
}

fn texts(list: &Value) -> String {
    list.as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_module_is_reported_with_what_became_of_it() {
    let cell = Cell::new(&MODELS[0], &RECIPES[0], PARTITIONS[0]);
    let out = cell.out("out");
    cell.run(&out, "").expect(0);
    let report = report(&out);
    let verdict = verify(&out, &cell.source);
    let modules = facts(&report);
    assert_eq!(modules.len(), 14);
    for check in verdict["modules"].as_array().unwrap() {
        let it = &modules[check["module"].as_str().unwrap()];
        let (told, found) = (it["weight"]["sqnr_db"].as_f64().unwrap(), check["sqnr_db"].as_f64().unwrap());
        assert!((told - found).abs() < 0.05, "{told} of {found}: {it}");
        let output = it["output"]["relative_error"].as_f64().unwrap();
        assert!(output > 1e-4 && output < 0.5, "{it}");
        assert_eq!(it["tokens"], MODELS[0].tokens * MODELS[0].samples);
        assert!(it["loss"].as_f64().unwrap() > 0.0);
        assert_eq!(
            (&it["scheme"], &it["dampening_frac"], &it["attempts"], &it["dead_columns"], &it["fallback"]),
            (&json!("int4 g16"), &json!(0.01), &json!(1), &json!(0), &Value::Null)
        );
        assert_eq!(it["shape"], check["shape"]);
    }
    let of = |key: &str| modules.values().map(|it| it[key].as_u64().unwrap()).sum::<u64>();
    let saved = report["input_bytes"].as_u64().unwrap() - report["output_bytes"].as_u64().unwrap();
    assert_eq!(of("input_bytes") - of("output_bytes"), saved);
    for phase in ["setup", "listen", "change", "commit", "propagate", "copy", "verify"] {
        assert!(report["phases"][phase].is_f64(), "{phase}");
    }
    assert!(report["peak_resident_bytes"].as_u64().unwrap() > 1 << 20);
    let inputs = &report["inputs"];
    assert_eq!(
        inputs["shards"]["model.safetensors"],
        fs::metadata(cell.source.join("model.safetensors")).unwrap().len()
    );
    assert_eq!(inputs["recipe"], fs::read_to_string(out.join("recipe.yaml")).unwrap());
    for hash in ["source_hash", "data_hash", "recipe_hash"] {
        assert_eq!(inputs[hash].as_str().unwrap().len(), 64, "{hash}");
    }
}

#[test]
fn a_resumed_run_reports_the_modules_that_were_done_before_it_was_killed() {
    // With smoothing beside, and without data.
    for recipe in [&RECIPES[1], &RECIPES[3]] {
        let cell = Cell::new(&MODELS[2], recipe, PARTITIONS[0]);
        let (whole, out) = (cell.out("whole"), cell.out("out"));
        cell.run(&whole, "").expect(0);
        while !cell.kill_after(&out, 5, 0) {
            fs::remove_dir_all(&out).unwrap();
        }
        cell.run(&out, "").expect(0);
        let (whole, resumed) = (report(&whole), report(&out));
        assert!(resumed["n_resumed"].as_u64().unwrap() >= 5);
        assert_eq!(facts(&whole), facts(&resumed));
        assert_eq!(whole["said"], resumed["said"]);
        assert_eq!(whole["said"].as_array().unwrap().is_empty(), recipe.name == RECIPES[3].name);
    }
}

#[test]
fn a_damping_that_was_raised_a_fallback_and_dead_columns_are_warned_of() {
    let cell = Cell::new(&MODELS[0], &RECIPES[0], PARTITIONS[0]);
    // Fewer tokens than columns have no factor without any damping.
    let text = fs::read_to_string(&cell.recipe).unwrap();
    fs::write(&cell.recipe, text.replace("\"ignore\"", "\"dampening_frac\":0.0,\"ignore\"")).unwrap();
    change_tensors(&cell.source, |tensors| {
        let norm = tensors.get_mut("model.layers.0.input_layernorm.weight").unwrap();
        norm.2[4 * 5..4 * 6].fill(0);
    });
    let out = cell.out("out");
    let data = cell.data.clone().unwrap();
    let rows = token_rows(&MODELS[0], 3);
    fs::write(&data, rows.lines().next().unwrap()).unwrap();
    cell.run(&out, "").expect(0);
    let report = report(&out);
    let modules = facts(&report);
    let raised = &modules["model.layers.1.mlp.down_proj"];
    assert_eq!((&raised["attempts"], &raised["fallback"]), (&json!(2), &Value::Null));
    assert_eq!(raised["dampening_frac"], json!(0.001));
    let query = &modules["model.layers.0.self_attn.q_proj"];
    assert_eq!(query["dead_columns"], 1);
    let warnings = texts(&report["warnings"]);
    assert!(warnings.contains("the damping was raised to 0.001 of the mean diagonal: model.layers."), "{warnings}");
    assert!(warnings.contains("3 modules: some input channels are always 0"), "{warnings}");
    assert_eq!(verify(&out, &cell.source)["faults"], json!([]));
}

#[test]
fn experts_are_calibrated_as_the_policy_says() {
    let model = &MODELS[1];
    let cell = Cell::new(model, &RECIPES[0], PARTITIONS[0]);
    let n_tokens = (model.tokens * model.samples) as u64;
    let tokens = |name: &str, options: &str| -> BTreeMap<String, (u64, Value)> {
        let out = cell.out(name);
        cell.run(&out, options).expect(0);
        let report = report(&out);
        let experts = facts(&report).into_iter().filter(|it| it.0.contains(".experts."));
        experts.map(|(name, it)| (name, (it["tokens"].as_u64().unwrap(), it["fallback"].clone()))).collect()
    };
    let all = tokens("all", "");
    assert!(all.values().all(|it| *it == (n_tokens, Value::Null)), "{all:?}");
    let routed = tokens("routed", "--experts routed");
    assert!(routed.values().all(|it| it.1.is_null()), "{routed:?}");
    // The router chooses two of the six experts for each token.
    let gates = routed.iter().filter(|it| it.0.contains("layers.1.") && it.0.contains("gate_proj"));
    assert_eq!(gates.map(|it| it.1.0).sum::<u64>(), 2 * n_tokens);
    let fallen = tokens("fallen", "--experts routed_then_fallback --min-expert-tokens 50");
    assert!(fallen.values().any(|it| it.0 < 50) && fallen.values().any(|it| it.0 >= 50), "{fallen:?}");
    for (name, (seen, fallback)) in &fallen {
        assert_eq!(*fallback == json!("too few tokens"), *seen < 50, "{name}: {seen} {fallback}");
    }
    let warnings = texts(&report(&cell.out("fallen"))["warnings"]);
    assert!(warnings.contains("rounded to nearest instead (too few tokens): model.layers."), "{warnings}");
    assert_eq!(report(&cell.out("fallen"))["experts"], "routed_then_fallback below 50 tokens");
}

#[test]
fn statistics_that_are_not_finite_stop_the_run_with_the_modules_name() {
    for recipe in [&RECIPES[0], &RECIPES[1], &RECIPES[2]] {
        let cell = Cell::new(&MODELS[0], recipe, PARTITIONS[0]);
        change_tensors(&cell.source, |tensors| {
            let norm = tensors.get_mut("model.layers.1.post_attention_layernorm.weight").unwrap();
            norm.2.chunks_exact_mut(4).for_each(|it| it.copy_from_slice(&3e38f32.to_le_bytes()));
        });
        let out = cell.out("out");
        let ran = cell.run(&out, "").expect(65);
        assert!(ran.err.contains("model.layers.1.") && ran.err.contains("finite"), "{}: {}", recipe.name, ran.err);
        assert!(!out.join("config.json").exists());
    }
}

#[test]
fn the_output_is_verified_in_the_end_unless_that_is_not_wanted() {
    let cell = Cell::new(&MODELS[0], &RECIPES[0], PARTITIONS[0]);
    let (out, later) = (cell.out("out"), cell.out("later"));
    let ran = cell.run(&out, "").expect(0);
    assert!(ran.out.contains("  verified sound, "), "{}", ran.out);
    assert_eq!(report(&out)["verification"]["sound"], true);
    cell.run(&later, "--no-verify").expect(0);
    assert!(report(&later)["verification"].is_null());
    assert_same_contents(&out, &later);
    // The same command without the option catches up on it, once.
    let ran = cell.run(&later, "").expect(0);
    assert!(ran.out.contains("nothing was done"));
    let verified = report(&later);
    assert_eq!((&verified["verification"]["n_compressed"], &verified["status"]), (&json!(14), &json!("done")));
    let again = cell.run(&later, "--format json").expect(0).json();
    assert_eq!((&again["status"], &again["modules"]), (&json!("already_done"), &verified["modules"]));
}

#[test]
fn an_output_that_no_engine_can_run_ends_in_exit_code_3_with_the_fault_in_the_report() {
    let cell = Cell::new(&MODELS[0], &RECIPES[3], PARTITIONS[0]);
    // Groups of 24 activations do not divide 32 inputs.
    let channel = json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel"});
    let groups = json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "group", "group_size": 24, "dynamic": true});
    let group = json!({"targets": ["Linear"], "weights": channel, "input_activations": groups});
    let modifier = json!({"ignore": ["lm_head"], "config_groups": {"group_0": group}});
    let recipe = json!({"quant_stage": {"quant_modifiers": {"QuantizationModifier": modifier}}});
    fs::write(&cell.recipe, recipe.to_string()).unwrap();
    let out = cell.out("out");
    let ran = cell.run(&out, "").expect(3);
    assert!(ran.out.contains("fault: model.layers.0.self_attn.q_proj: activation groups of 24"), "{}", ran.out);
    let report = report(&out);
    assert_eq!(report["verification"]["sound"], false);
    assert_eq!(report["verification"]["faults"][0]["kind"], "unservable");
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("verification found 14 faults"));
    // Said again, the same command knows of it.
    cell.run(&out, "").expect(3);
}

#[test]
fn a_report_of_another_command_is_no_report_of_a_run() {
    let cell = Cell::new(&MODELS[0], &RECIPES[3], PARTITIONS[0]);
    let out = cell.out("out");
    let [source, path] = [&cell.source, &out].map(|it| it.to_str().unwrap());
    run(&["report", path]).expect(66).says(&["report.json"]);
    run(&["model-free-ptq", source, path, "--scheme", "FP8_DYNAMIC"]).expect(0);
    run(&["report", path]).expect(65).says(&["report.json", "no report of `llmcompressor oneshot`"]);
    assert!(!out.join("report.html").exists());
}
