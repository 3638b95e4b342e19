//! `recipe check` and `recipe schema`.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::{
    checkpoints::{Checkpoint, Tensor, llama_sized},
    command::{Ran, run},
};

const RECIPE: &str = "\
quant_stage:
  args: {bits: 2}
  quant_modifiers:
    SmoothQuantModifier:
      smoothing_strength: eval(bits * 0.4)
    GPTQModifier:
      targets: Linear
      ignore: [lm_head]
      scheme: W4A16
";

struct Scene(TempDir);

impl Scene {
    fn new() -> Self {
        let scene = Self(tempdir().unwrap());
        llama_sized(3, 128, 256).write(&scene.0.path().join("model"));
        scene
    }

    fn check(&self, recipe: &str, options: &str) -> Ran {
        let file = self.file();
        fs::write(&file, recipe).unwrap();
        let model = self.0.path().join("model").display().to_string();
        let options = options.replace("MODEL", &model);
        let arguments: Vec<&str> = ["recipe", "check", &file].into_iter().chain(options.split_whitespace()).collect();
        run(&arguments)
    }

    fn file(&self) -> String {
        self.0.path().join("recipe.yaml").display().to_string()
    }

    /// A fault of the recipe: 65, at that line and column.
    #[track_caller]
    fn fails(&self, recipe: &str, options: &str, line: &str, texts: &[&str]) {
        let ran = self.check(recipe, options).expect(65).says(texts);
        assert!(ran.err.starts_with(&format!("error: {}:{line}: ", self.file())), "{}", ran.err);
        assert_eq!(ran.out, "");
    }
}

#[test]
fn the_plan_is_printed_in_the_order_in_which_it_runs_with_defaults() {
    let scene = Scene::new();
    let ran = scene.check(RECIPE, "").expect(0);
    assert_eq!(ran.err, "");
    let at = |text: &str| ran.out.find(text).unwrap_or_else(|| panic!("`{text}` is not in {}", ran.out));
    assert!(ran.out.contains(": 2 modifiers\n"));
    assert!(at("1. SmoothQuantModifier (needs data), stage quant, group quant") < at("2. GPTQModifier (needs data)"));
    assert!(at("smoothing_strength: 0.8") < at("dampening_frac: 0.01"));
    at("block_size: 128");
    at("scheme: W4A16");

    let checked = scene.check(RECIPE, "--format json").expect(0).json();
    assert_eq!(checked["args"], json!({}));
    let [smooth, gptq] = &checked["modifiers"].as_array().unwrap()[..] else { panic!("{checked}") };
    assert_eq!((&smooth["type"], &smooth["line"]), (&json!("SmoothQuantModifier"), &json!(4)));
    assert_eq!(
        (&gptq["type"], &gptq["stage"], &gptq["group"]),
        (&json!("GPTQModifier"), &json!("quant"), &json!("quant"))
    );
    assert_eq!(gptq["fields"]["ignore"], json!(["lm_head"]));
    let defaults = gptq["defaults"].as_array().unwrap();
    assert!(defaults.contains(&json!("block_size")) && !defaults.contains(&json!("scheme")), "{defaults:?}");
    assert_eq!(gptq["modules"], Value::Null);
}

#[test]
fn modules_of_a_model_are_counted_and_folded() {
    let scene = Scene::new();
    let model = testkit::fixture("tiny-llama").display().to_string();
    let human = scene.check(RECIPE, &format!("--model {model}")).expect(0);
    assert_eq!(human.err, "");
    for text in [
        "targets   28: model.layers.{0-3}.self_attn.q_proj, model.layers.{0-3}.self_attn.k_proj",
        "observes  8: model.layers.{0-3}.input_layernorm:output",
        "changes   28: model.layers.{0-3}.input_layernorm, model.layers.{0-3}.self_attn.q_proj",
    ] {
        assert!(human.out.contains(text), "`{text}` is not in {}", human.out);
    }
    let checked = scene.check(RECIPE, &format!("--model {model} --format json")).expect(0).json();
    let names =
        |position: usize, what: &str| checked["modifiers"][position]["modules"][what].as_array().unwrap().clone();
    assert_eq!(names(0, "targeted").len(), 0);
    assert_eq!(names(0, "observed").len(), 8);
    assert_eq!(names(1, "changed"), names(1, "targeted"));
    assert!(!names(1, "targeted").contains(&json!("lm_head")));
    assert!(names(1, "observed").contains(&json!("model.layers.2.mlp.down_proj:input")));
}

