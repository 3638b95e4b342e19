//! Wrong input: the code, a message that names file and tensor, and an output that is not there.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::{
    checkpoints::{Checkpoint, Tensor, contents, llama, llama_sized, safetensors, with_header},
    command::{Ran, quantize, run, verify_sound},
};

const FP8: &str = "--scheme FP8_DYNAMIC";

struct Scene {
    dir: TempDir,
}

impl Scene {
    fn new(model: &Checkpoint) -> Self {
        let dir = tempdir().unwrap();
        model.write(&dir.path().join("in"));
        Self { dir }
    }

    fn source(&self, file: &str) -> std::path::PathBuf {
        self.dir.path().join("in").join(file)
    }

    fn output(&self) -> std::path::PathBuf {
        self.dir.path().join("out")
    }

    fn run(&self, options: &str) -> Ran {
        quantize(&self.dir.path().join("in"), &self.output(), options)
    }

    /// Runs, expects a failure of `code` that says `texts`, and no output.
    #[track_caller]
    fn fails(&self, options: &str, code: i32, texts: &[&str]) -> Ran {
        let ran = self.run(options).expect(code).says(texts);
        assert!(ran.err.contains("error: ") && ran.out.is_empty(), "{ran:?}");
        assert!(!self.output().exists(), "{:?}", fs::read_dir(self.output()).unwrap().collect::<Vec<_>>());
        ran
    }
}

fn two_shards() -> Checkpoint {
    let mut model = llama();
    let second = model.shards[0].split_off(5);
    model.shards.push(second);
    model
}

#[test]
fn a_truncated_shard_is_named() {
    let scene = Scene::new(&two_shards());
    let shard = scene.source("model-00002-of-00002.safetensors");
    let whole = fs::read(&shard).unwrap();
    for length in [0, 1, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&shard, &whole[..length]).unwrap();
        scene.fails(FP8, 65, &["model-00002-of-00002.safetensors"]);
    }
    let mut grown = whole;
    grown.push(0);
    fs::write(&shard, grown).unwrap();
    scene.fails(FP8, 65, &["model-00002-of-00002.safetensors"]);
}

#[test]
fn a_header_that_is_longer_than_its_file_is_refused() {
    let scene = Scene::new(&llama());
    let shard = scene.source("model.safetensors");
    let whole = fs::read(&shard).unwrap();
    for length in [u64::MAX, 1 << 40, whole.len() as u64, 0] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        fs::write(&shard, bytes).unwrap();
        scene.fails(FP8, 65, &["model.safetensors"]);
    }
}

#[test]
fn headers_that_lie_about_their_tensors_are_refused_with_the_tensor() {
    let scene = Scene::new(&llama());
    let tensor = |dtype: &str, shape: Value, from: i64, to: i64| json!({"dtype": dtype, "shape": shape, "data_offsets": [from, to]});
    let good = tensor("BF16", json!([2, 4]), 0, 16);
    let cases = [
        ("overlap", tensor("BF16", json!([2, 4]), 8, 24), 24),
        ("gap", tensor("BF16", json!([2, 4]), 24, 40), 40),
        ("past_end", tensor("BF16", json!([2, 4]), 16, 32), 20),
        ("wrong_size", tensor("BF16", json!([2, 4]), 16, 30), 30),
        ("unknown_dtype", tensor("BF17", json!([2, 4]), 16, 32), 32),
        ("negative", tensor("BF16", json!([-2, 4]), 16, 32), 32),
        ("huge", tensor("BF16", json!([1_u64 << 62, 1_u64 << 62]), 16, 32), 32),
        ("backwards", tensor("BF16", json!([2, 4]), 32, 16), 32),
    ];
    for (name, bad, n_bytes) in cases {
        let header = json!({"good.weight": good, format!("{name}.weight"): bad}).to_string();
        fs::write(scene.source("model.safetensors"), with_header(&header, vec![0; n_bytes])).unwrap();
        let ran = scene.fails(FP8, 65, &["model.safetensors"]);
        assert!(ran.err.contains(&format!("{name}.weight")), "{name}: {}", ran.err);
    }
}

#[test]
fn a_missing_shard_and_a_missing_tensor_are_named() {
    let scene = Scene::new(&two_shards());
    let index = scene.source("model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(
        &index,
        text.replacen("\"weight_map\":{", "\"weight_map\":{\"ghost.weight\":\"model-00001-of-00002.safetensors\",", 1),
    )
    .unwrap();
    scene.fails(FP8, 65, &["ghost.weight", "model.safetensors.index.json"]);
    fs::write(&index, text).unwrap();
    fs::remove_file(scene.source("model-00002-of-00002.safetensors")).unwrap();
    let ran = scene.run(FP8).says(&["model-00002-of-00002.safetensors"]);
    assert!(matches!(ran.code, 65 | 66), "{ran:?}");
    assert!(!scene.output().exists());
}

