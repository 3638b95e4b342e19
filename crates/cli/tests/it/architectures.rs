//! `oneshot` on every architecture: names on disk, experts that lie in one tensor or under other names, what loads in the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};
use testkit::{Goldens, goldens_dir};

use crate::{
    checkpoints::{change_tensors, config_of, read_tensors},
    command::{Ran, run, verify},
};

/// The class of its linears is one of its own, which the reference takes for `Linear` and stores densely beside scales.
const DERIVED: &str = "falcon";
/// All its linears are transposed, so that the reference quantizes none.
const TRANSPOSED: &str = "gpt2";
/// The reference cannot split its experts.
const UNWRITTEN: &str = "llama4_text";

/// A model's config and weights, data for it, and a recipe.
struct Scene {
    dir: TempDir,
    source: PathBuf,
    data: PathBuf,
    rows: PathBuf,
}

impl Scene {
    fn new(model: &str) -> Self {
        let dir = tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(goldens_dir("models").join(model).join(file), source.join(file)).unwrap();
        }
        let data = dir.path().join("data.jsonl");
        let mut state = 5u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % 128
        };
        let ids: Vec<Vec<u32>> = (0..6).map(|_| (0..24).map(|_| next()).collect()).collect();
        let lines: String = ids.iter().map(|it| json!({"input_ids": it}).to_string() + "\n").collect();
        fs::write(&data, lines).unwrap();
        let rows = dir.path().join("rows.json");
        fs::write(&rows, json!(ids).to_string()).unwrap();
        Self { dir, source, data, rows }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn oneshot(&self, source: &Path, out: &Path, modifiers: &Value, options: &str) -> Ran {
        let recipe = self.dir.path().join("recipe.yaml");
        fs::write(&recipe, json!({"quant_stage": {"quant_modifiers": modifiers}}).to_string()).unwrap();
        let [source, out, recipe, data] = [source, out, &recipe, &self.data].map(|it| it.to_str().unwrap());
        let fixed = ["--quiet", "oneshot", source, "--recipe", recipe, "--out", out, "--data", data];
        run(&[&fixed[..], &options.split_whitespace().collect::<Vec<_>>()].concat())
    }

    /// Perplexity on the data.
    fn perplexity(&self, model: &Path) -> f64 {
        let (model, rows) = (model.to_str().unwrap(), self.rows.to_str().unwrap());
        let ran = run(&["eval", model, "--token-ids", rows, "--format", "json"]);
        ran.expect(0).json()["perplexity"].as_f64().unwrap()
    }
}

fn rtn(scheme: &str) -> Value {
    json!({"QuantizationModifier": {"targets": ["Linear"], "scheme": scheme, "ignore": ["lm_head"]}})
}

fn int4(modifier: &str, ignore: &[&str]) -> Value {
    let weights = json!({"num_bits": 4, "strategy": "group", "group_size": 8, "symmetric": true});
    let ignore = [&["lm_head"], ignore].concat();
    json!({modifier: {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}, "ignore": ignore}})
}

fn models() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(goldens_dir("models"))
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .filter(|it| goldens_dir("models").join(it).join("model.safetensors").exists())
        .collect();
    names.sort();
    names
}

