//! Values of modules in their own type.

use std::borrow::Cow;

use compressed_tensors::DType;
use kernels::{Element, bf16, f16};
use lifecycle::{Activation, Result};

/// A value (..., N): bf16 and f16 as they are, all else as f32; where it lies if it can be.
#[derive(Clone, Debug)]
pub(crate) enum Dense<'a> {
    F32(Cow<'a, [f32]>),
    Bf16(Cow<'a, [bf16]>),
    F16(Cow<'a, [f16]>),
}

impl<'a> Dense<'a> {
    /// # Errors
    /// A read that fails.
    pub(crate) fn of(value: &'a dyn Activation) -> Result<Self> {
        Ok(match value.dtype() {
            DType::BF16 => Self::Bf16(values(value)?),
            DType::F16 => Self::F16(values(value)?),
            _ => Self::F32(if value.dtype() == DType::F32 { values(value)? } else { read(value)?.into() }),
        })
    }

    /// The value in memory of its own.
    pub(crate) fn into_owned(self) -> Dense<'static> {
        match self {
            Self::F32(it) => Dense::F32(it.into_owned().into()),
            Self::Bf16(it) => Dense::Bf16(it.into_owned().into()),
            Self::F16(it) => Dense::F16(it.into_owned().into()),
        }
    }
}

/// Elements of the type that a value has.
fn values<E: Element + bytemuck::Pod>(value: &dyn Activation) -> Result<Cow<'_, [E]>> {
    match value.as_bytes().map(bytemuck::try_cast_slice) {
        Some(Ok(values)) => Ok(values.into()),
        _ => Ok(read(value)?.into_iter().map(E::from_f32).collect()),
    }
}

/// A value (..., N) as f32.
///
/// # Errors
/// A read that fails.
pub(crate) fn read(value: &dyn Activation) -> Result<Vec<f32>> {
    let shape = value.shape();
    let mut values = vec![0.0; shape.iter().product()];
    value.read_rows(0..values.len() / shape.last().copied().unwrap_or(1).max(1), &mut values)?;
    Ok(values)
}