#[test]
fn an_index_that_leaves_the_directory_is_refused() {
    let scene = Scene::new(&two_shards());
    let index = scene.source("model.safetensors.index.json");
    let text = fs::read_to_string(&index).unwrap();
    for name in ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", r"a\\..\\b"] {
        fs::write(&index, text.replace("model-00002-of-00002.safetensors", name)).unwrap();
        let ran = scene.run(FP8).says(&["model.safetensors.index.json"]);
        assert!(matches!(ran.code, 65 | 77), "{name}: {ran:?}");
        assert!(!scene.output().exists());
    }
}

#[test]
fn weights_that_are_no_numbers_are_named_and_pass_when_allowed() {
    for bytes in [[0xc0, 0x7f], [0x80, 0x7f], [0x80, 0xff]] {
        let mut model = llama();
        model.tensor("model.layers.0.mlp.up_proj.weight").data[10..12].copy_from_slice(&bytes);
        let scene = Scene::new(&model);
        let texts =
            ["model.layers.0.mlp.up_proj.weight", "model.safetensors", "first at element 5", "--allow-non-finite"];
        scene.fails("--scheme W4A16", 65, &texts);
        scene.fails(FP8, 65, &texts);
        scene.fails("--scheme NVFP4A16", 65, &texts);
        scene.run("--scheme W4A16 --allow-non-finite").expect(0);
        assert!(scene.output().join("config.json").exists());
    }
}

#[test]
fn a_pattern_that_matches_nothing_is_met_with_the_nearest_names() {
    let scene = Scene::new(&llama());
    scene.fails("--scheme W4A16 --targets re:.*q_porj", 65, &["re:.*q_porj", "q_proj"]);
    scene.fails("--scheme W4A16 --targets model.layers.0.mlp.up_prj", 65, &["model.layers.0.mlp.up_proj"]);
    scene.fails("--scheme W4A16 --include lm_haed", 65, &["lm_haed", "lm_head"]);
    scene.fails("--scheme W4A16 --ignore lm_haed --strict", 65, &["lm_haed", "lm_head"]);
    scene.fails("--scheme W4A16 --ignore re:.*", 65, &["no module would be quantized"]);
    scene.fails("--scheme W4A16 --targets re:(", 65, &["re:("]);
    scene.fails("--scheme W4A61", 65, &["W4A61", "W4A16"]);
}

#[test]
fn groups_that_do_not_divide_are_listed_with_the_sizes_that_do() {
    let scene = Scene::new(&llama_sized(2, 192, 256));
    let texts = [
        "group size 128",
        "sizes that do: 16, 32, 64",
        "192 columns",
        "model.layers.{0-1}.self_attn.q_proj",
        "model.layers.{0-1}.mlp.up_proj",
        "--group-size 64",
    ];
    let ran = scene.fails("--scheme W4A16", 65, &texts);
    assert!(!ran.err.contains("down_proj"), "{}", ran.err);
    scene.fails("--scheme W4A16 --group-size 48 --include re:.*", 65, &["group size 48", "256 columns"]);
    scene.fails("--scheme W4A16 --group-size 0", 2, &["--group-size"]);
    scene.fails("--scheme FP8_DYNAMIC --group-size 64", 2, &["--group-size"]);
    scene.run("--scheme W4A16 --group-size 64").expect(0);
    verify_sound(&scene.output(), &scene.dir.path().join("in"), 15.0);
}

#[test]
fn a_checkpoint_that_no_engine_can_run_is_refused_and_written_on_demand() {
    let scene = Scene::new(&llama_sized(2, 576, 1536));
    let texts = [
        "FP8_BLOCK",
        "groups of 128",
        "576 columns",
        "model.layers.{0-1}.self_attn.q_proj",
        "FP8_DYNAMIC",
        "--allow-unservable",
    ];
    let ran = scene.fails("--scheme FP8_BLOCK", 77, &texts);
    assert!(!ran.err.contains("down_proj"), "{}", ran.err);
    let ran = scene.run("--scheme FP8_BLOCK --allow-unservable").expect(0);
    assert!(ran.err.contains("warning: FP8_BLOCK"), "{}", ran.err);
    // It is what was asked for, and it is still no checkpoint that can be served.
    run(&["verify", scene.output().to_str().unwrap()]).expect(3);
}

#[test]
fn an_output_that_exists_is_left_unless_it_may_be_replaced() {
    let scene = Scene::new(&llama());
    fs::create_dir(scene.output()).unwrap();
    fs::write(scene.output().join("thesis.tex"), "years of work").unwrap();
    scene.run(FP8).expect(77).says(&["out", "--overwrite"]);
    assert_eq!(contents(&scene.output()).len(), 1);
    fs::remove_file(scene.output().join("thesis.tex")).unwrap();

    scene.run(FP8).expect(0);
    let first = contents(&scene.output());
    scene.run("--scheme W4A16").expect(77).says(&["out", "--overwrite"]);
    assert!(contents(&scene.output()) == first);
    scene.run("--scheme W4A16 --overwrite").expect(0);
    verify_sound(&scene.output(), &scene.dir.path().join("in"), 15.0);
    assert!(contents(&scene.output()) != first);
}