#[test]
fn every_architecture_is_written_under_the_names_that_the_reference_writes() {
    let mut n_compared = 0;
    for model in models().iter().filter(|it| *it != TRANSPOSED) {
        let scene = Scene::new(model);
        let dense = scene.perplexity(&scene.source);
        // Without data, and by the run that calibrates.
        let outputs = ["datafree", "sequential"].map(|pipeline| {
            let out = scene.out(pipeline);
            scene.oneshot(&scene.source, &out, &rtn("FP8_DYNAMIC"), &format!("--pipeline {pipeline}")).expect(0);
            assert_eq!(verify(&out, &scene.source)["faults"], json!([]), "{model} {pipeline}");
            let compressed = scene.perplexity(&out);
            assert!((compressed / dense - 1.0).abs() < 0.04, "{model} {pipeline}: {compressed} of {dense}");
            out
        });
        let tensors = outputs.each_ref().map(|it| read_tensors(it));
        assert!(tensors[0] == tensors[1], "{model}");
        let golden = goldens_dir("models").join(model).join("written_fp8_dynamic.json");
        if !golden.exists() {
            assert_eq!(model, UNWRITTEN);
            continue;
        }
        let written = Goldens::open(&format!("models/{model}")).json("written_fp8_dynamic.json");
        let expected: BTreeMap<&str, &Value> =
            written["tensors"].as_object().unwrap().iter().map(|(name, it)| (name.as_str(), &it[1])).collect();
        let made: BTreeMap<&str, Value> = tensors[0].iter().map(|(name, it)| (name.as_str(), json!(it.1))).collect();
        // What is stored densely has zero points beside, of a symmetric scheme.
        let expected: BTreeMap<_, _> = expected.into_iter().filter(|it| !it.0.ends_with("_zero_point")).collect();
        assert!(made.keys().eq(expected.keys()), "{model}: {:?}", made.keys());
        assert!(made.values().eq(expected.into_values()), "{model}");
        let ignored = |section: &Value| {
            let all = section["ignore"].as_array().unwrap().iter();
            all.map(|it| it.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
        };
        let section = &config_of(&outputs[0])["quantization_config"];
        if model == DERIVED {
            assert_eq!(section["format"], "float-quantized");
            assert_eq!(ignored(section), BTreeSet::from(["lm_head".to_owned()]));
        } else {
            assert_eq!(ignored(section), ignored(&written["quantization_config"]), "{model}");
        }
        n_compared += 1;
    }
    assert_eq!(n_compared, 36);
    let scene = Scene::new(TRANSPOSED);
    let out = scene.out("out");
    scene.oneshot(&scene.source, &out, &rtn("FP8_DYNAMIC"), "").expect(65).says(&["no module would be quantized"]);
    assert!(!out.exists());
}

/// Models whose experts lie in one tensor or under other names than are written, and others with experts.
const MOVED: [&str; 4] = ["gpt_oss", "granitemoe", "llama4_text", "mixtral"];
const EXPERTS: [&str; 6] = ["deepseek_v2", "deepseek_v3", "glm4_moe", "qwen2_moe", "qwen3_moe", "qwen3_next"];

type Tensors = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

/// One expert's linears out of a tensor of all, in plain loops: `at` says where row and column of each lie.
fn part(
    of: &(String, Vec<usize>, Vec<u8>),
    expert: usize,
    [rows, cols]: [usize; 2],
    at: impl Fn(usize, usize) -> usize,
) -> Vec<u8> {
    let n: usize = of.1[1..].iter().product();
    let places = (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col)));
    places.flat_map(|(row, col)| of.2[(expert * n + at(row, col)) * 4..][..4].to_vec()).collect()
}

