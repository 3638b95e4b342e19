//! `verify` finds each kind of fault and names it.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use tempfile::{TempDir, tempdir};

use crate::{
    checkpoints::{bf16_values, change_tensors, llama, llama_sized, read_tensors},
    command::{convert, quantize, run, verify, verify_sound},
};

const UP: &str = "model.layers.0.mlp.up_proj";

struct Pair {
    dir: TempDir,
}

type Tensors = std::collections::BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

impl Pair {
    fn new(scheme: &str) -> Self {
        let dir = tempdir().unwrap();
        let source = llama().write(&dir.path().join("in"));
        let it = Self { dir };
        quantize(&source, &it.output(), &format!("--scheme {scheme}")).expect(0);
        verify_sound(&it.output(), &source, 7.0);
        it
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("in")
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    /// Changes tensors, expects a fault of `kind` at `place`, and changes them back.
    #[track_caller]
    fn finds(&self, kind: &str, place: &str, change: impl FnOnce(&mut Tensors)) {
        let before = fs::read(self.output().join("model.safetensors")).unwrap();
        let index = fs::read(self.output().join("model.safetensors.index.json")).unwrap();
        change_tensors(&self.output(), change);
        self.has(kind, place);
        fs::write(self.output().join("model.safetensors"), before).unwrap();
        fs::write(self.output().join("model.safetensors.index.json"), index).unwrap();
    }

    #[track_caller]
    fn has(&self, kind: &str, place: &str) {
        let verdict = verify(&self.output(), &self.source());
        let faults = verdict["faults"].as_array().unwrap();
        let found = faults.iter().any(|it| it["kind"] == kind && it["place"].as_str().unwrap().contains(place));
        assert!(found, "no {kind} at {place} in {faults:#?}");
    }

    /// Rewrites the compression section.
    fn edit(&self, change: impl FnOnce(&mut Value)) {
        let path = self.output().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config["quantization_config"]);
        fs::write(path, config.to_string()).unwrap();
    }
}

#[test]
fn scales_that_are_zero_or_no_number_are_found() {
    for scheme in ["W4A16", "FP8_DYNAMIC"] {
        let pair = Pair::new(scheme);
        let scale = format!("{UP}.weight_scale");
        for bytes in [[0, 0], [0xc0, 0x7f], [0x80, 0x7f], [0x80, 0xff], [0x80, 0xbf]] {
            pair.finds("scale", &scale, |it| it.get_mut(&scale).unwrap().2[4..6].copy_from_slice(&bytes));
        }
    }
}

#[test]
fn global_scales_that_differ_within_a_fused_group_are_found() {
    let pair = Pair::new("NVFP4A16");
    let scale = format!("{UP}.weight_global_scale");
    pair.finds("fused_scale", UP, |it| it.get_mut(&scale).unwrap().2 = 1234.0_f32.to_le_bytes().to_vec());
    pair.finds("scale", &scale, |it| it.get_mut(&scale).unwrap().2 = f32::INFINITY.to_le_bytes().to_vec());
    let scale = format!("{UP}.weight_scale");
    pair.finds("scale", &scale, |it| it.get_mut(&scale).unwrap().2[0] = 0x7f);
}

#[test]
fn tensors_that_are_missing_or_too_many_are_found() {
    let pair = Pair::new("W4A16_ASYM");
    for local in ["weight_scale", "weight_zero_point"] {
        let name = format!("{UP}.{local}");
        let verdict_place = UP;
        let before = fs::read(pair.output().join("model.safetensors")).unwrap();
        change_tensors(&pair.output(), |it| drop(it.remove(&name).unwrap()));
        let verdict = verify(&pair.output(), &pair.source());
        assert!(verdict["faults"].to_string().contains(verdict_place), "{local}: {verdict}");
        fs::write(pair.output().join("model.safetensors"), before).unwrap();
        change_tensors(&pair.output(), |_| {});
    }
    pair.finds("dropped", UP, |it| it.retain(|name, _| !name.starts_with(UP)));
    pair.finds("dropped", "model.norm.weight", |it| drop(it.remove("model.norm.weight").unwrap()));
    let extra = ("F32".to_owned(), vec![1], vec![0; 4]);
    pair.finds("extra", "model.surprise.weight", |it| {
        drop(it.insert("model.surprise.weight".to_owned(), extra.clone()))
    });
    pair.finds("orphan", "model.norm.weight_scale", |it| drop(it.insert("model.norm.weight_scale".to_owned(), extra)));
}

