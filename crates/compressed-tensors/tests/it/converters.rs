//! Converters and exporters: the reference's cases, round trips, and what is refused.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use compressed_tensors::{
    Array, DType, ErrorKind, ModuleTensors,
    args::ArgsBuilder,
    config::QuantizationConfig,
    converters::{
        ActOrder, AutoAwqConverter, AutoAwqExporter, AutoGptqConverter, AutoGptqExporter, CONVERTERS, CheckpointFormat,
        CompressedTensorsDequantizer, Converter, Fp8BlockDequantizer, MagnitudeExpertPruner, ModelOptNvfp4Converter,
        ZeroPoint, converter_entry, dense_chain, shapes_of, source_converter,
    },
    numbers::{e4m3_to_f32, round_bf16, round_f16},
    retired::{compress_sparse_24_bitmask, compress_sparse_bitmask},
    weight_map::{WeightMap, inverse_weight_maps},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::golden::{Formats, assert_same, values};

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|it| (*it).to_owned()).collect()
}

fn tensors(formats: &Formats, value: &Value) -> ModuleTensors {
    value.as_object().unwrap().iter().map(|(name, it)| (name.clone(), formats.array(it))).collect()
}

fn i32s(shape: &[usize], words: &[u32]) -> Array {
    let data = words.iter().flat_map(|it| it.to_le_bytes()).collect();
    Array { dtype: DType::I32, shape: shape.to_vec(), data }
}

fn floats(shape: &[usize], values: &[f32]) -> Array {
    let data = values.iter().flat_map(|it| it.to_le_bytes()).collect();
    Array { dtype: DType::F32, shape: shape.to_vec(), data }
}

fn f16s(shape: &[usize], values: &[f32]) -> Array {
    let data = values.iter().flat_map(|it| half::f16::from_f32(*it).to_le_bytes()).collect();
    Array { dtype: DType::F16, shape: shape.to_vec(), data }
}

fn module<const N: usize>(tensors: [(&str, Array); N]) -> ModuleTensors {
    tensors.into_iter().map(|(name, it)| (name.to_owned(), it)).collect()
}

/// Converts, and holds the plan against the result.
#[track_caller]
fn run(converter: &dyn Converter, tensors: &ModuleTensors) -> ModuleTensors {
    let converted = converter.process(tensors.clone()).unwrap();
    assert_eq!(converter.validate(&shapes_of(tensors)).unwrap(), shapes_of(&converted));
    converted
}

#[track_caller]
fn refused(converter: &dyn Converter, tensors: ModuleTensors) -> (ErrorKind, String) {
    let error = converter.process(tensors).unwrap_err();
    (error.kind().clone(), error.place().unwrap_or_default().to_owned())
}

#[test]
fn every_converter_case_is_reproduced() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let cases = manifest["converter_cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    let q_modules = strings(&["re:.*q$"]);
    for case in cases {
        let id = case["id"].as_str().unwrap();
        let awq =
            |zero_point| AutoAwqConverter::new(32, zero_point, strings(&["Linear"]), strings(&["lm_head"])).unwrap();
        let converter: Box<dyn Converter> = match id {
            "awq.zp" => Box::new(awq(ZeroPoint::Stored)),
            "awq.nozp" => Box::new(awq(ZeroPoint::Fixed)),
            "modelopt.nvfp4" => Box::new(ModelOptNvfp4Converter::new(q_modules.clone(), vec![], None).unwrap()),
            "modelopt.nvfp4.kv" => {
                let fp8 = ArgsBuilder::float(8).build().unwrap();
                Box::new(ModelOptNvfp4Converter::new(strings(&["re:.*"]), vec![], Some(fp8)).unwrap())
            }
            "fp8block.64x64" => Box::new(Fp8BlockDequantizer::new(&q_modules, &[], [64, 64], DType::BF16).unwrap()),
            other => panic!("{other}"),
        };
        let converted = run(converter.as_ref(), &tensors(&formats, &case["in"]));
        let expected = tensors(&formats, &case["out"]);
        assert_eq!(converted.len(), expected.len(), "{id}");
        for (name, tensor) in &expected {
            assert_eq!(&converted[name], tensor, "{id} {name}");
        }
        let config = converter.update_config(None).unwrap();
        assert_eq!(config.map_or(Value::Null, |it| it.to_json()), case["config"], "{id}");
    }
}

#[test]
fn exported_awq_is_the_checkpoint_that_was_imported() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    for case in &manifest["converter_cases"].as_array().unwrap()[..2] {
        let config = QuantizationConfig::from_json(&case["config"]).unwrap();
        let exporter = AutoAwqExporter::new(&config).unwrap();
        let exported = run(&exporter, &tensors(&formats, &case["out"]));
        for (name, tensor) in tensors(&formats, &case["in"]) {
            assert_eq!(exported[&name], tensor, "{} {name}", case["id"]);
        }
        // Symmetric weights get the zero point 8.
        if case["id"] == "awq.nozp" {
            assert!(exported["l.q.qzeros"].data.iter().all(|it| *it == 0x88));
        }
        let mut model_config = json!({"model_type": "llama"});
        exporter.update_model_config(&mut model_config).unwrap();
        let section = &model_config["quantization_config"];
        assert_eq!((&section["quant_method"], &section["group_size"]), (&json!("awq"), &json!(32)));
        let reader = AutoAwqConverter::from_source_config(section).unwrap();
        assert_eq!(reader.update_config(None).unwrap().unwrap().ignore, ["lm_head"]);
    }
}

