//! A tensor as modifiers see it.

use std::ops::Range;

use compressed_tensors::{DType, numbers::read_f32};
use lifecycle::{Activation, Error, Result};
use tensor::Tensor;

/// A dense tensor at a tap.
pub(crate) struct TensorActivation(pub(crate) Tensor);

impl Activation for TensorActivation {
    fn dtype(&self) -> DType {
        self.0.dtype()
    }

    fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let columns = self.0.shape().last().copied().unwrap_or(1);
        let (from, to) = (rows.start.saturating_mul(columns), rows.end.saturating_mul(columns));
        if from > to || to > self.0.elements() || out.len() != to - from {
            let (shape, found) = (self.0.shape(), out.len());
            return Err(Error::failed(format_args!("rows {rows:?} of shape {shape:?} do not fill {found} elements")));
        }
        let width = self.0.dtype().bits() / 8;
        let bytes = self.0.as_bytes().map_err(Error::failed)?;
        read_f32(self.0.dtype(), &bytes[from * width..to * width], out).map_err(Error::failed)
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        self.0.as_bytes().ok()
    }
}