/// The checkpoint under the names that are written, each expert's linears by themselves.
fn taken_apart(model: &str, tensors: &mut Tensors) {
    let names: Vec<String> = tensors.keys().cloned().collect();
    for name in names {
        if model == "mixtral" {
            let new = [(".w1.", ".gate_proj."), (".w3.", ".up_proj."), (".w2.", ".down_proj.")]
                .iter()
                .fold(name.clone(), |name, (old, new)| name.replace(old, new));
            let tensor = tensors.remove(&name).unwrap();
            tensors.insert(new, tensor);
            continue;
        }
        let stacks = ["input_linear", "gate_up_proj", "output_linear", "down_proj"];
        let Some(stack) = stacks.iter().position(|it| name.contains(&format!(".{it}"))) else { continue };
        let Some(prefix) = name.split(stacks[stack]).next().filter(|it| !it.contains("shared")) else { continue };
        let prefix = if model == "granitemoe" { format!("{prefix}experts.") } else { prefix.to_owned() };
        let (is_bias, is_down) = (name.ends_with("_bias"), stack > 1);
        let tensor = tensors.remove(&name).unwrap();
        let (n_experts, linears): (usize, &[&str]) =
            (tensor.1[0], if is_down { &["down_proj"] } else { &["gate_proj", "up_proj"] });
        let transposed = model != "granitemoe";
        let (n_out, n_in) = match tensor.1[1..] {
            [n] => (n, 1),
            [a, b] if transposed => (b, a),
            [a, b] => (a, b),
            _ => unreachable!(),
        };
        for expert in 0..n_experts {
            for (half, linear) in linears.iter().enumerate() {
                let rows = n_out / linears.len();
                let line = |row: usize| match (model, is_down) {
                    (_, true) => row,
                    ("gpt_oss", false) => 2 * row + half,
                    _ => half * rows + row,
                };
                let data = part(&tensor, expert, [rows, n_in], |row, col| match transposed && !is_bias {
                    true => col * n_out + line(row),
                    false => line(row) * n_in + col,
                });
                let suffix = if is_bias { "bias" } else { "weight" };
                let shape = if is_bias { vec![rows] } else { vec![rows, n_in] };
                tensors.insert(format!("{prefix}{expert}.{linear}.{suffix}"), (tensor.0.clone(), shape, data));
            }
        }
    }
}

#[test]
fn experts_in_one_tensor_or_under_other_names_give_the_bytes_of_experts_apart() {
    for model in MOVED {
        let scene = Scene::new(model);
        let apart = scene.out("apart");
        fs::create_dir(&apart).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(scene.source.join(file), apart.join(file)).unwrap();
        }
        change_tensors(&apart, |tensors| taken_apart(model, tensors));
        let dense = scene.perplexity(&scene.source);
        assert_eq!(scene.perplexity(&apart), dense, "{model}");
        let gptq = int4("GPTQModifier", &[]);
        let mut awq = int4("QuantizationModifier", &[]);
        let balance = ["re:.*gate_proj$", "re:.*up_proj$"];
        let mapping = json!({"smooth_layer": "re:.*post_attention_layernorm$", "balance_layers": balance});
        awq = json!({"AWQModifier": {"n_grid": 3, "mappings": [mapping]}, "QuantizationModifier": awq["QuantizationModifier"]});
        let cases =
            [(&gptq, "--partition before_targets"), (&gptq, "--partition compat"), (&awq, "--pipeline independent")];
        for (idx, (modifiers, options)) in cases.into_iter().enumerate() {
            let (one, other) = (scene.out(&format!("stacked-{idx}")), scene.out(&format!("apart-{idx}")));
            scene.oneshot(&scene.source, &one, modifiers, options).expect(0);
            scene.oneshot(&apart, &other, modifiers, options).expect(0);
            assert!(read_tensors(&one) == read_tensors(&other), "{model} {options}");
            let section = |it| config_of(it)["quantization_config"].clone();
            assert_eq!(section(&one), section(&other), "{model} {options}");
            assert_eq!(verify(&one, &scene.source)["faults"], json!([]), "{model} {options}");
            let compressed = scene.perplexity(&one);
            assert!((compressed / dense - 1.0).abs() < 0.1, "{model} {options}: {compressed} of {dense}");
        }
    }
}

#[test]
fn experts_of_every_architecture_are_calibrated() {
    for model in EXPERTS {
        let scene = Scene::new(model);
        let (out, dense) = (scene.out("out"), scene.perplexity(&scene.source));
        scene.oneshot(&scene.source, &out, &int4("GPTQModifier", &[]), "").expect(0);
        assert_eq!(verify(&out, &scene.source)["faults"], json!([]), "{model}");
        let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
        let experts = report["modules"].as_array().unwrap().iter();
        let experts: Vec<&Value> = experts.filter(|it| it["module"].as_str().unwrap().contains(".experts.")).collect();
        assert!(experts.len() >= 12 && experts.iter().all(|it| it["tokens"] == 144), "{model}: {experts:?}");
        let compressed = scene.perplexity(&out);
        assert!((compressed / dense - 1.0).abs() < 0.1, "{model}: {compressed} of {dense}");
    }
}