#[test]
fn an_output_that_is_its_input_or_lies_in_it_is_refused() {
    let scene = Scene::new(&llama());
    let source = scene.dir.path().join("in");
    let before = contents(&source);
    let link = scene.dir.path().join("link");
    std::os::unix::fs::symlink(&source, &link).unwrap();
    for (output, options) in
        [(source.clone(), FP8), (source.join("sub"), FP8), (link, FP8), (source.clone(), "--scheme W8A8 --overwrite")]
    {
        quantize(&source, &output, options).expect(77);
        assert!(contents(&source) == before);
    }
    assert!(!source.join("sub").exists());
}

#[test]
fn an_output_that_cannot_be_created_is_named() {
    let scene = Scene::new(&llama());
    let file = scene.dir.path().join("file");
    fs::write(&file, "").unwrap();
    let source = scene.dir.path().join("in");
    let ran = quantize(&source, &file.join("out"), FP8).says(&["file"]);
    assert_eq!(ran.code, 73, "{ran:?}");
    let ran = quantize(&source, &file, FP8).says(&["file"]);
    assert!(matches!(ran.code, 73 | 77), "{ran:?}");
    // Neither root nor anyone else can create here.
    let ran = quantize(&source, Path::new("/proc/out"), FP8).says(&["/proc/out"]);
    assert_eq!(ran.code, 73, "{ran:?}");
}

#[test]
fn absent_and_unreadable_models_are_told_apart() {
    let dir = tempdir().unwrap();
    let output = dir.path().join("out");
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    quantize(&dir.path().join("nowhere"), &output, FP8).expect(66).says(&["nowhere"]);
    let ran = quantize(&empty, &output, FP8).says(&["empty"]);
    assert!(matches!(ran.code, 65 | 66), "{ran:?}");
    fs::write(empty.join("pytorch_model.bin"), "PK").unwrap();
    fs::write(empty.join("config.json"), "{}").unwrap();
    quantize(&empty, &output, FP8).expect(65).says(&["pytorch_model.bin", "safetensors"]);
    assert!(!output.exists());
}

#[test]
fn configs_that_cannot_be_understood_are_refused() {
    let mut model = llama();
    model.config["quantization_config"] = json!({"quant_method": "magic", "bits": 3});
    Scene::new(&model).fails(FP8, 65, &["config.json", "magic", "awq", "gptq"]);
    model.config["quantization_config"] = json!({"quant_method": "compressed-tensors", "config_groups": 3});
    Scene::new(&model).fails(FP8, 65, &["config.json", "config_groups"]);
    let scene = Scene::new(&llama());
    fs::write(scene.source("config.json"), "{\"a\": 1,\n \"b\": }").unwrap();
    scene.fails(FP8, 65, &["config.json", "line 2"]);
    let config = scene.dir.path().join("groups.json");
    fs::write(&config, "[").unwrap();
    scene.fails(&format!("--config {}", config.display()), 65, &["groups.json"]);
    scene.fails("--config nowhere.json", 66, &["nowhere.json"]);
}

#[test]
fn a_compressed_module_without_a_config_is_named() {
    let mut model = llama();
    let name = "model.layers.0.mlp.up_proj.weight_packed";
    model.shards[0].push(Tensor::new(name, "I32", &[2, 2], vec![0; 16]));
    Scene::new(&model).fails(FP8, 65, &["model.layers.0.mlp.up_proj", "no quantization_config"]);
}

#[test]
fn too_little_memory_is_refused_with_the_number_that_works() {
    let scene = Scene::new(&llama());
    let ran = scene.fails("--scheme W4A16 --max-memory 1KiB", 77, &["--max-memory", "1024"]);
    let hint = ran.err.split("hint: --max-memory ").nth(1).unwrap().trim().to_owned();
    scene.fails(&format!("--scheme W4A16 --max-memory {}", hint.parse::<u64>().unwrap() - 1), 77, &["--max-memory"]);
    scene.run(&format!("--scheme W4A16 --max-memory {hint}")).expect(0);
}

#[test]
fn one_name_in_two_shards_is_refused() {
    let mut model = two_shards();
    let twice = model.shards[0][1].clone();
    let scene = Scene::new(&model);
    model.shards[1].push(twice.clone());
    fs::write(scene.source("model-00002-of-00002.safetensors"), safetensors(&model.shards[1])).unwrap();
    scene.fails(FP8, 65, &[&twice.name]);
}

#[test]
fn control_characters_in_names_are_shown_as_codes() {
    let mut model = llama();
    let name = "evil\u{1b}[31m\u{202e}.weight";
    let mut tensor = Tensor::bf16(name, &[4, 128]);
    tensor.data[0..2].copy_from_slice(&[0xc0, 0x7f]);
    model.shards[0].push(tensor);
    let ran = Scene::new(&model).fails(FP8, 65, &["evil"]);
    assert!(!ran.err.contains(['\u{1b}', '\u{202e}']), "{:?}", ran.err);
}
