//! What a module gave, kept in its own type.

use compressed_tensors::DType;
use kernels::{Element, Profile, bf16, f16};
use lifecycle::{Activation, Result};

use super::loss::BatchLoss;

/// The outputs of a module in one batch.
#[derive(Debug)]
pub(super) enum Outputs {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
}

impl Outputs {
    pub(super) fn of(value: &dyn Activation) -> Result<Self> {
        Ok(match value.dtype() {
            DType::BF16 => Self::Bf16(values(value)?),
            DType::F16 => Self::F16(values(value)?),
            _ => Self::F32(values(value)?),
        })
    }

    /// How far other outputs of the same module are from these.
    pub(super) fn loss(&self, profile: Profile, other: &Self, mask: Option<&[bool]>) -> crate::Result<BatchLoss> {
        match (self, other) {
            (Self::Bf16(a), Self::Bf16(b)) => BatchLoss::of(profile, a, b, mask),
            (Self::F16(a), Self::F16(b)) => BatchLoss::of(profile, a, b, mask),
            (Self::F32(a), Self::F32(b)) => BatchLoss::of(profile, a, b, mask),
            _ => Ok(BatchLoss { sum: f32::NAN, elements: 0 }),
        }
    }
}

fn values<E: Element>(value: &dyn Activation) -> Result<Vec<E>> {
    let columns = value.shape().last().copied().unwrap_or(1).max(1);
    let mut wide = vec![0.0; value.shape().iter().product()];
    value.read_rows(0..wide.len() / columns, &mut wide)?;
    Ok(wide.into_iter().map(E::from_f32).collect())
}