#[test]
fn candidates_are_compared_with_what_the_same_batch_gave_before() {
    let scene = Scene::new("llama");
    let losses = |bits: u32| -> Vec<f64> {
        let mut modifiers = json!({"AWQModifier": {"n_grid": 4}});
        let mut quantizer = int4("QuantizationModifier", &[]);
        quantizer["QuantizationModifier"]["config_groups"]["group_0"]["weights"]["num_bits"] = json!(bits);
        modifiers["QuantizationModifier"] = quantizer["QuantizationModifier"].take();
        let out = scene.out(&bits.to_string());
        scene.oneshot(&scene.source, &out, &modifiers, "").expect(0);
        let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
        let said = report["said"].as_array().unwrap().iter().filter(|it| it["modifier"] == "AWQModifier");
        let mappings = said.flat_map(|it| it["data"].as_array().unwrap());
        let rerun = mappings.filter(|it| it["balance"].as_array().unwrap().len() > 1);
        rerun.map(|it| it["loss"].as_f64().unwrap()).collect()
    };
    let (fine, coarse) = (losses(8), losses(3));
    // Steps are 32 times as wide, errors some thousand times as large; outputs of another batch would be as far off by both.
    assert!(
        fine.len() >= 4 && fine.iter().zip(&coarse).all(|(fine, coarse)| fine * 100.0 < *coarse),
        "{fine:?} {coarse:?}"
    );
}

#[test]
fn the_last_norm_of_every_architecture_gets_its_gain_back() {
    for model in models().iter().filter(|it| *it != TRANSPOSED) {
        let scene = Scene::new(model);
        let mut modifiers = int4("GPTQModifier", &[]);
        modifiers["GPTQModifier"]["input_correction"] = json!(0.5);
        modifiers["NormGainModifier"] = json!({});
        let out = scene.out("out");
        scene.oneshot(&scene.source, &out, &modifiers, "").expect(0);
        assert_eq!(verify(&out, &scene.source)["faults"], json!([]), "{model}");
        let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
        let said = report["said"].as_array().unwrap();
        let gain = said.iter().find(|it| it["modifier"] == "NormGainModifier").map(|it| &it["data"][0]);
        let Some(gain) = gain else {
            assert_eq!(model, "olmo", "its norms have no weights");
            continue;
        };
        assert!(gain["share"].as_f64().is_some_and(|it| (0.9..1.0).contains(&it)), "{model}: {gain}");
        let weight = format!("{}.weight", gain["norm"].as_str().unwrap());
        let [before, after] = [&scene.source, &out].map(|it| read_tensors(it).remove(&weight).unwrap());
        assert!(before.2 != after.2 && before.1 == after.1, "{model}: {weight}");
    }
}

#[test]
fn a_head_that_is_swept_behind_the_last_norm_is_told_of_its_gain() {
    let scene = Scene::new("llama");
    let sweep = int4("GPTQModifier", &[])["GPTQModifier"].clone();
    let mut sweep = sweep.as_object().unwrap().clone();
    sweep["ignore"] = json!([]);
    let report = |out: &str, names: [&str; 2]| -> Value {
        let field = |name: &str| if name == "GPTQModifier" { json!(sweep) } else { json!({}) };
        let modifiers: serde_json::Map<String, Value> = names.iter().map(|it| ((*it).to_owned(), field(it))).collect();
        let out = scene.out(out);
        scene.oneshot(&scene.source, &out, &Value::Object(modifiers), "").expect(0);
        serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap()
    };
    let told = report("told", ["NormGainModifier", "GPTQModifier"]);
    let before = report("before", ["GPTQModifier", "NormGainModifier"]);
    let loss = |report: &Value| {
        let head = report["modules"].as_array().unwrap().iter().find(|it| it["module"] == "lm_head").unwrap();
        head["loss"].as_f64().unwrap()
    };
    let said = told["said"].as_array().unwrap().iter().find(|it| it["modifier"] == "NormGainModifier").unwrap();
    let share = said["data"][0]["share"].as_f64().unwrap();
    // Inputs that are larger by a factor make errors larger by its square; weights are nearly the same.
    let ratio = loss(&told) / loss(&before) * share * share;
    assert!(share < 0.998 && (ratio - 1.0).abs() < 0.001, "{share} {ratio}");
}

