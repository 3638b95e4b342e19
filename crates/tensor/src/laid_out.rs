//! Weights that are laid out once for many products.

use half::{bf16, f16};
use kernels::gemm::{PANEL_COLS, Panels, matmul_laid_out};
use kernels::{Element, Mat, MatMut};

use crate::error::{ErrorKind, Result};
use crate::op::with_float;
use crate::{DType, Engine, Lease, Scalar, Tensor};

/// The weight (O, C) of a linear layer in the order in which the engine's processor multiplies it.
///
/// Products with it have the bits of [`Op::Linear`](crate::Op::Linear) with the weight it was made of.
#[derive(Debug)]
pub struct LaidOut {
    panels: Order,
    rows: usize,
    dtype: DType,
    bytes: u64,
    _lease: Lease,
}

#[derive(Debug)]
enum Order {
    F32(Panels<f32>),
    Bf16(Panels<bf16>),
    F16(Panels<f16>),
}

impl LaidOut {
    /// Lays a weight (O, C) out; none where the engine's profile has no such order for its type.
    ///
    /// # Errors
    /// [`ErrorKind::DType`], and [`ErrorKind::Budget`].
    pub fn new(engine: &Engine, weight: &Tensor) -> Result<Option<Self>> {
        let &[rows, cols] = weight.shape() else { return Ok(None) };
        let weight = weight.dense(&engine.budget)?;
        let bytes = (rows.next_multiple_of(PANEL_COLS) * cols * (weight.dtype().bits() / 8)) as u64;
        let lease = engine.budget.reserve(bytes)?;
        let panels = match weight.dtype() {
            DType::F32 => lay_out::<f32>(engine, &weight)?.map(Order::F32),
            DType::BF16 => lay_out::<bf16>(engine, &weight)?.map(Order::Bf16),
            _ => lay_out::<f16>(engine, &weight)?.map(Order::F16),
        };
        Ok(panels.map(|panels| Self { panels, rows, dtype: weight.dtype(), bytes, _lease: lease }))
    }

    /// Bytes that it takes, at most.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// O.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `x @ w^T (+ bias)` with rows `first..first + len` of the weight: x (..., C), bias (len) -> (..., len); `first` is a multiple
    /// of [`LaidOut::ROWS`]. The weight is of the type of `x`, or `x` is f32.
    ///
    /// # Errors
    /// [`ErrorKind::DType`], [`ErrorKind::Budget`], extents that do not agree.
    pub fn linear(
        &self,
        engine: &Engine,
        x: &Tensor,
        (first, len): (usize, usize),
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        if x.dtype() != self.dtype && x.dtype() != DType::F32 {
            let expected = format!("{} or F32", self.dtype);
            return Err(ErrorKind::DType { argument: "x", found: x.dtype(), expected }.into());
        }
        let x = x.dense(&engine.budget)?;
        let mut shape = x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = len;
        }
        let bias = bias.map(Tensor::to_f32).transpose()?;
        let rows = (first, len);
        with_float!(x.dtype(), T => Tensor::build(&engine.budget, &shape, |y: &mut [T]| match &self.panels {
            Order::F32(panels) => multiply(engine, &x, panels, rows, bias.as_deref(), y),
            Order::Bf16(panels) => multiply(engine, &x, panels, rows, bias.as_deref(), y),
            Order::F16(panels) => multiply(engine, &x, panels, rows, bias.as_deref(), y),
        }))
    }

    /// A part of the weight begins at a multiple of this many rows.
    pub const ROWS: usize = PANEL_COLS;
}

fn lay_out<T: Scalar + Element>(engine: &Engine, weight: &Tensor) -> Result<Option<Panels<T>>> {
    let &[rows, cols] = weight.shape() else { return Ok(None) };
    Ok(Panels::new(engine.profile, Mat::new(weight.as_slice::<T>()?, rows, cols)?.transposed()))
}

fn multiply<T: Scalar + Element, W: Element>(
    engine: &Engine,
    x: &Tensor,
    panels: &Panels<W>,
    rows: (usize, usize),
    bias: Option<&[f32]>,
    y: &mut [T],
) -> Result<()> {
    let tokens = x.elements().checked_div(panels.rows()).unwrap_or(0);
    let x = Mat::new(x.as_slice::<T>()?, tokens, panels.rows())?;
    Ok(matmul_laid_out(engine.profile, x, panels, rows, bias, MatMut::new(y, tokens, rows.1)?)?)
}
