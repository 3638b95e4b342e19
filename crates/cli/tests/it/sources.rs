//! Sources that are compressed already, in this format or another: read on the fly, each against values worked out here.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::{
    checkpoints::{
        Checkpoint, Tensor, assert_same_contents, bf16_values, change_tensors, config_of, llama, random, read_tensors,
    },
    command::{convert, quantize, run, verify_sound},
};

/// 0 to 15, from a stream of its own for each name.
fn codes(name: &str, n: usize) -> Vec<u32> {
    random(name, n).iter().map(|it| ((it + 0.1) * 79.9) as u32).collect()
}

/// Powers of two from 1/64 to 1/8: products with small integers are exact in every float type here.
fn scales(name: &str, n: usize) -> Vec<f32> {
    random(name, n).iter().map(|it| 2.0_f32.powi(-3 - ((it + 0.1) * 19.9) as i32)).collect()
}

fn f16(values: &[f32]) -> Vec<u8> {
    // Powers of two alone: the exponent is all there is.
    let half = |it: &f32| (((it.to_bits() >> 23) as u16 + 15 - 127) << 10).to_le_bytes();
    values.iter().flat_map(half).collect()
}

fn i32s(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2.0_f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

fn config(quantization: Value) -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
           "quantization_config": quantization})
}

fn dense_values(tensor: &(String, Vec<usize>, Vec<u8>)) -> Vec<f32> {
    match tensor.0.as_str() {
        "BF16" => bf16_values(&tensor.2),
        "F16" => tensor.2.chunks_exact(2).map(|it| half_value(u16::from_le_bytes([it[0], it[1]]))).collect(),
        "F32" => tensor.2.chunks_exact(4).map(|it| f32::from_le_bytes(it.try_into().unwrap())).collect(),
        other => panic!("{other}"),
    }
}

fn half_value(bits: u16) -> f32 {
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let magnitude = match exponent {
        0 => mantissa / 1024.0 * 2.0_f32.powi(-14),
        _ => (1.0 + mantissa / 1024.0) * 2.0_f32.powi(exponent - 15),
    };
    if bits & 0x8000 == 0 { magnitude } else { -magnitude }
}

/// Converts to dense, compares with `expected` exactly, then compresses anew and verifies.
#[track_caller]
fn check(source: &Path, dir: &Path, expected: &[(&str, [usize; 2], Vec<f32>)], scheme: &str, least_db: f64) -> PathBuf {
    let dense = dir.join("dense");
    convert(source, &dense, "--to dense").expect(0);
    assert!(config_of(&dense).get("quantization_config").is_none());
    let made = read_tensors(&dense);
    for (module, shape, values) in expected {
        let tensor = &made[&format!("{module}.weight")];
        assert_eq!(tensor.1, shape, "{module}");
        let found = dense_values(tensor);
        let wrong = found.iter().zip(values).position(|(a, b)| a != b);
        assert_eq!(wrong.map(|at| (at, found[at], values[at])), None, "{module}");
    }
    verify_sound(&dense, source, f64::INFINITY);
    let output = dir.join("out");
    quantize(source, &output, scheme).expect(0);
    verify_sound(&output, source, least_db);
    // It is what the dense checkpoint gives, bit for bit.
    let apart = dir.join("apart");
    quantize(&dense, &apart, scheme).expect(0);
    assert_same_contents(&output, &apart);
    output
}

#[test]
fn a_compressed_source_is_compressed_anew_as_its_dense_form_is() {
    let dir = tempdir().unwrap();
    let original = llama().write(&dir.path().join("in"));
    for (first, second) in [
        ("W4A16", "--scheme FP8_DYNAMIC"),
        ("W4A16_ASYM", "--scheme NVFP4A16"),
        ("NVFP4A16", "--scheme W8A16"),
        ("FP8_BLOCK", "--scheme W4A16 --group-size 32"),
        ("MXFP4A16", "--scheme W8A8"),
        ("W8A8", "--scheme MXFP8"),
        ("W3A16", "--scheme FP8_BLOCK"),
    ] {
        let place = dir.path().join(first);
        let source = place.join("source");
        std::fs::create_dir(&place).unwrap();
        quantize(&original, &source, &format!("--scheme {first}")).expect(0);
        let output = check(&source, &place, &[], second, 14.0);
        let section = &config_of(&output)["quantization_config"];
        let groups: Vec<&String> = section["config_groups"].as_object().unwrap().keys().collect();
        assert_eq!(groups, [second.split(' ').nth(1).unwrap()], "only the new config remains");
    }
}