#[test]
fn an_expert_that_a_recipe_ignores_leaves_its_stack_as_it_was() {
    for model in MOVED {
        let scene = Scene::new(model);
        let mut expected = read_tensors(&scene.source);
        taken_apart(model, &mut expected);
        let out = scene.out("out");
        scene.oneshot(&scene.source, &out, &int4("GPTQModifier", &[r"re:.*experts\.1\..*"]), "").expect(0);
        let verdict = verify(&out, &scene.source);
        assert_eq!(verdict["faults"], json!([]), "{model}");
        let made = read_tensors(&out);
        let plain: Vec<&String> = expected.keys().filter(|it| it.contains(".experts.1.")).collect();
        assert!(plain.len() >= 6, "{plain:?}");
        for name in plain {
            assert_eq!(made[name], expected[name], "{model} {name}");
        }
        assert!(made.keys().any(|it| it.ends_with("experts.0.down_proj.weight_packed")));
        // A bit of it that changes is a fault.
        change_tensors(&out, |tensors| {
            let (_, it) = tensors.iter_mut().find(|it| it.0.ends_with("experts.1.down_proj.weight")).unwrap();
            it.2[0] ^= 1;
        });
        let faults = verify(&out, &scene.source)["faults"].clone();
        assert_eq!(faults[0]["kind"], "changed", "{model}: {faults}");
        // Where no expert is compressed, nothing moves.
        let out = scene.out("still");
        scene.oneshot(&scene.source, &out, &int4("GPTQModifier", &["re:.*experts.*"]), "").expect(0);
        let (before, after) = (read_tensors(&scene.source), read_tensors(&out));
        let experts: Vec<_> =
            before.iter().filter(|it| [".experts.", "put_linear."].iter().any(|part| it.0.contains(part))).collect();
        assert!(!experts.is_empty() && experts.into_iter().all(|(name, it)| after[name] == *it), "{model}");
        assert_eq!(verify(&out, &scene.source)["faults"], json!([]), "{model}");
    }
}

#[test]
fn a_pattern_may_use_each_name_that_a_module_has() {
    let scene = Scene::new("mixtral");
    let ignored = |pattern: &str| {
        let out = scene.out("out");
        scene.oneshot(&scene.source, &out, &int4("QuantizationModifier", &[pattern]), "--overwrite").expect(0);
        config_of(&out)["quantization_config"]["ignore"].as_array().unwrap().len()
    };
    let all = ignored("re:.*nothing.*");
    // In the model, where it is written, and where it is in the source.
    for pattern in
        [r"re:.*mlp\.experts\.1\.up_proj", r"re:.*block_sparse_moe\.experts\.1\.up_proj", r"re:.*experts\.1\.w3"]
    {
        assert_eq!(ignored(pattern), all + 2, "{pattern}");
    }
    // A target that only the model has is written beside the names that a loader finds.
    let weights = json!({"num_bits": 4, "strategy": "group", "group_size": 8, "symmetric": true});
    let group = json!({"targets": [r"re:.*mlp\.experts\..*\.up_proj"], "weights": weights});
    let out = scene.out("targeted");
    let modifiers = json!({"QuantizationModifier": {"config_groups": {"group_0": group}}});
    scene.oneshot(&scene.source, &out, &modifiers, "").expect(0);
    assert_eq!(verify(&out, &scene.source)["faults"], json!([]));
    let targets = config_of(&out)["quantization_config"]["config_groups"]["group_0"]["targets"].clone();
    assert!(
        targets.as_array().unwrap().contains(&json!("model.layers.0.block_sparse_moe.experts.1.up_proj")),
        "{targets}"
    );
}