#[test]
fn shapes_and_dtypes_that_the_scheme_does_not_give_are_found() {
    let pair = Pair::new("W8A8");
    let weight = format!("{UP}.weight");
    let scale = format!("{UP}.weight_scale");
    pair.finds("layout", &scale, |it| it.get_mut(&scale).unwrap().1 = vec![1, 256]);
    pair.finds("unreadable", UP, |it| it.get_mut(&weight).unwrap().1 = vec![128, 256]);
    let before = fs::read(pair.output().join("model.safetensors")).unwrap();
    change_tensors(&pair.output(), |it| it.get_mut(&weight).unwrap().0 = "F8_E4M3".to_owned());
    assert!(verify(&pair.output(), &pair.source())["faults"].to_string().contains(UP));
    fs::write(pair.output().join("model.safetensors"), before).unwrap();
}

#[test]
fn codes_and_copies_that_changed_are_found() {
    let pair = Pair::new("W8A8");
    pair.finds("changed", "model.norm.weight", |it| it.get_mut("model.norm.weight").unwrap().2[0] ^= 1);
    pair.finds("changed", "model.embed_tokens.weight", |it| it.get_mut("model.embed_tokens.weight").unwrap().2[9] ^= 1);
    let weight = format!("{UP}.weight");
    pair.finds("distance", UP, |it| it.get_mut(&weight).unwrap().2.reverse());
}

#[test]
fn a_config_that_disagrees_with_the_tensors_is_found() {
    let pair = Pair::new("W4A16");
    pair.edit(|it| it["ignore"] = json!(["model.embed_tokens"]));
    pair.has("not_compressed", "lm_head");
    pair.edit(|it| it["ignore"] = json!(["model.embed_tokens", "lm_head", UP]));
    pair.has("unreadable", UP);
    pair.edit(|it| {
        it["ignore"] = json!(["model.embed_tokens", "lm_head"]);
        it["config_groups"]["W4A16"]["weights"]["group_size"] = json!(64);
    });
    let verdict = verify(&pair.output(), &pair.source());
    assert!(verdict["faults"].to_string().contains(UP), "{verdict}");
}

#[test]
fn companions_that_are_missing_or_changed_are_found() {
    let pair = Pair::new("W4A16");
    fs::write(pair.output().join("tokenizer.json"), "{}").unwrap();
    pair.has("companion", "tokenizer.json");
    fs::remove_file(pair.output().join("tokenizer.json")).unwrap();
    pair.has("companion", "tokenizer.json");
}

#[test]
fn faults_are_printed_by_name_and_without_a_source_too() {
    let pair = Pair::new("W4A16");
    let scale = format!("{UP}.weight_scale");
    change_tensors(&pair.output(), |it| it.get_mut(&scale).unwrap().2[..2].copy_from_slice(&[0, 0]));
    let output = pair.output();
    let ran = run(&["verify", output.to_str().unwrap()]).expect(3);
    assert!(ran.out.contains(&format!("fault: {scale}: element 0 is 0")), "{}", ran.out);
    assert!(ran.out.contains("NOT sound, 1 fault"), "{}", ran.out);
    run(&["verify", output.join("nowhere").to_str().unwrap()]).expect(66);
    let all =
        run(&["verify", output.to_str().unwrap(), "--all", "--source", pair.source().to_str().unwrap()]).expect(3);
    assert!(all.out.contains("model.layers.0.self_attn.o_proj"), "{}", all.out);
}