#[test]
fn faults_name_line_modifier_and_field_with_the_nearest_names() {
    let scene = Scene::new();
    let group = |modifier: &str| format!("default_stage:\n  default_modifiers:\n{modifier}");
    scene.fails(
        &group("    GPTQModifer: {scheme: W4A16}\n"),
        "",
        "3:5",
        &["`GPTQModifer`", "did you mean `GPTQModifier`"],
    );
    let field = "    GPTQModifier:\n      scheme: W4A16\n      blocksize: 64\n";
    scene.fails(&group(field), "", "5:7", &["field of GPTQModifier", "`blocksize`", "did you mean `block_size`"]);
    let value = "    GPTQModifier:\n      scheme: W4A16\n      block_size: wide\n";
    scene.fails(&group(value), "", "5:7", &["field `block_size` of GPTQModifier", "wide", "a whole number"]);
    let preset = "    QuantizationModifier:\n      scheme: W4A61\n";
    scene.fails(&group(preset), "", "3:5", &["W4A61", "W4A16"]);
    scene.fails(&group("    AWQModifier: {}\n"), "", "3:5", &["AWQModifier must be followed by"]);
    scene.fails("default_stage: {}\n", "", "1:1", &["no modifiers found"]);
    scene.fails("default_stage: [\n", "", "1:16", &["YAML"]);
    run(&["recipe", "check", "absent.yaml"]).expect(66).says(&["absent.yaml"]);
    run(&["recipe"]).expect(2);
    scene.check(RECIPE, "--strict").expect(2).says(&["--model"]);
}

#[test]
fn patterns_that_match_nothing_are_errors_and_such_ignores_warnings() {
    let scene = Scene::new();
    let recipe = |fields: &str| format!("default_stage:\n  default_modifiers:\n    QuantizationModifier:\n{fields}");
    let target = recipe("      scheme: W4A16\n      targets: [Linaer]\n");
    scene.check(&target, "").expect(0);
    scene.fails(&target, "--model MODEL", "3:5", &["unknown target `Linaer`", "`Linear`"]);
    let ignore = recipe("      scheme: W4A16\n      ignore: [lm_haed]\n");
    let warned = scene.check(&ignore, "--model MODEL").expect(0);
    let warned =
        warned.says(&["warning: ", "recipe.yaml:3:5: ignore `lm_haed` of QuantizationModifier matches no module"]);
    assert!(warned.out.contains("targets   22: "), "{}", warned.out);
    scene.fails(&ignore, "--model MODEL --strict", "3:5", &["lm_haed"]);
    let group = recipe(
        "      config_groups:\n        a:\n          targets: [Linear]\n          weights: {num_bits: 4, type: int, strategy: group, group_size: 96}\n",
    );
    scene.fails(&group, "--model MODEL", "3:5", &["model.layers.0.self_attn.q_proj (128 columns, group_size 96)"]);
    let mapping = "default_stage:\n  default_modifiers:\n    SmoothQuantModifier:\n      mappings:\n        - [['re:.*q_proj'], 're:.*no_norm']\n";
    scene.fails(mapping, "--model MODEL", "3:5", &["re:.*no_norm"]);
    scene.check(RECIPE, "--model no/such/model").expect(66);
}