/// Packs codes of a column as AutoGPTQ does: three bits in turns of 10, 1, 10, 1 and 10 codes.
fn gptq_words(codes: &[u32], bits: u32) -> Vec<u32> {
    let mut words = Vec::new();
    if bits != 3 {
        for run in codes.chunks(32 / bits as usize) {
            words.push(run.iter().enumerate().fold(0, |word, (i, code)| word | code << (bits as usize * i)));
        }
        return words;
    }
    for run in codes.chunks(32) {
        let turn =
            |from: usize, shift: usize| (from..from + 10).fold(0, |word, j| word | run[j] << (3 * (j - from) + shift));
        words.push(turn(0, 0) | run[10] << 30);
        words.push(run[10] >> 2 & 1 | turn(11, 1) | run[21] << 31);
        words.push(run[21] >> 1 & 3 | turn(22, 2));
    }
    words
}

/// A linear of 64 columns and 32 rows in two groups, and its dense values (O, N) in f16.
fn gptq_linear(bits: u32, offset: u32, symmetric: bool) -> (ModuleTensors, Vec<f32>) {
    let (n_in, n_out, n_groups) = (64, 32, 2);
    let mask = (1 << bits) - 1;
    let code = |i: usize, o: usize| (i as u32 * 7 + o as u32 * 13 + (i as u32 >> 3)) & mask;
    let zero = |g: usize, o: usize| if symmetric { 1 << (bits - 1) } else { (o as u32 + g as u32 * 5) & mask };
    let scale = |g: usize, o: usize| 0.25 + (g * n_out + o) as f32 / 64.0;
    let mut qweight = vec![0; n_in * bits as usize / 32 * n_out];
    for o in 0..n_out {
        let column: Vec<u32> = (0..n_in).map(|i| code(i, o)).collect();
        for (row, word) in gptq_words(&column, bits).into_iter().enumerate() {
            qweight[row * n_out + o] = word;
        }
    }
    let mut qzeros = Vec::new();
    for g in 0..n_groups {
        let row: Vec<u32> = (0..n_out).map(|o| zero(g, o).wrapping_sub(offset) & mask).collect();
        qzeros.extend(gptq_words(&row, bits));
    }
    let scales: Vec<f32> = (0..n_groups * n_out).map(|at| scale(at / n_out, at % n_out)).collect();
    let g_idx: Vec<u32> = (0..n_in as u32).map(|i| i / 32).collect();
    let dense = (0..n_out * n_in).map(|at| {
        let (o, i) = (at / n_in, at % n_in);
        round_f16((code(i, o) as f32 - zero(i / 32, o) as f32) * scale(i / 32, o))
    });
    let linear = module([
        ("l.q.qweight", i32s(&[n_in * bits as usize / 32, n_out], &qweight)),
        ("l.q.qzeros", i32s(&[n_groups, n_out * bits as usize / 32], &qzeros)),
        ("l.q.scales", f16s(&[n_groups, n_out], &scales)),
        ("l.q.g_idx", i32s(&[n_in], &g_idx)),
        ("l.q.bias", f16s(&[n_out], &vec![0.5; n_out])),
    ]);
    (linear, dense.collect())
}

fn gptq_config(bits: u32, symmetric: bool, format: &str) -> Value {
    json!({"quant_method": "gptq", "bits": bits, "group_size": 32, "sym": symmetric, "desc_act": false,
           "checkpoint_format": format})
}

#[test]
fn gptq_of_every_width_and_version_means_the_same_weights() {
    let mut n = 0;
    for bits in [2, 3, 4, 8] {
        for (format, offset) in [("gptq", 1), ("gptq_v2", 0)] {
            for symmetric in [false, true] {
                let (linear, dense) = gptq_linear(bits, offset, symmetric);
                let section = gptq_config(bits, symmetric, format);
                let converter = AutoGptqConverter::from_source_config(&section, ActOrder::Refuse).unwrap();
                let packed = run(&converter, &linear);
                assert_eq!(packed["l.q.bias"], linear["l.q.bias"]);
                assert_eq!(packed.contains_key("l.q.weight_zero_point"), !symmetric);

                let chain = dense_chain(&json!({"quantization_config": section}), DType::F32).unwrap();
                let done = chain.iter().fold(linear.clone(), |it, step| run(step.as_ref(), &it));
                assert_eq!(done.keys().collect::<Vec<_>>(), ["l.q.bias", "l.q.weight"]);
                assert_same(&values(&done["l.q.weight"]), &dense, &format!("{bits} bits {format} {symmetric}"));

                let config = converter.update_config(None).unwrap().unwrap();
                let version = if offset == 1 { CheckpointFormat::V1 } else { CheckpointFormat::V2 };
                let exporter = AutoGptqExporter::new(&config, version).unwrap();
                let exported = run(&exporter, &packed);
                assert_eq!(exported.len(), linear.len());
                for (name, tensor) in &linear {
                    assert_eq!(&exported[name], tensor, "{bits} bits {format} {name}");
                }
                let mut model_config = json!({});
                exporter.update_model_config(&mut model_config).unwrap();
                let mut written = model_config["quantization_config"].clone();
                assert_eq!(written.as_object_mut().unwrap().shift_remove("lm_head"), Some(json!(false)));
                assert_eq!(written, section);
                n += 1;
            }
        }
    }
    assert_eq!(n, 16);
}

#[test]
fn gptq_with_columns_out_of_order_is_refused_or_dequantized() {
    let (mut linear, _) = gptq_linear(4, 1, false);
    // Columns 2 c and 2 c + 1 swap halves: even columns are of group 0, odd ones of group 1.
    linear["l.q.g_idx"] = i32s(&[64], &(0..64).map(|i| i % 2).collect::<Vec<_>>());
    let section = gptq_config(4, false, "gptq");
    let strict = AutoGptqConverter::from_source_config(&section, ActOrder::Refuse).unwrap();
    let (kind, place) = refused(&strict, linear.clone());
    assert!(matches!(kind, ErrorKind::Unsupported { what } if what.contains("desc_act")));
    assert_eq!(place, "l.q");

    let model_config = json!({"quantization_config": section});
    let chain = dense_chain(&model_config, DType::F32).unwrap();
    let done = chain.iter().fold(linear.clone(), |it, step| step.process(it).unwrap());
    let dense = values(&done["l.q.weight"]);
    let (scales, zero) = (values(&linear["l.q.scales"]), |g: u32, o: u32| ((o + g * 5) & 15) as f32);
    for o in 0..32_u32 {
        for i in 0..64_u32 {
            let code = ((i * 7 + o * 13 + (i >> 3)) & 15) as f32;
            let expected = (code - zero(i % 2, o)) * scales[(i % 2 * 32 + o) as usize];
            assert_eq!(dense[(o * 64 + i) as usize], expected, "row {o} column {i}");
        }
    }

    linear["l.q.g_idx"] = i32s(&[64], &[0; 64]);
    assert!(matches!(refused(&strict, linear.clone()).0, ErrorKind::InvalidField { field, .. } if field == "g_idx"));
    linear["l.q.g_idx"] = i32s(&[64], &[u32::MAX; 64]);
    assert!(matches!(refused(&strict, linear).0, ErrorKind::InvalidField { field, .. } if field == "g_idx"));
}