#[test]
fn modules_that_stay_compressed_keep_their_group_under_their_own_names() {
    let dir = tempdir().unwrap();
    let original = llama().write(&dir.path().join("in"));
    let source = dir.path().join("w4");
    quantize(&original, &source, "--scheme W4A16").expect(0);
    let output = dir.path().join("mixed");
    quantize(&source, &output, "--scheme FP8_DYNAMIC --targets re:.*(gate|up)_proj$").expect(0);
    assert_eq!(verify_sound(&output, &source, 20.0)["n_compressed"], 7);
    let section = &config_of(&output)["quantization_config"];
    assert_eq!(section["format"], "mixed-precision");
    assert_eq!(section["ignore"], json!(["model.embed_tokens", "lm_head"]));
    let groups = section["config_groups"].as_object().unwrap();
    assert_eq!(groups.len(), 2);
    assert_eq!(groups["FP8_DYNAMIC"]["targets"], json!(["re:.*(gate|up)_proj$"]));
    let name = |it: &str| format!("model.layers.0.{it}");
    let left =
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"].map(name);
    assert_eq!(names(&groups["W4A16"]["targets"]), BTreeSet::from(left.clone()));
    assert_eq!(groups["W4A16"]["format"], "pack-quantized");
    let (before, after) = (read_tensors(&source), read_tensors(&output));
    for module in left {
        for local in ["weight_packed", "weight_scale", "weight_shape"] {
            let tensor = format!("{module}.{local}");
            assert_eq!(before[&tensor], after[&tensor]);
        }
    }

    // The rest in the same scheme again: a free name for the new group, and nothing of the old one is lost.
    let again = dir.path().join("again");
    quantize(&output, &again, "--scheme W4A16 --group-size 32 --targets re:.*mlp.* --ignore re:.*down_proj").expect(0);
    verify_sound(&again, &output, 14.0);
    let section = &config_of(&again)["quantization_config"];
    let groups = section["config_groups"].as_object().unwrap();
    assert_eq!(groups.keys().collect::<Vec<_>>(), ["W4A16", "W4A16_1"]);
    // The pattern would take in the down projection, which is compressed otherwise.
    let new = ["mlp.gate_proj", "mlp.up_proj"].map(name);
    assert_eq!(names(&groups["W4A16_1"]["targets"]), BTreeSet::from(new));
    assert_eq!(groups["W4A16"]["targets"].as_array().unwrap().len(), 5);
    assert_eq!(section["format"], "pack-quantized");
    assert_eq!(section["ignore"], json!(["model.embed_tokens", "lm_head"]));
}

/// The entries of a list, in no order.
fn names(list: &Value) -> BTreeSet<String> {
    list.as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()).collect()
}

#[test]
fn scales_of_inputs_go_with_the_scheme_that_they_belong_to() {
    let dir = tempdir().unwrap();
    let original = llama().write(&dir.path().join("in"));
    let source = dir.path().join("fp8");
    quantize(&original, &source, "--scheme FP8_DYNAMIC").expect(0);
    let modules = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"];
    change_tensors(&source, |tensors| {
        for module in modules {
            tensors
                .insert(format!("{module}.input_scale"), ("F32".to_owned(), vec![1], 1.0_f32.to_le_bytes().to_vec()));
        }
        let cache = "model.layers.0.self_attn.k_scale".to_owned();
        tensors.insert(cache, ("F32".to_owned(), vec![1], 1.0_f32.to_le_bytes().to_vec()));
    });
    let output = dir.path().join("out");
    let ran = quantize(&source, &output, "--scheme W4A16 --targets re:.*up_proj --format json").expect(0).json();
    assert_eq!(ran["dropped"], json!(["model.layers.0.mlp.up_proj.input_scale"]));
    let made = read_tensors(&output);
    assert!(!made.contains_key("model.layers.0.mlp.up_proj.input_scale"));
    assert!(made.contains_key("model.layers.0.mlp.down_proj.input_scale"));
    assert!(made.contains_key("model.layers.0.self_attn.k_scale"));
    verify_sound(&output, &source, 14.0);
}

