//! `oneshot` end to end: every recipe on every model under both partitions gives the same bytes whatever happens on the way.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use testkit::{fixture, goldens_dir};

use crate::{
    checkpoints::{assert_same_contents, change_tensors, config_of, read_tensors},
    command::{Ran, command, quantize, run, verify},
    interruption::signal,
};

/// A model with what its recipes have to know.
pub(crate) struct Model {
    name: &'static str,
    /// Columns of a group, and of an NVFP4 group what cannot be divided.
    group: usize,
    ignored_by_nvfp4: &'static [&'static str],
    pub(crate) tokens: usize,
    pub(crate) samples: usize,
    vocabulary: usize,
}

pub(crate) const MODELS: [Model; 3] = [
    Model { name: "llama", group: 16, ignored_by_nvfp4: &[], tokens: 24, samples: 6, vocabulary: 128 },
    Model {
        name: "qwen3_moe",
        group: 8,
        ignored_by_nvfp4: &["re:.*experts.*down_proj"],
        tokens: 24,
        samples: 6,
        vocabulary: 128,
    },
    Model { name: "tiny-llama", group: 128, ignored_by_nvfp4: &[], tokens: 32, samples: 4, vocabulary: 2048 },
];

/// A recipe, and whether it needs data.
pub(crate) struct Recipe {
    pub(crate) name: &'static str,
    needs_data: bool,
    modifiers: fn(&Model) -> Value,
}

pub(crate) const RECIPES: [Recipe; 4] = [
    Recipe {
        name: "gptq_w4a16",
        needs_data: true,
        modifiers: |model| json!({"GPTQModifier": groups(json!(model.group), true, &["lm_head"])}),
    },
    Recipe {
        name: "smoothquant_gptq_w8a8",
        needs_data: true,
        modifiers: |_| {
            json!({
                "SmoothQuantModifier": {"smoothing_strength": 0.8},
                "GPTQModifier": {"targets": ["Linear"], "ignore": ["lm_head"], "scheme": "W8A8"},
            })
        },
    },
    Recipe {
        name: "awq_w4a16_asym",
        needs_data: true,
        modifiers: |model| {
            json!({
                "AWQModifier": {"n_grid": 3},
                "QuantizationModifier": groups(json!(model.group), false, &["lm_head"]),
            })
        },
    },
    Recipe {
        name: "rtn_nvfp4a16",
        needs_data: false,
        modifiers: |model| {
            let ignore = [&["lm_head"], model.ignored_by_nvfp4].concat();
            json!({"QuantizationModifier": {"targets": ["Linear"], "ignore": ignore, "scheme": "NVFP4A16"}})
        },
    },
];

/// Beside each value, modifiers hear that of a run in which nothing has been changed.
const CORRECTED: Recipe = Recipe {
    name: "corrected_w4a16",
    needs_data: true,
    modifiers: |model| {
        let mut fields = groups(json!(model.group), true, &["lm_head"]);
        fields["input_correction"] = json!(0.5);
        fields["refine_rounds"] = json!(2);
        json!({"GPTQModifier": fields})
    },
};

pub(crate) const PARTITIONS: [&str; 2] = ["before_targets", "compat"];

/// Pipelines beside those that modifiers ask for.
const PIPELINES: [&str; 3] = ["basic", "layer_sequential", "independent"];