#[test]
fn gptq_that_contradicts_its_config_is_refused() {
    let read = |config: &Value| AutoGptqConverter::from_source_config(config, ActOrder::Refuse);
    for (field, value) in
        [("bits", json!(5)), ("group_size", json!(0)), ("sym", json!("yes")), ("checkpoint_format", json!("marlin"))]
    {
        let mut config = gptq_config(4, true, "gptq");
        config[field] = value;
        let error = read(&config).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidField { field: it, .. } if it == field), "{error}");
    }
    let mut config = gptq_config(4, true, "gptq");
    config["dynamic"] = json!({"-:.*down": {}});
    assert!(matches!(read(&config).unwrap_err().kind(), ErrorKind::Unsupported { .. }));

    let symmetric = read(&gptq_config(4, true, "gptq")).unwrap();
    let (asymmetric, _) = gptq_linear(4, 1, false);
    assert!(matches!(refused(&symmetric, asymmetric).0, ErrorKind::InvalidField { field, .. } if field == "qzeros"));

    let converter = read(&gptq_config(4, false, "gptq")).unwrap();
    let (good, _) = gptq_linear(4, 1, false);
    for name in ["qweight", "qzeros", "scales"] {
        let mut module = good.clone();
        module.shift_remove(&format!("l.q.{name}"));
        let (kind, place) = refused(&converter, module);
        match kind {
            ErrorKind::MissingTensor { tensor } => assert_eq!(tensor, name),
            // What stays without codes is left over.
            ErrorKind::UnexpectedTensor { .. } => assert_eq!(name, "qweight"),
            other => panic!("{other}"),
        }
        assert_eq!(place, "l.q");
        let mut module = good.clone();
        module[&format!("l.q.{name}")].shape[0] += 1;
        assert!(matches!(refused(&converter, module).0, ErrorKind::Shape { .. }), "{name}");
        let mut module = good.clone();
        module[&format!("l.q.{name}")].dtype = DType::I64;
        assert!(matches!(refused(&converter, module).0, ErrorKind::DType { tensor, .. } if tensor == name));
        let mut module = good.clone();
        module[&format!("l.q.{name}")].data.pop();
        assert!(matches!(refused(&converter, module).0, ErrorKind::Shape { tensor, .. } if tensor == name));
    }
    let head: ModuleTensors = good.into_iter().map(|(name, it)| (name.replace("l.q", "lm_head"), it)).collect();
    let (kind, place) = refused(&converter, head);
    assert!(matches!(kind, ErrorKind::UnexpectedTensor { tensor, .. } if tensor == "qweight"));
    assert_eq!(place, "lm_head");
}

#[test]
fn awq_configs_are_read_and_bad_ones_refused() {
    let config = json!({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": false, "version": "GEMM",
                        "modules_to_not_convert": ["visual.0", "mlp-gate"]});
    let read = AutoAwqConverter::from_source_config(&config).unwrap().update_config(None).unwrap().unwrap();
    assert_eq!(read.ignore, ["lm_head", r"re:.*visual\.0.*", r"re:.*mlp\-gate.*"]);
    let weights = read.config_groups["config_group_0"].weights.as_ref().unwrap();
    assert_eq!((weights.group_size, weights.symmetric), (Some(64), true));
    let exporter = AutoAwqExporter::new(&read).unwrap();
    let mut written = json!({});
    exporter.update_model_config(&mut written).unwrap();
    assert_eq!(written["quantization_config"]["modules_to_not_convert"], config["modules_to_not_convert"]);

    for (field, value) in
        [("bits", json!(3)), ("version", json!("gemv")), ("group_size", json!("a")), ("zero_point", json!(7))]
    {
        let mut bad = config.clone();
        bad[field] = value;
        let error = AutoAwqConverter::from_source_config(&bad).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidField { field: it, .. } if it == field), "{error}");
    }
    let mut with_regex = read;
    with_regex.ignore.push("re:.*layers.[0-9]$".to_owned());
    let error = AutoAwqExporter::new(&with_regex).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InvalidField { field, .. } if field == "ignore"));
}

#[test]
fn awq_tensors_that_do_not_fit_are_refused() {
    let converter = AutoAwqConverter::new(32, ZeroPoint::Stored, strings(&["Linear"]), strings(&["lm_head"])).unwrap();
    let good = module([
        ("q.qweight", i32s(&[64, 1], &[0; 64])),
        ("q.qzeros", i32s(&[2, 1], &[0; 2])),
        ("q.scales", f16s(&[2, 8], &[1.0; 16])),
    ]);
    let change = |name: &str, change: &dyn Fn(&mut Array)| {
        let mut module = good.clone();
        change(&mut module[name]);
        refused(&converter, module).0
    };
    let groups = change("q.qweight", &|it| it.shape = vec![32, 2]);
    assert!(matches!(groups, ErrorKind::Shape { tensor, .. } if tensor == "scales"));
    let ragged = change("q.qweight", &|it| it.shape = vec![63, 1]);
    assert!(matches!(ragged, ErrorKind::Shape { tensor, .. } if tensor == "qweight"));
    let codes = change("q.scales", &|it| it.dtype = DType::I16);
    assert!(matches!(codes, ErrorKind::DType { tensor, .. } if tensor == "scales"));
    let cut = change("q.qzeros", &|it| it.data.truncate(4));
    assert!(matches!(cut, ErrorKind::Shape { tensor, .. } if tensor == "qzeros"));
    let mut alone = good.clone();
    alone.shift_remove("q.qweight");
    assert!(matches!(refused(&converter, alone).0, ErrorKind::UnexpectedTensor { .. }));
    let fixed = AutoAwqConverter::new(32, ZeroPoint::Fixed, strings(&["Linear"]), vec![]).unwrap();
    assert!(matches!(refused(&fixed, good).0, ErrorKind::UnexpectedTensor { tensor, .. } if tensor == "qzeros"));
}