#[test]
fn stages_are_chosen_by_name() {
    let scene = Scene::new();
    let recipe = "a_stage: {a_modifiers: {QuantizationModifier: {scheme: W8A8}}}\nb_stage: {b_modifiers: {GPTQModifier: {scheme: W4A16}}}\n";
    let types = |options: &str| {
        let checked = scene.check(recipe, &format!("{options} --format json")).expect(0).json();
        let types = checked["modifiers"].as_array().unwrap().iter().map(|it| it["type"].as_str().unwrap().to_owned());
        types.collect::<Vec<_>>()
    };
    assert_eq!(types(""), ["QuantizationModifier", "GPTQModifier"]);
    assert_eq!(types("--stage b"), ["GPTQModifier"]);
}

#[test]
fn an_unknown_architecture_is_matched_by_names_and_shapes() {
    let dir = tempdir().unwrap();
    let config = json!({"architectures": ["NovelForCausalLM"], "model_type": "novel", "dtype": "bfloat16"});
    let tensors = vec![
        Tensor::bf16("body.embed_tokens.weight", &[64, 128]),
        Tensor::bf16("body.blocks.0.norm.weight", &[128]),
        Tensor::bf16("body.blocks.0.mix.weight", &[128, 128]),
        Tensor::bf16("head.weight", &[64, 128]),
    ];
    let model = Checkpoint::single(config, tensors).write(&dir.path().join("model"));
    let file = dir.path().join("recipe.json");
    let recipe = json!({"default_stage": {"default_modifiers": {"QuantizationModifier": {"scheme": "W4A16"}}}});
    fs::write(&file, recipe.to_string()).unwrap();
    let ran = run(&["recipe", "check", file.to_str().unwrap(), "--model", model.to_str().unwrap()]).expect(0);
    assert!(ran.out.contains("targets   2: body.blocks.0.mix, head"), "{}", ran.out);
    ran.says(&["warning: classes of modules are guessed from names and shapes"]);
}

fn repository_file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

#[test]
fn the_committed_schema_is_what_the_command_prints() {
    let committed = repository_file("docs/recipe.schema.json");
    let printed = run(&["recipe", "schema"]).expect(0);
    assert!(printed.out == committed, "docs/recipe.schema.json is stale: write the output of `recipe schema` there");
    assert_eq!(printed.json()["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

#[test]
fn the_documentation_has_the_fields_that_the_command_prints() {
    let page = repository_file("docs/recipes.md");
    let printed = run(&["recipe", "fields"]).expect(0).out;
    assert!(page.contains(&printed), "docs/recipes.md is stale: write the output of `recipe fields` there");
    for name in ["QuantizationModifier", "GPTQModifier", "AWQModifier", "SmoothQuantModifier", "NormGainModifier"] {
        assert!(printed.contains(&format!("### {name}\n")), "{name}");
    }
}

#[test]
fn every_recipe_of_the_documentation_passes() {
    let scene = Scene::new();
    let page = repository_file("docs/recipes.md");
    let recipes: Vec<&str> = page.split("```yaml\n").skip(1).map(|it| it.split("```").next().unwrap()).collect();
    assert!(recipes.len() >= 3);
    for recipe in recipes {
        scene.check(recipe, "").expect(0);
    }
}

#[test]
fn the_documentation_shows_the_modifier_that_the_lifecycles_doctest_runs() {
    let (page, source) = (repository_file("docs/recipes.md"), repository_file("crates/lifecycle/src/lib.rs"));
    let lines = source.lines().filter_map(|it| it.strip_prefix("//!")).map(|it| it.strip_prefix(' ').unwrap_or(it));
    let shown = lines.skip_while(|it| !it.starts_with("struct ")).take_while(|it| !it.starts_with("```"));
    let shown: Vec<&str> = shown.filter(|it| *it != "#" && !it.starts_with("# ")).collect();
    let shown = shown.join("\n");
    assert!(shown.contains("impl Modifier for") && shown.contains("ModifierSpec"), "{shown}");
    assert!(
        page.contains(shown.trim_end()),
        "docs/recipes.md does not show the example of crates/lifecycle/src/lib.rs"
    );
}
