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
        match weight.dtype() {
            DType::F32 => Self::of::<f32>(engine, weight, Order::F32),
            DType::BF16 => Self::of::<bf16>(engine, weight, Order::Bf16),
            _ => Self::of::<f16>(engine, weight, Order::F16),
        }
    }

    fn of<T: Scalar + Element>(
        engine: &Engine,
        weight: &Tensor,
        order: impl FnOnce(Panels<T>) -> Order,
    ) -> Result<Option<Self>> {
        let &[rows, cols] = weight.shape() else { return Ok(None) };
        let weight = weight.dense(&engine.budget)?;
        let lease = engine.budget.reserve(Panels::<T>::bytes(cols, rows) as u64)?;
        let panels = Panels::new(engine.profile, Mat::new(weight.as_slice::<T>()?, rows, cols)?.transposed());
        Ok(panels.map(|panels| Self { panels: order(panels), _lease: lease }))
    }

    /// Type, C and O.
    fn facts(&self) -> (DType, usize, usize) {
        match &self.panels {
            Order::F32(it) => (DType::F32, it.rows(), it.cols()),
            Order::Bf16(it) => (DType::BF16, it.rows(), it.cols()),
            Order::F16(it) => (DType::F16, it.rows(), it.cols()),
        }
    }

    /// Bytes that it takes, at most.
    pub fn bytes(&self) -> u64 {
        let (dtype, cols, rows) = self.facts();
        let bytes = match dtype {
            DType::F32 => Panels::<f32>::bytes(cols, rows),
            _ => Panels::<bf16>::bytes(cols, rows),
        };
        bytes as u64
    }

    /// O.
    pub fn rows(&self) -> usize {
        self.facts().2
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
        let dtype = self.facts().0;
        if x.dtype() != dtype && x.dtype() != DType::F32 {
            let expected = format!("{dtype} or F32");
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