fn packed_config(bits: i64, group_size: i64, symmetric: bool) -> QuantizationConfig {
    let weights = json!({"num_bits": bits, "group_size": group_size, "symmetric": symmetric});
    QuantizationConfig::from_json(&json!({"config_groups": {"g": {"targets": ["Linear"], "weights": weights,
        "format": "pack-quantized"}}, "format": "pack-quantized", "ignore": ["lm_head"]}))
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_packed_linear_survives_export_and_import(
        bits in prop::sample::select(vec![2_u32, 3, 4, 8]),
        (rows, groups) in (1_usize..4, 1_usize..4),
        symmetric in any::<bool>(),
        words in prop::collection::vec(any::<u32>(), 32 * 3 * 32 * 3 / 4),
    ) {
        let (n_out, n_in) = (rows * 32, groups * 32);
        let n_words = n_in * bits as usize / 32;
        let packed = i32s(&[n_out, n_words], &words[..n_out * n_words]);
        let shape = Array {
            dtype: DType::I64,
            shape: vec![2],
            data: [n_out, n_in].iter().flat_map(|it| (*it as i64).to_le_bytes()).collect(),
        };
        let scales: Vec<f32> = words[..n_out * groups].iter().map(|it| 0.01 + (it & 255) as f32 / 256.0).collect();
        let mut linear = module([
            ("q.weight_packed", packed), ("q.weight_shape", shape), ("q.weight_scale", f16s(&[n_out, groups], &scales)),
        ]);
        if !symmetric {
            let n = n_out * bits as usize / 32 * groups;
            linear.insert("q.weight_zero_point".to_owned(), i32s(&[n / groups, groups], &words[7..7 + n]));
        }
        let config = packed_config(i64::from(bits), 32, symmetric);
        for version in [CheckpointFormat::V1, CheckpointFormat::V2] {
            let exporter = AutoGptqExporter::new(&config, version).unwrap();
            let exported = run(&exporter, &linear);
            let mut model_config = json!({});
            exporter.update_model_config(&mut model_config).unwrap();
            let importer = source_converter(&model_config, DType::BF16).unwrap().unwrap();
            let back = run(importer.as_ref(), &exported);
            for (name, tensor) in &linear {
                prop_assert_eq!(&back[name], tensor, "{}", name);
            }
            prop_assert_eq!(back.len(), linear.len());
        }
        if bits == 4 {
            let exporter = AutoAwqExporter::new(&config).unwrap();
            let exported = run(&exporter, &linear);
            let zero_point = if symmetric { ZeroPoint::Fixed } else { ZeroPoint::Stored };
            let importer = AutoAwqConverter::new(32, zero_point, strings(&["Linear"]), vec![]).unwrap();
            let mut exported = exported;
            if symmetric {
                exported.shift_remove("q.qzeros");
            }
            let back = run(&importer, &exported);
            for (name, tensor) in &linear {
                prop_assert_eq!(&back[name], tensor, "{}", name);
            }
        }
    }
}

#[test]
fn what_an_export_cannot_say_is_refused() {
    let unsupported = |config: &QuantizationConfig| {
        let awq = AutoAwqExporter::new(config).unwrap_err();
        matches!(awq.kind(), ErrorKind::Unsupported { .. })
    };
    assert!(unsupported(&packed_config(8, 32, true)));
    assert!(unsupported(&QuantizationConfig::default()));
    let mut two = packed_config(4, 32, true);
    two.config_groups.insert("h".to_owned(), two.config_groups["g"].clone());
    assert!(unsupported(&two));
    let fp8 = json!({"config_groups": {"FP8_DYNAMIC": ["Linear"]}});
    assert!(unsupported(&QuantizationConfig::from_json(&fp8).unwrap()));
    let five = AutoGptqExporter::new(&packed_config(5, 32, true), CheckpointFormat::V1).unwrap_err();
    assert!(matches!(five.kind(), ErrorKind::Unsupported { .. }));

    let exporter = AutoAwqExporter::new(&packed_config(4, 32, true)).unwrap();
    let shape = |rows: i64, cols: i64| Array {
        dtype: DType::I64,
        shape: vec![2],
        data: [rows, cols].iter().flat_map(|it| it.to_le_bytes()).collect(),
    };
    let linear = |scale: f32, rows: i64| {
        module([
            ("q.weight_packed", i32s(&[8, 4], &[0; 32])),
            ("q.weight_shape", shape(rows, 32)),
            ("q.weight_scale", floats(&[8, 1], &[scale; 8])),
        ])
    };
    run(&exporter, &linear(1.0, 8));
    for scale in [1e6, 1e-12, f32::NAN] {
        let (kind, place) = refused(&exporter, linear(scale, 8));
        assert!(matches!(kind, ErrorKind::InvalidField { field, .. } if field == "weight_scale"));
        assert_eq!(place, "q");
    }
    let mut huge = shapes_of(&linear(1.0, 8));
    huge["q.weight_packed"].shape = vec![usize::MAX, usize::MAX / 8 + 1];
    huge["q.weight_scale"].shape = vec![usize::MAX, usize::MAX / 32 + 1];
    let gptq = AutoGptqExporter::new(&packed_config(4, 32, true), CheckpointFormat::V1).unwrap();
    assert!(matches!(gptq.validate(&huge).unwrap_err().kind(), ErrorKind::Shape { .. }));
    assert!(
        matches!(refused(&exporter, linear(1.0, 9)).0, ErrorKind::InvalidField { field, .. } if field == "weight_shape")
    );
}