#[test]
fn a_dense_checkpoint_is_sound_with_a_warning() {
    let pair = Pair::new("W4A16");
    let ran = run(&["verify", pair.source().to_str().unwrap()]).expect(0);
    assert!(ran.out.contains("warning: ") && ran.out.contains("quantization_config"), "{}", ran.out);
}

#[test]
fn distances_are_those_of_the_weights() {
    let pair = Pair::new("W4A16");
    let dense = pair.dir.path().join("dense");
    convert(&pair.output(), &dense, "--to dense --dtype float32").expect(0);
    let (before, after) = (read_tensors(&pair.source()), read_tensors(&dense));
    let verdict = verify(&pair.output(), &pair.source());
    let modules = verdict["modules"].as_array().unwrap();
    assert_eq!(modules.len(), 7);
    for module in modules {
        let name = format!("{}.weight", module["module"].as_str().unwrap());
        let (x, y) = (bf16_values(&before[&name].2), &after[&name].2);
        let y = y.chunks_exact(4).map(|it| f32::from_le_bytes(it.try_into().unwrap()));
        let (mut signal, mut noise, mut largest) = (0.0, 0.0, 0.0_f64);
        for (x, y) in x.into_iter().zip(y).map(|(x, y)| (f64::from(x), f64::from(y))) {
            signal += x * x;
            noise += (x - y) * (x - y);
            largest = largest.max((x - y).abs());
        }
        let figure = |key: &str| module[key].as_f64().unwrap();
        let db = 10.0 * (signal / noise).log10();
        assert!((figure("sqnr_db") - db).abs() < 1e-6, "{name}: {db} and {module}");
        assert!((figure("max_error") - largest).abs() < 1e-9, "{name}: {largest} and {module}");
    }
}

#[test]
fn an_output_that_is_cut_or_lacks_a_file_is_bad_input() {
    let pair = Pair::new("NVFP4A16");
    let shard = pair.output().join("model.safetensors");
    let whole = fs::read(&shard).unwrap();
    let verify = || run(&["verify", pair.output().to_str().unwrap()]);
    for length in [0, 9, whole.len() / 2, whole.len() - 1] {
        fs::write(&shard, &whole[..length]).unwrap();
        verify().expect(65).says(&["model.safetensors"]);
    }
    fs::remove_file(&shard).unwrap();
    assert!(matches!(verify().says(&["model.safetensors"]).code, 65 | 66));
    fs::write(&shard, whole).unwrap();
    verify().expect(0);
    fs::write(pair.output().join("config.json"), "{").unwrap();
    verify().expect(65).says(&["config.json"]);
}

#[test]
fn a_source_of_other_shapes_is_told_from_the_right_one() {
    let pair = Pair::new("FP8_DYNAMIC");
    let other = llama_sized(2, 128, 384).write(&pair.dir.path().join("other"));
    let verdict = verify(&pair.output(), &other);
    let faults = verdict["faults"].as_array().unwrap();
    let has = |kind: &str, place: &str| faults.iter().any(|it| it["kind"] == kind && it["place"] == place);
    assert!(has("layout", UP), "{faults:#?}");
    assert!(has("dropped", "model.layers.1.mlp.up_proj.weight"), "{faults:#?}");
}

#[test]
fn microscales_and_zero_points_are_judged_too() {
    let pair = Pair::new("MXFP4A16");
    let scale = format!("{UP}.weight_scale");
    pair.finds("scale", &scale, |it| it.get_mut(&scale).unwrap().2[3] = 255);
    let pair = Pair::new("W4A16_ASYM");
    let points = format!("{UP}.weight_zero_point");
    pair.finds("unreadable", UP, |it| it.get_mut(&points).unwrap().1.reverse());
    // What follows from it is not told again.
    change_tensors(&pair.output(), |it| it.get_mut(&points).unwrap().1.reverse());
    assert_eq!(verify(&pair.output(), &pair.source())["faults"].as_array().unwrap().len(), 1);
    let pair = Pair::new("FP8_DYNAMIC");
    let weight = format!("{UP}.weight");
    // A code that is no number.
    pair.finds("distance", UP, |it| it.get_mut(&weight).unwrap().2[17] = 0x7f);
}
