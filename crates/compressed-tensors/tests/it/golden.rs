//! Golden tensors as values, and the arguments beside them.

use compressed_tensors::{
    Array, DType,
    args::QuantizationArgs,
    numbers::{Float, read_f32},
};
use serde_json::Value;
use testkit::Goldens;

/// The room, opened once per test.
pub(crate) struct Formats(pub(crate) Goldens);

impl Formats {
    pub(crate) fn open() -> Self {
        Self(Goldens::open("formats"))
    }

    pub(crate) fn manifest(&self) -> Value {
        self.0.json("manifest.json")
    }

    pub(crate) fn array(&self, reference: &Value) -> Array {
        let tensor = self.0.tensor(reference);
        let dtype = DType::from_safetensors_name(&tensor.dtype).unwrap();
        Array { dtype, shape: tensor.shape, data: tensor.data }
    }

    /// Values of a tensor of numbers.
    pub(crate) fn values(&self, reference: &Value) -> Vec<f32> {
        values(&self.array(reference))
    }

    /// Values, dense type and shape.
    pub(crate) fn dense(&self, reference: &Value) -> (Vec<f32>, Float, Vec<usize>) {
        let array = self.array(reference);
        (values(&array), Float::of(array.dtype, "golden").unwrap(), array.shape)
    }
}

pub(crate) fn values(array: &Array) -> Vec<f32> {
    let mut out = vec![0.0; array.elements()];
    read_f32(array.dtype, &array.data, &mut out).unwrap();
    out
}

pub(crate) fn args(value: &Value) -> QuantizationArgs {
    QuantizationArgs::from_json(value).unwrap()
}

/// Bit equality, any NaN equal to any other.
#[track_caller]
pub(crate) fn assert_same(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()), "{what}[{i}]: found {a:e}, expected {b:e}");
    }
}