#[test]
fn fp8_blocks_take_f32_bf16_and_exponent_scales() {
    let (rows, cols) = (5, 7);
    let codes =
        Array { dtype: DType::F8E4M3, shape: vec![2, rows, cols], data: (0..70).map(|i| i * 3 % 126).collect() };
    let exponents: Vec<u8> = (0..12).map(|i| 120 + i).collect();
    let factor = |i: usize| 2_f32.powi(i as i32 - 7);
    let scales = [
        floats(&[2, 3, 2], &(0..12).map(factor).collect::<Vec<_>>()),
        Array { dtype: DType::F8E8M0, shape: vec![2, 3, 2], data: exponents.clone() },
        Array { dtype: DType::U8, shape: vec![2, 3, 2], data: exponents },
    ];
    let expected: Vec<f32> = (0..70)
        .map(|at| {
            let (matrix, row, col) = (at / 35, at % 35 / 7, at % 7);
            round_bf16(e4m3_to_f32(codes.data[at]) * factor(matrix * 6 + row / 2 * 2 + col / 4))
        })
        .collect();
    let converter = Fp8BlockDequantizer::new(&[], &[], [2, 4], DType::BF16).unwrap();
    for scale in scales {
        let done = run(&converter, &module([("experts.up", codes.clone()), ("experts.up_scale_inv", scale)]));
        assert_same(&values(&done["experts.up"]), &expected, "blocks");
    }
}

#[test]
fn fp8_without_its_scales_is_refused() {
    let section =
        json!({"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]});
    let converter = Fp8BlockDequantizer::from_source_config(&section, DType::BF16).unwrap();
    let codes = || Array { dtype: DType::F8E4M3, shape: vec![2, 2], data: vec![0; 4] };
    let scale = |shape: &[usize]| floats(shape, &vec![1.0; shape.iter().product()]);
    let (kind, place) = refused(&converter, module([("l.q.weight", codes())]));
    assert!(matches!(kind, ErrorKind::MissingTensor { tensor } if tensor == "weight_scale_inv"));
    assert_eq!(place, "l.q");
    let alone = refused(&converter, module([("l.q.weight_scale_inv", scale(&[1, 1]))])).0;
    assert!(matches!(alone, ErrorKind::UnexpectedTensor { tensor, .. } if tensor == "weight_scale_inv"));
    let big = refused(&converter, module([("q.weight", codes()), ("q.weight_scale_inv", scale(&[2, 1]))])).0;
    assert!(matches!(big, ErrorKind::Shape { tensor, .. } if tensor == "weight_scale_inv"));
    let flat = Array { shape: vec![4], ..codes() };
    let flat = refused(&converter, module([("q.weight", flat), ("q.weight_scale_inv", scale(&[1]))])).0;
    assert!(matches!(flat, ErrorKind::Shape { tensor, .. } if tensor == "weight"));
    let dense = module([("q.weight", floats(&[2, 2], &[0.0; 4])), ("q.weight_scale_inv", scale(&[1, 1]))]);
    assert!(matches!(refused(&converter, dense).0, ErrorKind::DType { .. }));
    // Ignored modules and dense weights stay as they are.
    let kept = module([("lm_head.weight", codes()), ("norm.weight", floats(&[2], &[1.0; 2]))]);
    assert_eq!(run(&converter, &kept), kept);
    for bad in [json!(null), json!([128]), json!(["a", "b"]), json!([0, 1])] {
        let config = json!({"weight_block_size": bad});
        let error = Fp8BlockDequantizer::from_source_config(&config, DType::BF16).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidField { field, .. } if field == "weight_block_size"));
    }
    assert!(Fp8BlockDequantizer::new(&[], &[], [1, 1], DType::I8).is_err());
}

#[test]
fn scales_are_found_in_other_shards() {
    let map: WeightMap = [("a.weight", "1"), ("a.weight_scale_inv", "2"), ("b.weight", "2"), ("norm.weight", "2")]
        .into_iter()
        .map(|(name, shard)| (name.to_owned(), shard.to_owned()))
        .collect();
    let converter = Fp8BlockDequantizer::new(&[], &[], [128, 128], DType::BF16).unwrap();
    let exists = |name: &str| map.contains_key(name);
    let outputs = inverse_weight_maps(&map, |name| converter.dependencies(name, &exists).unwrap()).unwrap();
    assert_eq!(
        json!(outputs),
        json!({"1": {"1": ["a.weight"], "2": ["a.weight_scale_inv"]}, "2": {"2": ["b.weight", "norm.weight"]}})
    );

    let names = ["q.weight", "q.weight_scale", "q.weight_scale_2", "q.input_scale", "norm.weight"];
    let exists = |name: &str| names.contains(&name);
    let modelopt = ModelOptNvfp4Converter::new(strings(&["Linear"]), vec![], None).unwrap();
    assert_eq!(
        modelopt.dependencies("q.weight", &exists).unwrap(),
        ["q.weight_scale", "q.weight_scale_2", "q.input_scale"]
    );
    assert!(modelopt.dependencies("norm.weight", &exists).unwrap().is_empty());
    let gptq = AutoGptqConverter::from_source_config(&gptq_config(4, true, "gptq"), ActOrder::Refuse).unwrap();
    assert_eq!(gptq.dependencies("q.qweight", &|_| false).unwrap(), ["q.qzeros", "q.scales"]);
    let awq = AutoAwqConverter::new(32, ZeroPoint::Stored, strings(&["Linear"]), vec![]).unwrap();
    assert_eq!(awq.dependencies("q.qweight", &|_| false).unwrap(), ["q.scales", "q.qzeros"]);
    let packed = ["q.weight_packed", "q.weight_scale", "q.weight_shape", "q.bias"];
    let dequantizer = CompressedTensorsDequantizer::new(packed_config(4, 32, true), &[], DType::BF16).unwrap();
    let exists = |name: &str| packed.contains(&name);
    assert_eq!(dequantizer.dependencies("q.weight_packed", &exists).unwrap(), ["q.weight_scale", "q.weight_shape"]);
    assert!(dequantizer.dependencies("q.bias", &exists).unwrap().is_empty());
    assert_eq!(
        AutoAwqExporter::new(&packed_config(4, 32, true))
            .unwrap()
            .dependencies("q.weight_packed", &exists)
            .unwrap()
            .len(),
        2
    );
}

