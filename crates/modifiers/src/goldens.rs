//! Golden cases of the modifiers, for tests.
#![allow(clippy::unwrap_used, reason = "a broken golden file must stop the test")]

use compressed_tensors::{DType, args::QuantizationArgs, numbers};
use serde_json::Value;
use testkit::{GoldenTensor, Goldens};

/// A case of the manifest with its tensors.
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) params: Value,
    case: Value,
    file: String,
    goldens: std::rc::Rc<std::collections::HashMap<String, GoldenTensor>>,
}

/// All cases of a kind in a file; their number is part of the test, so that none is skipped silently.
pub(crate) fn cases(file: &str, kind: &str, count: usize) -> Vec<Case> {
    let goldens = Goldens::open("modifiers");
    let manifest = goldens.json("manifest.json");
    let tensors = goldens.tensors(&format!("{file}.safetensors"));
    let all = manifest["cases"].as_array().unwrap().iter();
    let found: Vec<Case> = all
        .filter(|it| it["file"] == file && it["kind"] == kind)
        .map(|it| Case {
            id: it["id"].as_str().unwrap().to_owned(),
            params: it["params"].clone(),
            case: it.clone(),
            file: file.to_owned(),
            goldens: tensors.clone(),
        })
        .collect();
    assert_eq!(found.len(), count, "cases of {kind} in {file}");
    found
}

impl Case {
    fn tensor(&self, side: &str, key: &str) -> Option<&GoldenTensor> {
        let name = self.case[side][key].as_str()?;
        Some(self.goldens.get(name).unwrap_or_else(|| panic!("no `{name}` in {}", self.file)))
    }

    /// Whether the case has that input.
    pub(crate) fn has_input(&self, key: &str) -> bool {
        self.case["inputs"].get(key).is_some()
    }

    /// Whether the case has that output.
    pub(crate) fn has_output(&self, key: &str) -> bool {
        self.case["outputs"].get(key).is_some()
    }

    /// An input as f32.
    pub(crate) fn input(&self, key: &str) -> Vec<f32> {
        floats(self.tensor("inputs", key).unwrap())
    }

    /// The shape of an input.
    pub(crate) fn shape(&self, key: &str) -> Vec<usize> {
        self.tensor("inputs", key).unwrap().shape.clone()
    }

    /// An output as f32.
    pub(crate) fn output(&self, key: &str) -> Vec<f32> {
        floats(self.tensor("outputs", key).unwrap())
    }

    /// An output as f64.
    pub(crate) fn output_f64(&self, key: &str) -> Vec<f64> {
        let tensor = self.tensor("outputs", key).unwrap();
        match tensor.dtype.as_str() {
            "F64" => tensor.data.as_chunks::<8>().0.iter().map(|it| f64::from_le_bytes(*it)).collect(),
            _ => floats(tensor).into_iter().map(f64::from).collect(),
        }
    }

    /// The tolerance `key` of the case.
    pub(crate) fn tolerance(&self, key: &str) -> f64 {
        self.case["tol"][key].as_f64().unwrap_or_else(|| panic!("no `{key}` in {}", self.case["tol"]))
    }

    /// The weight arguments of the case.
    pub(crate) fn args(&self) -> QuantizationArgs {
        QuantizationArgs::from_json(&self.params["args"]).unwrap()
    }
}

fn floats(tensor: &GoldenTensor) -> Vec<f32> {
    let n = tensor.shape.iter().product();
    match tensor.dtype.as_str() {
        "I64" => tensor.data.as_chunks::<8>().0.iter().map(|it| i64::from_le_bytes(*it) as f32).collect(),
        "F64" => tensor.data.as_chunks::<8>().0.iter().map(|it| f64::from_le_bytes(*it) as f32).collect(),
        "U8" => tensor.data.iter().map(|it| f32::from(*it)).collect(),
        name => {
            let mut out = vec![0.0; n];
            numbers::read_f32(DType::from_safetensors_name(name).unwrap(), &tensor.data, &mut out).unwrap();
            out
        }
    }
}

/// The largest relative difference, of values below `floor` relative to it.
pub(crate) fn relative(found: &[f32], expected: &[f32], floor: f64) -> f64 {
    assert_eq!(found.len(), expected.len());
    let pairs = found.iter().zip(expected);
    pairs.map(|(a, b)| f64::from((a - b).abs()) / f64::from(b.abs()).max(floor)).fold(0.0, f64::max)
}
