//! The golden cases of observers, as values.

use std::rc::Rc;

use compressed_tensors::{
    DType,
    args::QuantizationArgs,
    numbers::{Float, read_f32, write_f32},
};
use serde_json::{Map, Value};
use testkit::{GoldenTensor, Goldens};

pub(super) struct Cases {
    goldens: Goldens,
    manifest: Value,
}

pub(super) struct Case<'a> {
    all: &'a Cases,
    pub(super) json: &'a Value,
}

impl Cases {
    pub(super) fn open() -> Self {
        let goldens = Goldens::open("modifiers");
        let manifest = goldens.json("manifest.json");
        Self { goldens, manifest }
    }

    pub(super) fn of_kind(&self, file: &str, kind: &str) -> Vec<Case<'_>> {
        let all = self.manifest["cases"].as_array().unwrap().iter();
        all.filter(|it| it["file"] == file && it["kind"] == kind).map(|json| Case { all: self, json }).collect()
    }
}

impl Case<'_> {
    pub(super) fn id(&self) -> &str {
        self.json["id"].as_str().unwrap()
    }

    pub(super) fn params(&self) -> &Value {
        &self.json["params"]
    }

    pub(super) fn text(&self, name: &str) -> &str {
        self.params()[name].as_str().unwrap_or_default()
    }

    pub(super) fn kwargs(&self) -> Map<String, Value> {
        self.params()["observer_kwargs"].as_object().cloned().unwrap_or_default()
    }

    /// The arguments, with the kwargs.
    pub(super) fn args(&self) -> QuantizationArgs {
        let mut args = args(&self.params()["args"]);
        args.observer_kwargs = self.kwargs();
        args
    }

    fn find(&self, side: &str, name: &str) -> Option<GoldenTensor> {
        let file = format!("{}.safetensors", self.json["file"].as_str().unwrap());
        let tensors: Rc<_> = self.all.goldens.tensors(&file);
        let key = self.json[side].get(name)?.as_str().unwrap();
        Some(tensors.get(key).unwrap_or_else(|| panic!("no tensor {key}")).clone())
    }

    pub(super) fn input(&self, name: &str) -> (Vec<f32>, Vec<usize>) {
        let tensor = self.find("inputs", name).unwrap_or_else(|| panic!("{} has no {name}", self.id()));
        (values(&tensor), tensor.shape)
    }

    pub(super) fn output(&self, name: &str) -> Option<Vec<f32>> {
        self.find("outputs", name).map(|it| values(&it))
    }

    pub(super) fn output_shape(&self, name: &str) -> Vec<usize> {
        self.find("outputs", name).unwrap().shape
    }

    pub(super) fn expected(&self, name: &str) -> Vec<f32> {
        self.output(name).unwrap_or_else(|| panic!("{} has no {name}", self.id()))
    }

    /// The type that weights are cast to before they are observed.
    pub(super) fn float(&self) -> Float {
        match self.text("dtype") {
            "bfloat16" => Float::BF16,
            "float16" => Float::F16,
            _ => Float::F32,
        }
    }
}

pub(super) fn args(json: &Value) -> QuantizationArgs {
    let mut json = json.clone();
    json.as_object_mut().unwrap().retain(|key, _| key != "dtype" && key != "flattened_shape");
    QuantizationArgs::from_json(&json).unwrap()
}

pub(super) fn values(tensor: &GoldenTensor) -> Vec<f32> {
    let dtype = DType::from_safetensors_name(&tensor.dtype).unwrap();
    let mut values = vec![0.0; tensor.shape.iter().product()];
    read_f32(dtype, &tensor.data, &mut values).unwrap();
    values
}

pub(super) fn rounded(values: &[f32], float: Float) -> Vec<f32> {
    values.iter().map(|it| float.round(*it)).collect()
}

pub(super) fn bytes(values: &[f32], float: Float) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * float.dtype().bits() / 8];
    write_f32(float.dtype(), values, &mut bytes).unwrap();
    bytes
}

/// Equal values, NaN being equal to NaN.
pub(super) fn assert_same(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!(found == expected || found.is_nan() && expected.is_nan(), "{what}[{i}]: {found:e}, not {expected:e}");
    }
}

pub(super) fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= tolerance * expected.abs(), "{what}[{i}]: {found:e}, not {expected:e}");
    }
}

/// Asserts that at least 99 of 100 values agree to `rtol`, which is the golden tolerance of searches.
pub(super) fn assert_matches(found: &[f32], expected: &[f32], rtol: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let agrees = |(found, expected): &(&f32, &f32)| (*found - *expected).abs() <= rtol * expected.abs();
    let n_equal = found.iter().zip(expected).filter(agrees).count();
    assert!(n_equal * 100 >= found.len() * 99, "{what}: {n_equal} of {}", found.len());
}