#[test]
fn modelopt_scales_without_a_weight_are_refused() {
    let all = ModelOptNvfp4Converter::new(strings(&["Linear"]), strings(&["lm_head"]), None).unwrap();
    let scale = || floats(&[], &[0.5]);
    for name in ["weight_scale", "weight_scale_2", "input_scale", "k_scale", "v_scale"] {
        let tensors: ModuleTensors = [(format!("l.q.{name}"), scale())].into_iter().collect();
        let (kind, place) = refused(&all, tensors);
        let found = match kind {
            ErrorKind::UnexpectedTensor { tensor, .. } | ErrorKind::MissingTensor { tensor } => tensor,
            other => panic!("{other}"),
        };
        assert!(found == name || (name == "weight_scale_2" && found == "weight"), "{name} {found}");
        assert_eq!(place, "l.q");
        let ignored: ModuleTensors = [(format!("lm_head.{name}"), scale())].into_iter().collect();
        assert_eq!(run(&all, &ignored), ignored);
    }
    let linear = |second: f32| {
        module([
            ("q.weight", Array { dtype: DType::U8, shape: vec![2, 8], data: vec![0; 16] }),
            ("q.weight_scale", Array { dtype: DType::F8E4M3, shape: vec![2, 1], data: vec![0x38; 2] }),
            ("q.weight_scale_2", floats(&[], &[second])),
        ])
    };
    run(&all, &linear(0.5));
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert!(
            matches!(refused(&all, linear(bad)).0, ErrorKind::InvalidField { field, .. } if field == "weight_scale_2")
        );
    }
    let mut narrow = linear(1.0);
    narrow["q.weight_scale"].shape = vec![1, 2];
    assert!(matches!(refused(&all, narrow).0, ErrorKind::Shape { tensor, .. } if tensor == "weight_scale"));

    let section = json!({"quant_algo": "NVFP4", "ignore": ["lm_head", "model.visual*"], "kv_cache_quant_algo": "FP8"});
    let config = ModelOptNvfp4Converter::from_source_config(&section).unwrap().update_config(None).unwrap().unwrap();
    assert_eq!(config.ignore, ["lm_head", r"re:model\.visual.*$"]);
    assert!(config.kv_cache_scheme.is_some());
    let error = ModelOptNvfp4Converter::from_source_config(&json!({"quant_algo": "FP8"})).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InvalidField { field, .. } if field == "quant_algo"));
}

#[test]
fn every_weight_case_is_dequantized_whatever_its_format() {
    let formats = Formats::open();
    let manifest = formats.manifest();
    let cases = manifest["weight_cases"].as_array().unwrap();
    assert_eq!(cases.len(), 140);
    for case in cases {
        let id = case["id"].as_str().unwrap();
        let mut scheme = case["scheme"].clone();
        scheme["format"] = case["format"].clone();
        let config = json!({"config_groups": {"group_0": &scheme}, "format": "mixed-precision"});
        let config = QuantizationConfig::from_checkpoint_json(&config).unwrap();
        let dequantizer = CompressedTensorsDequantizer::new(config, &[], DType::F32).unwrap();
        let mut stored: ModuleTensors =
            tensors(&formats, &case["disk"]).into_iter().map(|(name, it)| (format!("l.q.{name}"), it)).collect();
        stored.insert("l.q.bias".to_owned(), f16s(&[2], &[1.0, 2.0]));
        for name in ["input_scale", "input_global_scale", "k_scale"] {
            stored.insert(format!("l.q.{name}"), floats(&[1], &[1.0]));
        }
        // Matched by the class, and yet not quantized.
        stored.insert("l.embed_tokens.weight".to_owned(), f16s(&[2, 2], &[1.0; 4]));
        let done = dequantizer.process(stored.clone()).unwrap();
        let mut planned = dequantizer.validate(&shapes_of(&stored)).unwrap();
        if scheme["format"] == "pack-quantized" && scheme["weights"]["group_size"].is_null() {
            // Headers tell the words of a row, and values its columns.
            let slack = planned["l.q.weight"].shape[1] - done["l.q.weight"].shape[1];
            assert!(slack < 32, "{id}");
            planned["l.q.weight"].shape[1] -= slack;
        }
        assert_eq!(planned, shapes_of(&done), "{id}");
        let names: Vec<&String> = done.keys().collect();
        assert_eq!(names, ["l.q.bias", "l.q.weight", "l.embed_tokens.weight"], "{id}");
        let (mut found, reference) = (values(&done["l.q.weight"]), case.get("decompressed").unwrap_or(&case["fq"]));
        let mut expected = formats.values(reference);
        found.iter_mut().chain(&mut expected).for_each(|it| *it += 0.0);
        assert_same(&found, &expected, id);
    }
}

