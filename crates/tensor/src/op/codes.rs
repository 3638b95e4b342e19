//! A linear layer over codes of 8 bits.

use kernels::gemm::int8::{self, Scales};
use kernels::{Mat, MatMut};

use super::with_float;
use crate::error::Result;
use crate::{DType, Engine, Tensor};

/// Codes of both operands of a linear layer, and what they stand for.
#[derive(Clone, Copy, Debug)]
pub struct CodedLinear<'a> {
    /// Codes of x (..., N).
    pub x: &'a [i8],
    /// Shape of x.
    pub shape: &'a [usize],
    /// Codes of w (O, N).
    pub w: &'a [i8],
    /// Scales of both, for each token and each row of w or one for all, and the zero points of x.
    pub scales: Scales<'a>,
    /// Bias (O).
    pub bias: Option<&'a [f32]>,
}

impl CodedLinear<'_> {
    /// x @ w^T (+ bias), (..., O) in `dtype`: exact sums of products of codes, times the scales.
    ///
    /// # Errors
    /// Lengths that do not fit each other, [`ErrorKind::DType`](crate::ErrorKind::DType) for another type than f32, bf16 or f16,
    /// and what the budget refuses.
    pub fn forward(&self, engine: &Engine, dtype: DType) -> Result<Tensor> {
        let columns = self.shape.last().copied().unwrap_or(1);
        let tokens = self.x.len().checked_div(columns).unwrap_or(0);
        let rows = self.w.len().checked_div(columns).unwrap_or(0);
        let mut shape = self.shape.to_vec();
        if let Some(last) = shape.last_mut() {
            *last = rows;
        }
        let (x, w) = (Mat::new(self.x, tokens, columns)?, Mat::new(self.w, rows, columns)?);
        with_float!(dtype, T => Tensor::build(&engine.budget, &shape, |y: &mut [T]| {
            Ok(int8::linear(engine.profile, x, w, &self.scales, self.bias, MatMut::new(y, tokens, rows)?)?)
        }))
    }
}