fn groups(group_size: Value, symmetric: bool, ignore: &[&str]) -> Value {
    let weights =
        json!({"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group_size});
    json!({"ignore": ignore, "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}})
}

/// Source, recipe and data of one cell.
pub(crate) struct Cell {
    dir: TempDir,
    pub(crate) source: PathBuf,
    pub(crate) recipe: PathBuf,
    pub(crate) data: Option<PathBuf>,
    partition: &'static str,
    pipeline: Option<&'static str>,
}

impl Cell {
    pub(crate) fn new(model: &Model, recipe: &Recipe, partition: &'static str) -> Self {
        let dir = tempdir().unwrap();
        let source = dir.path().join("source");
        copy_model(model.name, &source);
        let path = dir.path().join("recipe.yaml");
        let text = json!({"quant_stage": {"quant_modifiers": (recipe.modifiers)(model)}}).to_string();
        fs::write(&path, text).unwrap();
        let data = recipe.needs_data.then(|| {
            let data = dir.path().join("data.jsonl");
            fs::write(&data, token_rows(model, 7)).unwrap();
            data
        });
        Self { dir, source, recipe: path, data, partition, pipeline: None }
    }

    pub(crate) fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, out: &Path, options: &str) -> Command {
        let mut command = command(["--quiet", "oneshot"]);
        command.arg(&self.source).arg("--recipe").arg(&self.recipe).arg("--out").arg(out);
        if let Some(data) = &self.data {
            command.arg("--data").arg(data);
        }
        command.args(["--partition", self.partition]).args(options.split_whitespace());
        command.args(self.pipeline.iter().flat_map(|it| ["--pipeline", it]));
        command
    }

    pub(crate) fn run(&self, out: &Path, options: &str) -> Ran {
        self.command(out, options).output().unwrap().into()
    }

    /// Starts a run and kills it once the journal has `lines` lines and `polls` more looks were taken; true where it was killed
    /// before it was done.
    pub(crate) fn kill_after(&self, out: &Path, lines: usize, polls: usize) -> bool {
        self.kill_with("", out, lines, polls)
    }

    /// As [`kill_after`](Self::kill_after), of a run with options.
    pub(crate) fn kill_with(&self, options: &str, out: &Path, lines: usize, polls: usize) -> bool {
        let journal = out.join(".llmc").join("journal.jsonl");
        let mut child = self.command(out, &format!("{options} --threads 1")).spawn().unwrap();
        let mut left = polls;
        loop {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            let found = fs::read(&journal).map_or(0, |it| it.iter().filter(|byte| **byte == b'\n').count());
            if found >= lines && (lines > 0 || journal.exists()) {
                if left == 0 {
                    break;
                }
                left -= 1;
            }
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        !out.join("config.json").exists()
    }
}

/// Model and tokenizer without the files that only tests read.
fn copy_model(name: &str, to: &Path) {
    let from = if name == "tiny-llama" { fixture(name) } else { goldens_dir("models").join(name) };
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let file = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !["expected.safetensors", "modules.json", "written_fp8_dynamic.json"].contains(&file.as_str()) {
            fs::copy(&path, to.join(file)).unwrap();
        }
    }
}

/// Rows of token ids from a seed, of equal length.
pub(crate) fn token_rows(model: &Model, seed: u32) -> String {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as usize % model.vocabulary
    };
    let row = |_| json!({"input_ids": (0..model.tokens).map(|_| next()).collect::<Vec<_>>()}).to_string() + "\n";
    (0..model.samples).map(row).collect()
}

fn for_each_cell(mut check: impl FnMut(&Model, &Recipe, &Cell)) {
    for model in &MODELS {
        for recipe in &RECIPES {
            for partition in PARTITIONS {
                // Without data nothing is cut.
                if recipe.needs_data || partition == PARTITIONS[0] {
                    check(model, recipe, &Cell::new(model, recipe, partition));
                }
            }
        }
    }
    for (model, partition) in [(&MODELS[0], PARTITIONS[0]), (&MODELS[0], PARTITIONS[1]), (&MODELS[1], PARTITIONS[0])] {
        check(model, &CORRECTED, &Cell::new(model, &CORRECTED, partition));
    }
    // Two modifiers each, of which the second needs data in one recipe and none in the other.
    for recipe in &RECIPES[1..3] {
        for pipeline in PIPELINES {
            let cell = Cell::new(&MODELS[0], recipe, PARTITIONS[0]);
            check(&MODELS[0], recipe, &Cell { pipeline: Some(pipeline), ..cell });
        }
    }
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let mut n_killed = 0;
    for_each_cell(|model, recipe, cell| {
        let whole = cell.out("whole");
        cell.run(&whole, "").expect(0);
        assert_eq!(verify(&whole, &cell.source)["faults"], json!([]), "{} {}", model.name, recipe.name);
        assert!(config_of(&whole)["quantization_config"]["config_groups"]["group_0"].is_object());
        // Killed again and again: before the first commit, right after one, in the middle of what follows.
        let out = cell.out("killed");
        let points: &[(usize, usize)] =
            if model.name == "tiny-llama" { &[(3, 0), (12, 60)] } else { &[(0, 0), (1, 0), (4, 30), (8, 0), (11, 90)] };
        for &(lines, polls) in points {
            n_killed += usize::from(cell.kill_after(&out, lines, polls));
        }
        cell.run(&out, "").expect(0);
        assert_same_contents(&whole, &out);
    });
    assert!(n_killed >= 40, "only {n_killed} runs were killed before they were done");
}

#[test]
fn an_interrupted_run_finishes_its_step_and_the_same_command_goes_on() {
    let cell = Cell::new(&MODELS[2], &RECIPES[0], PARTITIONS[0]);
    let (whole, out) = (cell.out("whole"), cell.out("out"));
    cell.run(&whole, "").expect(0);
    let journal = out.join(".llmc").join("journal.jsonl");
    let n_units = || fs::read_to_string(&journal).map_or(0, |it| it.lines().count());
    // Before the first module is done, and twice later; what a run has written itself shows that it listens to signals.
    for more in [0, 1, 7] {
        let least = n_units() + more;
        let mut child = cell.command(&out, "--threads 1").spawn().unwrap();
        while !journal.exists() || n_units() < least {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
            std::thread::yield_now();
        }
        signal(child, "INT").expect(130).says(&["error: ", "same command"]);
        assert!(!out.join("config.json").exists() && n_units() >= least);
    }
    cell.run(&out, "").expect(0);
    assert_same_contents(&whole, &out);
}

#[test]
fn threads_memory_and_batch_windows_do_not_change_the_bytes() {
    for_each_cell(|_, _, cell| {
        let first = cell.out("first");
        cell.run(&first, "--threads 1").expect(0);
        let refused = cell.run(&cell.out("refused"), "--max-memory 1MiB").expect(77);
        let least = refused.err.split("--max-memory ").last().unwrap().trim().to_owned();
        // Without a ceiling each thread has windows of its own.
        let others = [
            "--threads 2".to_owned(),
            "--threads 4 --batch-window 3".to_owned(),
            "--threads 2 --max-memory 4GiB --batch-window 3".to_owned(),
            format!("--threads 4 --max-memory {least}"),
        ];
        for (idx, options) in others.iter().enumerate() {
            let other = cell.out(&format!("other-{idx}"));
            cell.run(&other, options).expect(0);
            assert_same_contents(&first, &other);
        }
    });
}

/// Tensors of a run of GPTQ on the small Llama.
fn weights_by(recipe: &Recipe, partition: &'static str, pipeline: Option<&'static str>) -> BTreeMap<String, Vec<u8>> {
    let cell = Cell { pipeline, ..Cell::new(&MODELS[0], recipe, partition) };
    cell.run(&cell.out("out"), "").expect(0);
    read_tensors(&cell.out("out")).into_iter().map(|(name, it)| (name, it.2)).collect()
}

#[test]
fn a_correction_changes_what_lies_behind_a_change_and_is_refused_behind_a_pass_of_another() {
    let (gptq, corrected) = (&RECIPES[0], &CORRECTED);
    let (first, last) = ("model.layers.0.self_attn.q_proj.weight_scale", "model.layers.1.mlp.down_proj.weight_packed");
    let plain = Recipe {
        modifiers: |model| {
            let mut fields = (CORRECTED.modifiers)(model);
            fields["GPTQModifier"]["input_correction"] = json!(0.0);
            fields
        },
        ..CORRECTED
    };
    for partition in PARTITIONS {
        let (plain, corrected) = (weights_by(&plain, partition, None), weights_by(corrected, partition, None));
        assert!(plain[first] == corrected[first] && plain[last] != corrected[last], "{partition}");
    }
    // Where the whole model is heard as it was, there is nothing to correct.
    assert!(weights_by(&plain, "compat", Some("basic")) == weights_by(corrected, "compat", Some("basic")));
    let refused = |modifiers, partition, code, says: &[&str]| {
        let cell = Cell::new(&MODELS[0], &Recipe { modifiers, ..*gptq }, partition);
        let out = cell.out("out");
        cell.run(&out, "").expect(code).says(says);
        assert!(!out.exists());
    };
    let behind = |model: &Model| {
        let corrected = (CORRECTED.modifiers)(model);
        json!({"AWQModifier": {"n_grid": 3}, "GPTQModifier": corrected["GPTQModifier"]})
    };
    refused(behind, "compat", 65, &["GPTQModifier", "the first of the recipe"]);
    let too_much = |model: &Model| {
        let mut fields = (CORRECTED.modifiers)(model);
        fields["GPTQModifier"]["input_correction"] = json!(1.5);
        fields
    };
    refused(too_much, "before_targets", 65, &["input_correction", "1.5", "from 0 to 1"]);
}

#[test]
fn pipelines_differ_in_what_modifiers_hear() {
    let (gptq, smooth) = (&RECIPES[0], &RECIPES[1]);
    let (first, last) = ("model.layers.0.self_attn.q_proj.weight_packed", "model.layers.1.mlp.down_proj.weight_packed");
    let (targets, layers) = (weights_by(gptq, "before_targets", None), weights_by(gptq, "compat", None));
    // A single modifier by itself is what it is alone, and there are no two passes of a layer to tell apart.
    assert!(weights_by(gptq, "before_targets", Some("independent")) == targets);
    assert!(weights_by(gptq, "before_targets", Some("layer_sequential")) == layers);
    // Of the whole model as it was, the first layer is the same and the last is not.
    let basic = weights_by(gptq, "before_targets", Some("basic"));
    assert!(basic[first] == targets[first] && basic[last] != targets[last] && basic[last] != layers[last]);
    assert!(weights_by(gptq, "compat", Some("basic")) == basic);
    // The second of two hears what the first has left everywhere, in its own wave alone, or nowhere.
    let both = [None, Some("independent"), Some("layer_sequential"), Some("basic")];
    let both = both.map(|it| weights_by(smooth, "compat", it));
    let last = "model.layers.1.mlp.up_proj.weight";
    for (idx, one) in both.iter().enumerate() {
        assert!(both[..idx].iter().all(|it| it[last] != one[last]), "{idx}");
    }
}

#[test]
fn statistics_gathered_once_serve_smoothing_and_gptq() {
    let of_smoothed = Recipe {
        name: "smoothquant_gptq_static",
        needs_data: true,
        modifiers: |_| {
            let weights = json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel"});
            let inputs = json!({"num_bits": 8, "type": "int", "symmetric": true, "strategy": "tensor"});
            let group = json!({"targets": ["Linear"], "weights": weights, "input_activations": inputs});
            json!({
                "SmoothQuantModifier": {"smoothing_strength": 0.8},
                "GPTQModifier": {"ignore": ["lm_head"], "config_groups": {"group_0": group}},
            })
        },
    };
    let passes = |recipe, partition| {
        let cell = Cell::new(&MODELS[0], recipe, partition);
        let out = cell.out("out");
        cell.run(&out, "").expect(0);
        assert_eq!(verify(&out, &cell.source)["faults"], json!([]));
        let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
        report["n_passes"].as_u64().unwrap()
    };
    // Two layers; one scale for all channels is found from inputs as they become, those of q, k, v and those of gate and up.
    for (partition, waves, smoothed) in [("before_targets", 2 * 4, 2 * 2), ("compat", 2, 2)] {
        assert_eq!(passes(&RECIPES[0], partition), waves);
        assert_eq!(passes(&RECIPES[1], partition), waves);
        assert_eq!(passes(&of_smoothed, partition), waves + smoothed);
    }
}

#[test]
fn the_log_has_time_tokens_loss_and_error_and_changes_no_byte() {
    let cell = Cell::new(&MODELS[0], &RECIPES[0], PARTITIONS[0]);
    let (silent, logged, logs) = (cell.out("silent"), cell.out("logged"), cell.out("logs"));
    cell.run(&silent, "").expect(0);
    cell.run(&logged, &format!("--log-dir {}", logs.display())).expect(0);
    assert_same_contents(&silent, &logged);
    let lines = fs::read_to_string(logs.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = lines.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    let of =
        |tag: &str| lines.iter().find(|it| it["tag"] == tag).unwrap_or_else(|| panic!("{tag} is not in {lines:?}"));
    let number = |tag: &str| of(tag)["value"].as_f64().unwrap();
    let module = "model.layers.1.mlp.down_proj";
    assert!(number(&format!("{module}/loss")) > 0.0);
    assert!((0.01..0.3).contains(&number(&format!("{module}/relative_error"))));
    assert_eq!(number(&format!("{module}/tokens")), 144.0);
    for tag in ["wave/tokens_per_second", "wave/listen_seconds", "wave/change_seconds"] {
        assert!(lines.iter().any(|it| it["tag"] == tag && it["value"].as_f64() > Some(0.0)), "{tag}");
    }
    assert!(of(&format!("{module}/loss"))["step"].as_i64() > of("model.layers.0.mlp.down_proj/loss")["step"].as_i64());
    let table = fs::read_to_string(logs.join("metrics.csv")).unwrap();
    assert!(table.starts_with("wall_time,step,tag,value\n") && table.lines().count() == lines.len() + 1);
    let is_event_file = |it: &fs::DirEntry| it.file_name().to_str().unwrap().starts_with("events.out.tfevents.");
    let events = fs::read_dir(&logs).unwrap().map(Result::unwrap).find(is_event_file).unwrap();
    assert!(fs::read(events.path()).unwrap().windows(module.len()).any(|it| it == module.as_bytes()));
    let inside = cell.out("refused");
    cell.run(&inside, &format!("--log-dir {}", inside.join("logs").display())).expect(2).says(&["--log-dir"]);
    assert!(!inside.exists());
}

#[test]
fn a_changed_recipe_data_file_or_source_is_refused_by_name() {
    let model = &MODELS[0];
    type Change = fn(&Cell);
    let changes: [(&str, Change); 4] = [
        ("recipe", |cell| {
            let text = fs::read_to_string(&cell.recipe).unwrap();
            fs::write(&cell.recipe, text.replace("\"symmetric\":true", "\"symmetric\":true,\"observer\":\"minmax\""))
                .unwrap();
        }),
        ("data", |cell| fs::write(cell.data.as_ref().unwrap(), token_rows(&MODELS[0], 8)).unwrap()),
        ("source", |cell| {
            let path = cell.source.join("config.json");
            let text = fs::read_to_string(&path).unwrap();
            fs::write(&path, text.replace("\"initializer_range\": 0.02", "\"initializer_range\": 0.03")).unwrap();
        }),
        ("settings", |_| {}),
    ];
    for (name, change) in changes {
        let cell = Cell::new(model, &RECIPES[0], PARTITIONS[0]);
        let out = cell.out("out");
        while !cell.kill_after(&out, 1, 0) {
            fs::remove_dir_all(&out).unwrap();
        }
        change(&cell);
        let cell = if name == "settings" { Cell { partition: PARTITIONS[1], ..cell } } else { cell };
        cell.run(&out, "").expect(77).says(&[name]);
        cell.run(&out, "--overwrite").expect(0);
    }
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_written() {
    let model = &MODELS[0];
    let cell = Cell::new(model, &RECIPES[0], PARTITIONS[0]);
    let out = cell.out("out");
    let (source, path) = (cell.source.to_str().unwrap(), out.to_str().unwrap());
    let recipe = cell.recipe.to_str().unwrap();
    run(&["oneshot", source, "--recipe", recipe, "--out", path]).expect(2).says(&["--data"]);
    run(&["oneshot", source, "--recipe", "absent.yaml", "--out", path]).expect(66).says(&["absent.yaml"]);
    run(&["oneshot", source, "--scheme", "W4A17", "--out", path]).expect(65).says(&["W4A17"]);
    fs::write(&cell.recipe, "quant_stage: {quant_modifiers: {GPTQModifier: {scheme: W8A16, targets: [Linaer]}}}")
        .unwrap();
    cell.run(&out, "").expect(65).says(&["Linaer", "Linear"]);
    fs::write(&cell.recipe, "quant_stage: {quant_modifiers: {GPTQModifer: {scheme: W8A16}}}").unwrap();
    cell.run(&out, "").expect(65).says(&["GPTQModifer", "GPTQModifier"]);
    assert!(!out.exists());
}

#[test]
fn gptq_keeps_the_fixtures_perplexity() {
    let dir = tempdir().unwrap();
    let (source, out) = (fixture("tiny-llama"), dir.path().join("out"));
    let recipe = dir.path().join("recipe.yaml");
    fs::write(&recipe, "quant_stage: {quant_modifiers: {GPTQModifier: {ignore: [lm_head], scheme: W4A16}}}").unwrap();
    let paths = [&source, &recipe, &fixture("calib.jsonl"), &out].map(|it| it.to_str().unwrap().to_owned());
    let [source, recipe, data, out] = &paths;
    run(&[
        "oneshot",
        source,
        "--recipe",
        recipe,
        "--data",
        data,
        "--out",
        out,
        "--seq-len",
        "256",
        "--num-samples",
        "24",
    ])
    .expect(0);
    let judged = |model: &str| {
        let data = fixture("eval.jsonl");
        let data = data.to_str().unwrap();
        let ran = run(&["eval", model, "--data", data, "--seq-len", "256", "--max-samples", "12", "--format", "json"]);
        ran.expect(0).json()["perplexity"].as_f64().unwrap()
    };
    let (dense, compressed) = (judged(source), judged(out));
    assert!(compressed < dense * 1.012, "{compressed} of {dense}");
}

/// Rows of the small Llama, cut at `n_tokens`, of which the first `n_counted` count.
fn masked_rows(n_tokens: usize, n_counted: usize) -> String {
    let rows = token_rows(&MODELS[0], 7);
    let masked = rows.lines().map(|line| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        row["input_ids"].as_array_mut().unwrap().truncate(n_tokens);
        row["loss_mask"] = (0..n_tokens).map(|it| u8::from(it < n_counted)).collect();
        row.to_string() + "\n"
    });
    masked.collect()
}

#[test]
fn under_a_loss_mask_awq_counts_only_the_tokens_that_it_marks() {
    for batch in ["", "--batch-size 2"] {
        let run_on = |data: String, options: &str| {
            let cell = Cell::new(&MODELS[0], &RECIPES[2], PARTITIONS[0]);
            fs::write(cell.data.as_ref().unwrap(), data).unwrap();
            cell.run(&cell.out("out"), &format!("{batch} {options}")).expect(0);
            let report = fs::read(cell.out("out").join("report.json")).unwrap();
            let mut said = serde_json::from_slice::<Value>(&report).unwrap()["said"].take();
            for entry in said.as_array_mut().unwrap().iter_mut().flat_map(|it| it["data"].as_array_mut().unwrap()) {
                // How far rounding moves outputs is seen on tokens of all kinds.
                entry.as_object_mut().unwrap().shift_remove("outputs_moved").unwrap();
            }
            (read_tensors(&cell.out("out")), said)
        };
        // What comes after the counted tokens reaches none of them.
        let masked = run_on(masked_rows(24, 16), "--use-loss-mask");
        assert!(masked == run_on(masked_rows(16, 16), ""), "{batch}");
        assert!(masked.1 != run_on(masked_rows(24, 16), "").1, "{batch}");
    }
    let cell = Cell::new(&MODELS[0], &RECIPES[2], PARTITIONS[0]);
    cell.run(&cell.out("out"), "--use-loss-mask").expect(65).says(&["use_loss_mask", "a column `loss_mask`"]);
    // Data of other masks is other data.
    fs::write(cell.data.as_ref().unwrap(), masked_rows(24, 16)).unwrap();
    cell.run(&cell.out("out"), "--use-loss-mask").expect(0);
    fs::write(cell.data.as_ref().unwrap(), masked_rows(24, 17)).unwrap();
    cell.run(&cell.out("out"), "--use-loss-mask").expect(77).says(&["--overwrite"]);
    let experts = Cell::new(&MODELS[1], &RECIPES[2], PARTITIONS[0]);
    fs::write(experts.data.as_ref().unwrap(), masked_rows(24, 16)).unwrap();
    // Refused before anything is written: what is there stays.
    experts.run(&experts.out("out"), "").expect(0);
    let before = read_tensors(&experts.out("out"));
    experts
        .run(&experts.out("out"), "--overwrite --use-loss-mask")
        .expect(65)
        .says(&["a loss mask cannot follow tokens into experts"]);
    assert!(read_tensors(&experts.out("out")) == before);
    assert!(!experts.out("out").join(".llmc").exists());
}

/// The golden model with one weight for embedding and head.
pub(crate) fn tied_llama(to: &Path) {
    copy_model("llama", to);
    change_tensors(to, |tensors| drop(tensors.remove("lm_head.weight").unwrap()));
    let mut config = config_of(to);
    config["tie_word_embeddings"] = json!(true);
    fs::write(to.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn a_tied_head_gets_a_weight_of_its_own_where_it_or_the_embedding_changes() {
    let dir = tempdir().unwrap();
    let source = dir.path().join("source");
    tied_llama(&source);
    let (head, embedding) = ("lm_head", "model.embed_tokens");
    let data = dir.path().join("data.jsonl");
    fs::write(&data, token_rows(&MODELS[0], 7)).unwrap();
    let weights = json!({"num_bits": 8, "strategy": "group", "group_size": 16, "symmetric": true});
    let groups = |targets: Value| json!({"group_0": {"targets": targets, "weights": weights}});
    // Modifier, targets, ignored ones, and which of both are compressed.
    let cases = [
        ("QuantizationModifier", json!(["Linear"]), json!([head]), false, false),
        ("QuantizationModifier", json!(["Linear"]), json!([]), true, false),
        ("GPTQModifier", json!(["Linear"]), json!([]), true, false),
        ("QuantizationModifier", json!(["Embedding"]), json!([]), false, true),
        ("QuantizationModifier", json!(["Embedding", "Linear"]), json!([head]), false, true),
        ("QuantizationModifier", json!(["Embedding", "Linear"]), json!([]), true, true),
    ];
    for (idx, (modifier, targets, ignore, head_changes, embedding_changes)) in cases.into_iter().enumerate() {
        let fields = json!({"config_groups": groups(targets), "ignore": ignore});
        let recipe = dir.path().join("recipe.yaml");
        let stage = json!({"quant_stage": {"quant_modifiers": {modifier: fields}}});
        fs::write(&recipe, stage.to_string()).unwrap();
        let out = dir.path().join(format!("out-{idx}"));
        let [model, file, to, rows] = [&source, &recipe, &out, &data].map(|it| it.to_str().unwrap());
        run(&["oneshot", model, "--recipe", file, "--out", to, "--data", rows]).expect(0);
        assert_eq!(verify(&out, &source)["faults"], json!([]), "case {idx}");
        let tensors = read_tensors(&out);
        let config = config_of(&out);
        let is_parted = head_changes || embedding_changes;
        assert_eq!(config["tie_word_embeddings"], json!(!is_parted), "case {idx}");
        for (module, changes) in [(head, head_changes), (embedding, embedding_changes)] {
            let has = |local: &str| tensors.contains_key(&format!("{module}.{local}"));
            assert_eq!(has("weight_packed") && has("weight_scale"), changes, "case {idx}: {module}");
            assert_eq!(has("weight"), !changes && (is_parted || module == embedding), "case {idx}: {module}");
        }
        if !head_changes && embedding_changes {
            assert_eq!(tensors["lm_head.weight"], read_tensors(&source)["model.embed_tokens.weight"], "case {idx}");
        }
        // The head is no longer what the embedding is, and is judged by its own weight.
        let judged = |model: &str| {
            let ran = run(&[
                "eval",
                model,
                "--token-ids",
                rows_as_ids(&data, dir.path()).to_str().unwrap(),
                "--format",
                "json",
            ]);
            ran.expect(0).json()["perplexity"].as_f64().unwrap()
        };
        let (dense, compressed) = (judged(model), judged(to));
        assert!((compressed / dense - 1.0).abs() < 0.05, "case {idx}: {compressed} of {dense}");
        if embedding_changes {
            change_tensors(&out, |tensors| tensors.retain(|name, _| !name.starts_with(head)));
            let text = fs::read_to_string(out.join("config.json")).unwrap();
            let text = text.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
            fs::write(out.join("config.json"), text).unwrap();
            let verdict = run(&["verify", to]).expect(3).out;
            assert!(verdict.contains(embedding) && verdict.contains("no engine can tie them"), "{verdict}");
        }
    }
}

/// The rows of a file of `input_ids` as one list of lists.
fn rows_as_ids(data: &Path, dir: &Path) -> PathBuf {
    let rows = fs::read_to_string(data).unwrap();
    let rows: Vec<Value> =
        rows.lines().map(|it| serde_json::from_str::<Value>(it).unwrap()["input_ids"].take()).collect();
    let path = dir.join("ids.json");
    fs::write(&path, Value::Array(rows).to_string()).unwrap();
    path
}

#[test]
fn an_embedding_that_is_the_head_too_is_refused_without_calibration() {
    let dir = tempdir().unwrap();
    let (source, out) = (dir.path().join("source"), dir.path().join("out"));
    tied_llama(&source);
    let options = "--scheme W8A16 --group-size 16 --no-default-ignore";
    quantize(&source, &out, options).expect(77).says(&["model.embed_tokens", "output head", "oneshot"]);
    assert!(!out.join("config.json").exists());
    let ran = quantize(&source, &out, &format!("{options} --allow-unservable")).expect(0);
    assert!(ran.err.contains("warning: `model.embed_tokens`"), "{}", ran.err);
    let verdict = run(&["verify", out.to_str().unwrap()]).expect(3).out;
    assert!(verdict.contains("no engine can tie them"), "{verdict}");
}

#[test]
fn a_scheme_alone_is_a_recipe_that_gives_the_same_bytes_again() {
    let cases = [
        ("W8A8", &MODELS[0], &["SmoothQuantModifier", "GPTQModifier"][..]),
        ("W4A16", &MODELS[2], &["GPTQModifier", "NormGainModifier"]),
    ];
    for (scheme, model, modifiers) in cases {
        let cell = Cell::new(model, &RECIPES[0], PARTITIONS[0]);
        let (first, again) = (cell.out("first"), cell.out("again"));
        let data = cell.data.as_ref().unwrap();
        let run = |option: &str, value: &Path, out: &Path, threads: &str| {
            let mut command = command(["oneshot"]);
            command.arg(&cell.source).arg(option).arg(value).arg("--data").arg(data).arg("--out").arg(out);
            let ran: Ran = command.args(["--threads", threads]).output().unwrap().into();
            ran.expect(0).out
        };
        let printed = run("--scheme", Path::new(scheme), &first, "1");
        let recipe = fs::read_to_string(first.join("recipe.yaml")).unwrap();
        let corrected = (scheme == "W4A16").then_some(&"input_correction");
        for text in modifiers.iter().chain(&["scale_search", "refine_rounds"]).chain(corrected) {
            assert!(recipe.contains(text) && printed.contains(text), "{text}: {printed}");
        }
        let report: Value = serde_json::from_slice(&fs::read(first.join("report.json")).unwrap()).unwrap();
        assert_eq!(report["modifiers"], json!(modifiers));
        let modules = report["modules"].as_array().unwrap();
        let errors: Vec<[f64; 2]> =
            modules.iter().filter_map(|it| Some([it["refined"][0].as_f64()?, it["refined"][1].as_f64()?])).collect();
        assert_eq!(errors.len(), modules.len());
        assert!(errors.iter().all(|it| it[1] < it[0]), "{errors:?}");
        // A recipe without them is written without them, so that llm-compressor reads it.
        let plain = cell.out("plain");
        cell.run(&plain, "").expect(0);
        let plain = fs::read_to_string(plain.join("recipe.yaml")).unwrap();
        assert!(!plain.contains("scale_search") && !plain.contains("refine_rounds"), "{plain}");
        assert!(!plain.contains("input_correction"), "{plain}");
        run("--recipe", &first.join("recipe.yaml"), &again, "3");
        assert_same_contents(&first, &again);
        assert_eq!(verify(&first, &cell.source)["faults"], json!([]));
    }
}