#[test]
fn retired_and_uncompressed_checkpoints_are_dequantized_too() {
    let sparse = json!({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}});
    let model_config = json!({"quantization_config": sparse});
    let chain = dense_chain(&model_config, DType::F32).unwrap();
    let weight = floats(&[2, 4], &[0.0, 1.0, 2.0, 0.0, 3.0, 0.0, 0.0, 4.0]);
    for module in [compress_sparse_24_bitmask(&weight).unwrap(), compress_sparse_bitmask(&weight).unwrap()] {
        let stored: ModuleTensors = module.into_iter().map(|(name, it)| (format!("q.{name}"), it)).collect();
        let done = chain.iter().fold(stored, |it, step| step.process(it).unwrap());
        assert_eq!(done, self::module([("q.weight", weight.clone())]));
    }

    let marlin = json!({"config_groups": {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "channel"},
        "format": "marlin-24"}}, "format": "marlin-24"});
    let config = QuantizationConfig::from_checkpoint_json(&marlin).unwrap();
    let dequantizer = CompressedTensorsDequantizer::new(config, &[], DType::F16).unwrap();
    let formats = Formats::open();
    let manifest = formats.0.json("sparse_manifest.json");
    let case = manifest["cases"].as_array().unwrap().iter().find(|it| it["id"] == "marlin24.int4.channel").unwrap();
    let stored: ModuleTensors =
        tensors(&formats, &case["disk"]).into_iter().map(|(name, it)| (format!("q.{name}"), it)).collect();
    assert_eq!(run(&dequantizer, &stored)["q.weight"].shape, [64, 256]);

    // A model saved without compression keeps its weights beside the scales.
    let dequantizer = CompressedTensorsDequantizer::new(packed_config(4, 32, true), &[], DType::F32).unwrap();
    let kept = module([("q.weight", weight.clone()), ("q.weight_scale", floats(&[2, 1], &[1.0; 2]))]);
    assert_eq!(run(&dequantizer, &kept), module([("q.weight", weight)]));
}

#[test]
fn codes_without_a_scheme_or_a_scale_are_refused() {
    let mut config = packed_config(4, 32, true);
    config.config_groups["g"].targets = strings(&["re:.*k_proj"]);
    let dequantizer = CompressedTensorsDequantizer::new(config, &strings(&["skipped"]), DType::BF16).unwrap();
    let codes = || i32s(&[2, 4], &[0; 8]);
    let scale = || f16s(&[2, 1], &[1.0; 2]);
    let (kind, place) = refused(&dequantizer, module([("q.weight_packed", codes()), ("q.weight_scale", scale())]));
    assert!(matches!(kind, ErrorKind::UnexpectedTensor { .. }));
    assert_eq!(place, "q");
    let (kind, place) = refused(&dequantizer, module([("l.k_proj.weight_packed", codes())]));
    assert!(matches!(kind, ErrorKind::MissingTensor { tensor } if tensor == "weight_scale"));
    assert_eq!(place, "l.k_proj");
    let skipped = module([("skipped.weight_packed", codes())]);
    assert_eq!(run(&dequantizer, &skipped), skipped);
    let absent = CompressedTensorsDequantizer::from_model_config(&json!({}), &[], DType::BF16).unwrap_err();
    assert!(matches!(absent.kind(), ErrorKind::InvalidField { .. }));
    let online = json!({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}, "transform_config":
        {"config_groups": {"R": {"type": "hadamard", "apply": [{"targets": "Linear", "location": "input"}]}}}}});
    let online = CompressedTensorsDequantizer::from_model_config(&online, &[], DType::BF16).unwrap_err();
    assert!(matches!(online.kind(), ErrorKind::Unsupported { .. }));
    assert_eq!(online.place(), Some("transform_config"));
}

/// A layer of four experts whose router rows have the sums 4, 1, 3 and 1.
fn mixture() -> ModuleTensors {
    let router = floats(&[4, 2], &[-4.0, 0.0, 1.0, 0.0, 2.0, 1.0, 0.5, -0.5]);
    let mut tensors = module([
        ("l.mlp.gate.weight", router),
        ("l.mlp.gate.e_score_correction_bias", floats(&[4], &[0.0, 1.0, 2.0, 3.0])),
    ]);
    for i in 0..4 {
        tensors.insert(format!("l.mlp.experts.{i}.up_proj.weight"), floats(&[1, 1], &[i as f32]));
    }
    tensors.insert("l.mlp.experts.fused".to_owned(), floats(&[4, 1, 1], &[0.0, 1.0, 2.0, 3.0]));
    tensors.insert("l.mlp.shared_experts.up_proj.weight".to_owned(), floats(&[4, 1], &[0.0; 4]));
    tensors
}

#[test]
fn the_experts_with_the_largest_router_rows_are_kept_and_renumbered() {
    let tensors = mixture();
    let router = [("l.mlp.gate.weight", &tensors["l.mlp.gate.weight"])];
    let pruner = MagnitudeExpertPruner::new(0.5, router).unwrap();
    assert_eq!(pruner.kept_experts(), 2);
    let done = run(&pruner, &tensors);
    let names: Vec<&str> = done.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "l.mlp.gate.weight",
            "l.mlp.gate.e_score_correction_bias",
            "l.mlp.experts.0.up_proj.weight",
            "l.mlp.experts.1.up_proj.weight",
            "l.mlp.experts.fused",
            "l.mlp.shared_experts.up_proj.weight",
        ]
    );
    assert_eq!(values(&done["l.mlp.gate.weight"]), [-4.0, 0.0, 2.0, 1.0]);
    assert_eq!(values(&done["l.mlp.gate.e_score_correction_bias"]), [0.0, 2.0]);
    assert_eq!(values(&done["l.mlp.experts.1.up_proj.weight"]), [2.0]);
    assert_eq!(values(&done["l.mlp.experts.fused"]), [0.0, 2.0]);
    assert_eq!(done["l.mlp.shared_experts.up_proj.weight"].shape, [4, 1]);

    let mut config = json!({"text_config": {"num_local_experts": 4, "num_experts_per_tok": 2}});
    pruner.update_model_config(&mut config).unwrap();
    assert_eq!(config["text_config"]["num_local_experts"], 2);
    config["text_config"]["num_experts_per_tok"] = json!(3);
    let error = pruner.update_model_config(&mut config).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::InvalidField { field, .. } if field == "sparsity"));
    assert!(pruner.update_model_config(&mut json!({"hidden_size": 4})).is_err());
}

