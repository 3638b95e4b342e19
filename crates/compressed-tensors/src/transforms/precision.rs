//! The width in which a transform is computed, and values of a tensor as f64.

use half::{bf16, f16};

use crate::{Array, DType, Error, ErrorKind, Result};

/// The width of a transform matrix and of its products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// bfloat16.
    BF16,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
    /// IEEE double, for transforms that are folded into weights.
    F64,
}

impl Precision {
    /// The precision of a floating dtype.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] for other dtypes.
    pub fn from_dtype(dtype: DType) -> Result<Self> {
        match dtype {
            DType::BF16 => Ok(Self::BF16),
            DType::F16 => Ok(Self::F16),
            DType::F32 => Ok(Self::F32),
            DType::F64 => Ok(Self::F64),
            other => Err(Error::from(ErrorKind::InvalidField {
                field: "precision".to_owned(),
                found: other.to_string(),
                expected: "bfloat16, float16, float32 or float64".to_owned(),
            })),
        }
    }

    /// The dtype of a saved matrix.
    pub fn dtype(self) -> DType {
        match self {
            Self::BF16 => DType::BF16,
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
            Self::F64 => DType::F64,
        }
    }

    /// Rounds to nearest, ties to even; 16-bit widths go through f32, as torch does.
    pub fn round(self, value: f64) -> f64 {
        match self {
            Self::BF16 => bf16::from_f32(value as f32).to_f64(),
            Self::F16 => f16::from_f32(value as f32).to_f64(),
            Self::F32 => f64::from(value as f32),
            Self::F64 => value,
        }
    }

    pub(super) fn round_all(self, values: &mut [f64]) {
        if self != Self::F64 {
            values.iter_mut().for_each(|it| *it = self.round(*it));
        }
    }

    /// A tensor of this dtype.
    pub(super) fn to_array(self, shape: Vec<usize>, values: &[f64]) -> Array {
        let data = match self {
            Self::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v as f32).to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|v| f16::from_f32(*v as f32).to_le_bytes()).collect(),
            Self::F32 => values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
            Self::F64 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        Array { dtype: self.dtype(), shape, data }
    }

    /// The values of a tensor of this dtype; trailing bytes that fill no element are left out.
    pub(super) fn read(self, bytes: &[u8]) -> Vec<f64> {
        fn each<const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.as_chunks::<N>().0.iter().map(|it| value(*it)).collect()
        }
        match self {
            Self::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f64()),
            Self::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f64()),
            Self::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
            Self::F64 => each(bytes, f64::from_le_bytes),
        }
    }
}