/// A source, and for each of its modules the shape and the values that its weight stands for.
type ForeignSource = (Checkpoint, Vec<(&'static str, [usize; 2], Vec<f32>)>);

/// FP8 with block scales; the scales in a shard of their own.
fn fp8_source(scale: impl Fn(&str, [usize; 2]) -> (Tensor, Vec<f32>)) -> ForeignSource {
    let mut expected = Vec::new();
    let (mut weights, mut scales) = (vec![Tensor::bf16("model.embed_tokens.weight", &[8, 128])], Vec::new());
    // 200 rows and 192 columns leave ragged blocks.
    for (module, [rows, cols]) in
        [("model.layers.0.mlp.up_proj", [200, 256]), ("model.layers.0.mlp.down_proj", [256, 192])]
    {
        let data: Vec<u8> = codes(module, 2 * rows * cols).chunks(2).map(|it| (it[0] * 16 + it[1]) as u8).collect();
        let data: Vec<u8> = data.into_iter().map(|it| if it & 0x7f == 0x7f { 0 } else { it }).collect();
        let tiles = [rows.div_ceil(128), cols.div_ceil(128)];
        let (tensor, factors) = scale(&format!("{module}.weight_scale_inv"), tiles);
        let value = |idx: usize| e4m3(data[idx]) * factors[idx / cols / 128 * tiles[1] + idx % cols / 128];
        expected.push((module, [rows, cols], (0..rows * cols).map(value).collect()));
        weights.push(Tensor::new(&format!("{module}.weight"), "F8_E4M3", &[rows, cols], data));
        scales.push(tensor);
    }
    let quantization =
        json!({"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]});
    (Checkpoint { config: config(quantization), shards: vec![weights, scales] }, expected)
}

#[test]
fn fp8_blocks_with_f32_scales_in_another_shard_are_read() {
    let dir = tempdir().unwrap();
    let (model, expected) = fp8_source(|name, tiles| {
        let factors = scales(name, tiles[0] * tiles[1]);
        (Tensor::f32(name, &tiles, &factors), factors)
    });
    let source = model.write(&dir.path().join("in"));
    check(&source, dir.path(), &expected, "--scheme W8A16 --group-size 64", 30.0);
}

#[test]
fn fp8_blocks_with_exponents_for_scales_are_read() {
    for dtype in ["F8_E8M0", "U8"] {
        let dir = tempdir().unwrap();
        let (model, expected) = fp8_source(|name, tiles| {
            let factors = scales(name, tiles[0] * tiles[1]);
            let exponents = factors.iter().map(|it| (it.to_bits() >> 23) as u8).collect();
            (Tensor::new(name, dtype, &tiles, exponents), factors)
        });
        let source = model.write(&dir.path().join("in"));
        check(&source, dir.path(), &expected, "--scheme NVFP4A16", 12.0);
    }
}

const IN: usize = 128;
const OUT: usize = 64;
const GROUP: usize = 32;
const MODULES: [&str; 2] = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"];

/// Codes by input and output, zero points and scales by group and output, and the weight they mean.
struct Int4 {
    codes: Vec<u32>,
    zeros: Vec<u32>,
    scales: Vec<f32>,
    weight: Vec<f32>,
}

fn int4(module: &str, group_of: impl Fn(usize) -> usize) -> Int4 {
    let codes = codes(module, IN * OUT);
    let zeros: Vec<u32> =
        self::codes(&format!("{module}.z"), IN / GROUP * OUT).into_iter().map(|it| it.clamp(1, 15)).collect();
    let scales = scales(&format!("{module}.s"), IN / GROUP * OUT);
    let weight = (0..OUT * IN).map(|idx| {
        let (out, input) = (idx / IN, idx % IN);
        let at = group_of(input) * OUT + out;
        (codes[input * OUT + out] as f32 - zeros[at] as f32) * scales[at]
    });
    let weight = weight.collect();
    Int4 { codes, zeros, scales, weight }
}

/// Eight codes a word, `order[i]` being the column in nibble `i`.
fn packed(codes: &[u32], order: [usize; 8]) -> Vec<u8> {
    i32s(codes.chunks_exact(8).map(|it| (0..8).fold(0, |word, i| word | it[order[i]] << (4 * i))))
}

fn awq_source() -> ForeignSource {
    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let mut tensors = vec![Tensor::bf16("model.norm.weight", &[IN])];
    let mut expected = Vec::new();
    for module in MODULES {
        let it = int4(module, |input| input / GROUP);
        tensors.push(Tensor::new(&format!("{module}.qweight"), "I32", &[IN, OUT / 8], packed(&it.codes, ORDER)));
        tensors.push(Tensor::new(&format!("{module}.qzeros"), "I32", &[IN / GROUP, OUT / 8], packed(&it.zeros, ORDER)));
        tensors.push(Tensor::new(&format!("{module}.scales"), "F16", &[IN / GROUP, OUT], f16(&it.scales)));
        expected.push((module, [OUT, IN], it.weight));
    }
    let quantization =
        json!({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": true, "version": "gemm"});
    (Checkpoint::single(config(quantization), tensors), expected)
}

#[test]
fn autoawq_is_read() {
    let dir = tempdir().unwrap();
    let (model, expected) = awq_source();
    let source = model.write(&dir.path().join("in"));
    check(&source, dir.path(), &expected, "--scheme FP8_DYNAMIC", 25.0);
}

#[test]
fn a_module_of_another_format_that_is_not_targeted_becomes_dense() {
    let dir = tempdir().unwrap();
    let (model, expected) = awq_source();
    let source = model.write(&dir.path().join("in"));
    let output = dir.path().join("out");
    quantize(&source, &output, "--scheme W8A8 --targets re:.*up_proj").expect(0);
    assert_eq!(verify_sound(&output, &source, 30.0)["n_compressed"], 1);
    let made = read_tensors(&output);
    assert_eq!(dense_values(&made["model.layers.0.mlp.down_proj.weight"]), expected[1].2);
    assert!(made.keys().all(|it| !it.ends_with("qweight") && !it.ends_with("qzeros")), "{:?}", made.keys());
    assert_eq!(config_of(&output)["quantization_config"]["ignore"], json!(["model.layers.0.mlp.down_proj"]));
}

fn gptq_source(g_idx: impl Fn(usize) -> usize) -> ForeignSource {
    let mut tensors = vec![Tensor::bf16("model.norm.weight", &[IN])];
    let mut expected = Vec::new();
    for module in MODULES {
        let it = int4(module, &g_idx);
        // Along the inputs: transposed, packed, and transposed again.
        let words = (0..IN / 8 * OUT).map(|idx| {
            let (row, out) = (idx / OUT, idx % OUT);
            (0..8).fold(0, |word, i| word | it.codes[(8 * row + i) * OUT + out] << (4 * i))
        });
        let stored: Vec<u32> = it.zeros.iter().map(|it| it - 1).collect();
        let zeros = packed(&stored, [0, 1, 2, 3, 4, 5, 6, 7]);
        let name = |local: &str| format!("{module}.{local}");
        tensors.push(Tensor::new(&name("qweight"), "I32", &[IN / 8, OUT], i32s(words)));
        tensors.push(Tensor::new(&name("qzeros"), "I32", &[IN / GROUP, OUT / 8], zeros));
        tensors.push(Tensor::new(&name("scales"), "F16", &[IN / GROUP, OUT], f16(&it.scales)));
        tensors.push(Tensor::new(&name("g_idx"), "I32", &[IN], i32s((0..IN).map(|it| g_idx(it) as u32))));
        expected.push((module, [OUT, IN], it.weight));
    }
    let quantization = json!({"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": false, "desc_act": true});
    (Checkpoint::single(config(quantization), tensors), expected)
}

#[test]
fn autogptq_is_read_in_either_order_of_columns() {
    for order in [|it: usize| it / GROUP, |it: usize| it % (IN / GROUP)] {
        let dir = tempdir().unwrap();
        let (model, expected) = gptq_source(order);
        let source = model.write(&dir.path().join("in"));
        check(&source, dir.path(), &expected, "--scheme W8A16 --group-size 16", 30.0);
    }
}

#[test]
fn modelopt_nvfp4_is_read() {
    let dir = tempdir().unwrap();
    let (mut tensors, mut expected) = (vec![Tensor::bf16("model.norm.weight", &[64])], Vec::new());
    for module in MODULES {
        let (rows, cols) = (48, 64);
        let codes = codes(module, rows * cols);
        let bytes = codes.chunks_exact(2).map(|it| (it[0] | it[1] << 4) as u8).collect();
        // e4m3 codes of 1, 2, 4 and 8.
        let scales: Vec<u8> =
            self::codes(&format!("{module}.s"), rows * cols / 16).iter().map(|it| ((7 + it % 4) << 3) as u8).collect();
        let global = 1.0_f32 / 64.0;
        let value = |idx: usize| {
            let magnitude = E2M1[codes[idx] as usize & 7] * e4m3(scales[idx / 16]) * global;
            if codes[idx] & 8 == 0 { magnitude } else { -magnitude }
        };
        expected.push((module, [rows, cols], (0..rows * cols).map(value).collect()));
        let name = |local: &str| format!("{module}.{local}");
        tensors.push(Tensor::new(&name("weight"), "U8", &[rows, cols / 2], bytes));
        tensors.push(Tensor::new(&name("weight_scale"), "F8_E4M3", &[rows, cols / 16], scales));
        tensors.push(Tensor::f32(&name("weight_scale_2"), &[], &[global]));
        tensors.push(Tensor::f32(&name("input_scale"), &[], &[0.5]));
    }
    let quantization = json!({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]});
    let source = Checkpoint::single(config(quantization), tensors).write(&dir.path().join("in"));
    check(&source, dir.path(), &expected, "--scheme FP8_DYNAMIC", 25.0);
    // Codes and scales as they are, under this format's names.
    let converted = dir.path().join("converted");
    convert(&source, &converted, "--to compressed-tensors").expect(0);
    verify_sound(&converted, &source, f64::INFINITY);
    let made = read_tensors(&converted);
    assert_eq!(
        made[&format!("{}.weight_packed", MODULES[0])].2,
        read_tensors(&source)[&format!("{}.weight", MODULES[0])].2
    );
}

#[test]
fn exports_come_back_with_the_same_codes() {
    let dir = tempdir().unwrap();
    let original = llama().write(&dir.path().join("in"));
    for (scheme, format) in [
        ("W4A16_ASYM", "auto-awq"),
        ("W4A16_ASYM", "auto-gptq"),
        ("W4A16", "auto-awq"),
        ("W4A16", "auto-gptq"),
        ("W8A16", "auto-gptq"),
    ] {
        let place = |it: &str| dir.path().join(format!("{scheme}-{format}-{it}"));
        quantize(&original, &place("ours"), &format!("--scheme {scheme}")).expect(0);
        convert(&place("ours"), &place("theirs"), &format!("--to {format}")).expect(0);
        let method = format.trim_start_matches("auto-");
        assert_eq!(config_of(&place("theirs"))["quantization_config"]["quant_method"], method);
        convert(&place("theirs"), &place("back"), "--to compressed-tensors").expect(0);
        let (ours, back) = (read_tensors(&place("ours")), read_tensors(&place("back")));
        for (name, tensor) in
            ours.iter().filter(|it| it.0.ends_with("weight_packed") || it.0.ends_with("weight_zero_point"))
        {
            // A format without a symmetric form stores zero points, and these are the middle.
            assert_eq!(Some(tensor), back.get(name), "{scheme} {format} {name}");
        }
        verify_sound(&place("back"), &original, 14.0);
        convert(&place("ours"), &place("dense-ours"), "--to dense --dtype float32").expect(0);
        convert(&place("theirs"), &place("dense-theirs"), "--to dense --dtype float32").expect(0);
        let (a, b) = (read_tensors(&place("dense-ours")), read_tensors(&place("dense-theirs")));
        assert!(a.keys().eq(b.keys()));
        let name = "model.layers.0.mlp.up_proj.weight";
        let pairs = dense_values(&a[name]).into_iter().zip(dense_values(&b[name])).collect::<Vec<_>>();
        // Their scales are f16, so that a product is rounded twice: one unit in the last place of a bf16.
        let far = pairs.iter().find(|(a, b)| (a - b).abs() > a.abs() / 128.0);
        assert_eq!(far, None, "{scheme} {format}");
    }
}

#[test]
fn a_compressed_checkpoint_becomes_dense_within_its_error() {
    let dir = tempdir().unwrap();
    let source = testkit::fixture("tiny-llama");
    let (packed, dense) = (dir.path().join("packed"), dir.path().join("dense"));
    quantize(&source, &packed, "--scheme W8A16").expect(0);
    convert(&packed, &dense, "--to dense").expect(0);
    assert!(config_of(&dense).get("quantization_config").is_none());
    let (a, b) = (read_tensors(&source), read_tensors(&dense));
    assert!(a.keys().eq(b.keys()));
    assert!(a.iter().all(|(name, it)| (&it.0, &it.1) == (&b[name].0, &b[name].1)));
    verify_sound(&dense, &source, 35.0);
}

#[test]
fn modules_that_conversion_leaves_stay_compressed_and_the_others_are_ignored() {
    let dir = tempdir().unwrap();
    let packed = dir.path().join("packed");
    quantize(&llama().write(&dir.path().join("in")), &packed, "--scheme FP8_DYNAMIC").expect(0);
    let name = |it: &str| format!("model.layers.0.{it}");
    change_tensors(&packed, |tensors| {
        for scale in ["mlp.up_proj.input_scale", "self_attn.q_proj.input_scale", "self_attn.k_scale"] {
            tensors.insert(name(scale), ("F32".to_owned(), vec![1], 1.0_f32.to_le_bytes().to_vec()));
        }
    });
    let partly = dir.path().join("partly");
    let report = convert(&packed, &partly, "--to dense --ignore re:.*mlp.* --format json").expect(0).json();
    assert_eq!(report["dropped"], json!([name("self_attn.q_proj.input_scale")]));
    assert_eq!(verify_sound(&partly, &packed, f64::INFINITY)["n_compressed"], 3);
    let section = &config_of(&partly)["quantization_config"];
    let dense = ["q", "k", "v", "o"].map(|it| name(&format!("self_attn.{it}_proj")));
    let expected = ["model.embed_tokens".to_owned(), "lm_head".to_owned()].into_iter().chain(dense.clone());
    assert_eq!(names(&section["ignore"]), expected.collect());
    let (before, after) = (read_tensors(&packed), read_tensors(&partly));
    for tensor in ["mlp.up_proj.weight", "mlp.up_proj.weight_scale", "mlp.up_proj.input_scale", "self_attn.k_scale"] {
        assert_eq!(before[&name(tensor)], after[&name(tensor)]);
    }
    assert!(dense.iter().all(|it| after[&format!("{it}.weight")].0 == "BF16"));
    // A pattern that leaves nothing leaves no section either.
    let all = dir.path().join("all");
    convert(&packed, &all, "--to dense --ignore re:.*norm").expect(0);
    assert!(config_of(&all).get("quantization_config").is_none());
    // Other formats have ways of their own to say which modules are dense.
    let foreign = awq_source().0.write(&dir.path().join("awq"));
    let refused = dir.path().join("refused");
    convert(&foreign, &refused, "--to dense --ignore re:.*up_proj").expect(2).says(&["--ignore", "another format"]);
    assert!(!refused.exists());
}

#[test]
fn conversions_that_make_no_sense_are_refused() {
    let dir = tempdir().unwrap();
    let source = llama().write(&dir.path().join("in"));
    let output = dir.path().join("out");
    for options in ["--to dense", "--to auto-awq", "--to auto-gptq", "--to compressed-tensors"] {
        let ran = convert(&source, &output, options);
        assert!(matches!(ran.code, 2 | 65) && ran.err.contains("error: "), "{options}: {ran:?}");
        assert!(!output.exists());
    }
    let fp8 = dir.path().join("fp8");
    quantize(&source, &fp8, "--scheme FP8_DYNAMIC").expect(0);
    let ran = convert(&fp8, &output, "--to auto-awq");
    assert!(matches!(ran.code, 2 | 65), "{ran:?}");
    convert(&fp8, &output, "--to dense --dtype int8").expect(2).says(&["--dtype", "int8"]);
    run(&["convert", fp8.to_str().unwrap(), output.to_str().unwrap(), "--to", "gguf"]).expect(2);
}