#[test]
fn sparsity_is_rounded_to_even_and_one_expert_stays() {
    let router = floats(&[5, 1], &[1.0, 2.0, 3.0, 4.0, 5.0]);
    // 0.5 * 5 rounds to 2, 0.1 * 5 to 0.
    for (sparsity, kept) in [(0.0, 5), (0.1, 5), (0.5, 3), (0.3, 3), (1.0, 1)] {
        let pruner = MagnitudeExpertPruner::new(sparsity, [("r.weight", &router)]).unwrap();
        assert_eq!(pruner.kept_experts(), kept, "{sparsity}");
    }
    for bad in [-0.1, 1.1, f64::NAN] {
        let error = MagnitudeExpertPruner::new(bad, [("r.weight", &router)]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidField { field, .. } if field == "sparsity"));
    }
    let other = floats(&[4, 1], &[1.0; 4]);
    let differ = MagnitudeExpertPruner::new(0.5, [("a.weight", &router), ("b.weight", &other)]).unwrap_err();
    assert!(matches!(differ.kind(), ErrorKind::Shape { tensor, .. } if tensor == "b.weight"));
    let huge = Array { shape: vec![usize::MAX, 2], ..router.clone() };
    let huge = MagnitudeExpertPruner::new(0.5, [("r.weight", &huge)]).unwrap_err();
    assert!(matches!(huge.kind(), ErrorKind::Shape { tensor, .. } if tensor == "r.weight"));
    assert!(matches!(MagnitudeExpertPruner::new(0.5, []).unwrap_err().kind(), ErrorKind::MissingTensor { .. }));
}

#[test]
fn the_source_decides_the_converter() {
    let model = |section: Value| json!({"quantization_config": section});
    let is_foreign = |section: Value| source_converter(&model(section), DType::BF16).unwrap().is_some();
    assert!(is_foreign(json!({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true})));
    assert!(is_foreign(gptq_config(3, true, "gptq")));
    assert!(is_foreign(json!({"quant_method": "fp8", "weight_block_size": [128, 128]})));
    assert!(is_foreign(json!({"quant_method": "modelopt", "quant_algo": "NVFP4"})));
    assert!(!is_foreign(json!({"quant_method": "compressed-tensors", "config_groups": {}})));
    assert!(source_converter(&json!({}), DType::BF16).unwrap().is_none());
    assert!(dense_chain(&json!({}), DType::BF16).unwrap().is_empty());
    let unknown = source_converter(&model(json!({"quant_method": "bitsandbytes"})), DType::BF16).err().unwrap();
    assert!(matches!(unknown.kind(), ErrorKind::UnknownName { name, .. } if name == "bitsandbytes"));
    assert_eq!(unknown.place(), Some("quantization_config"));

    let names: Vec<&str> = CONVERTERS.iter().map(|it| it.name).collect();
    assert_eq!(names.len(), 8);
    for name in [
        "AutoAWQConverter",
        "ModelOptNvfp4Converter",
        "FP8BlockDequantizer",
        "CompressedTensorsDequantizer",
        "MagnitudeExpertPruner",
    ] {
        assert!(names.contains(&name), "{name}");
    }
    assert!(CONVERTERS.iter().all(|it| it.page.len() > 80 && it.page.ends_with('.')));
}

#[test]
fn converters_are_made_of_their_name_arguments_and_the_source() {
    let build = |name: &str, args: Value, section: Value| {
        let build = converter_entry(name).unwrap().build.unwrap();
        build(&args, &json!({"quantization_config": section}))
    };
    let awq = build(
        "AutoAWQConverter",
        json!({"group_size": 32, "ignore": ["a"]}),
        json!({"quant_method": "awq", "bits": 4}),
    );
    let config = awq.unwrap().update_config(None).unwrap().unwrap();
    assert_eq!(config.ignore, ["a"]);
    assert_eq!(config.config_groups["config_group_0"].weights.as_ref().unwrap().group_size, Some(32));
    assert!(build("AutoGPTQConverter", json!({"targets": ["re:.*q$"]}), gptq_config(4, true, "gptq")).is_ok());
    assert!(build("ModelOptNvfp4Converter", json!({}), json!({"quant_algo": "NVFP4"})).is_ok());
    let fp8 = json!({"quant_method": "fp8", "weight_block_size": [128, 128]});
    assert!(build("FP8BlockDequantizer", json!({"dtype": "float16"}), fp8.clone()).is_ok());
    let packed = packed_config(4, 32, true).to_json();
    for name in ["CompressedTensorsDequantizer", "AutoAWQExporter", "AutoGPTQExporter"] {
        assert!(build(name, json!({}), packed.clone()).is_ok(), "{name}");
        assert!(build(name, json!({}), fp8.clone()).is_err(), "{name}");
    }
    for (name, args, field) in [
        ("FP8BlockDequantizer", json!({"dtype": "int8"}), "dtype"),
        ("FP8BlockDequantizer", json!([]), "arguments"),
        ("FP8BlockDequantizer", json!({"targets": "Linear"}), "targets"),
    ] {
        let error = build(name, args, fp8.clone()).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::InvalidField { field: it, .. } if it == field), "{error}");
    }
    let v3 = build("AutoGPTQExporter", json!({"checkpoint_format": "gptq_v3"}), packed).err().unwrap();
    assert!(matches!(v3.kind(), ErrorKind::InvalidField { field, .. } if field == "checkpoint_format"));
    assert!(converter_entry("MagnitudeExpertPruner").unwrap().build.is_none());
    let unknown = converter_entry("AutoAwqConverter").unwrap_err();
    assert!(matches!(unknown.kind(), ErrorKind::UnknownName { what: "converter", .. }));
}
