//! Weights that are laid out once for many products.

use half::{bf16, f16};
use kernels::gemm::{BlockPanels, PANEL_COLS, Panels, matmul_blocks, matmul_laid_out};
use kernels::{Element, Mat, MatMut};

use crate::error::{ErrorKind, Result};
use crate::op::with_float;
use crate::{DType, Engine, Lease, Scalar, Tensor};

/// The weight (O, C) of a linear layer in the order in which the engine's processor multiplies inputs of one type with it.
///
/// Products with it have the bits of [`Op::Linear`](crate::Op::Linear) with the weight it was made of, in the type of the inputs.
#[derive(Debug)]
pub struct LaidOut {
    order: Order,
    inputs: DType,
    bytes: u64,
    _lease: Lease,
}

#[derive(Debug)]
enum Order {
    F32(Panels<f32>),
    Bf16(Panels<bf16>),
    F16(Panels<f16>),
    Blocks(BlockPanels),
}

impl LaidOut {
    /// Lays a weight (O, C) out for inputs of its type or of f32; none where the engine's profile has no such order.
    ///
    /// # Errors
    /// [`ErrorKind::DType`], and [`ErrorKind::Budget`].
    pub fn new(engine: &Engine, weight: &Tensor, inputs: DType) -> Result<Option<Self>> {
        if inputs != weight.dtype() && inputs != DType::F32 {
            let expected = format!("{} or F32", weight.dtype());
            return Err(ErrorKind::DType { argument: "x", found: inputs, expected }.into());
        }
        let &[rows, cols] = weight.shape() else { return Ok(None) };
        let weight = weight.dense(&engine.budget)?;
        let bytes = match weight.dtype() {
            DType::F32 => Panels::<f32>::bytes(cols, rows),
            _ => BlockPanels::bytes(cols, rows).max(Panels::<bf16>::bytes(cols, rows)),
        };
        let bytes = bytes as u64;
        let lease = engine.budget.reserve(bytes)?;
        let order = match weight.dtype() {
            DType::F32 => panels::<f32>(engine, &weight)?.map(Order::F32),
            DType::BF16 => {
                let of_bf16 = matrix(&weight)?.transposed();
                let blocks = if inputs == DType::BF16 { BlockPanels::new(engine.profile, of_bf16) } else { None };
                match blocks {
                    Some(blocks) => Some(Order::Blocks(blocks)),
                    None => panels::<bf16>(engine, &weight)?.map(Order::Bf16),
                }
            }
            _ => panels::<f16>(engine, &weight)?.map(Order::F16),
        };
        Ok(order.map(|order| Self { order, inputs, bytes, _lease: lease }))
    }

    /// Type of the inputs.
    pub fn inputs(&self) -> DType {
        self.inputs
    }

    /// Bytes that it takes, at most.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// O.
    pub fn rows(&self) -> usize {
        match &self.order {
            Order::F32(it) => it.cols(),
            Order::Bf16(it) => it.cols(),
            Order::F16(it) => it.cols(),
            Order::Blocks(it) => it.cols(),
        }
    }

    /// `x @ w^T (+ bias)` with rows `first..first + len` of the weight: x (..., C), bias (len) -> (..., len); `first` is a multiple
    /// of [`LaidOut::ROWS`].
    ///
    /// # Errors
    /// [`ErrorKind::DType`] for inputs of another type, [`ErrorKind::Budget`], extents that do not agree.
    pub fn linear(
        &self,
        engine: &Engine,
        x: &Tensor,
        (first, len): (usize, usize),
        bias: Option<&Tensor>,
    ) -> Result<Tensor> {
        if x.dtype() != self.inputs {
            return Err(ErrorKind::DType { argument: "x", found: x.dtype(), expected: self.inputs.to_string() }.into());
        }
        let x = x.dense(&engine.budget)?;
        let mut shape = x.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = len;
        }
        let bias = bias.map(Tensor::to_f32).transpose()?;
        let (bias, rows) = (bias.as_deref(), (first, len));
        with_float!(x.dtype(), T => Tensor::build(&engine.budget, &shape, |y: &mut [T]| {
            let profile = engine.profile;
            let a = matrix::<T>(&x)?;
            let y = MatMut::new(y, a.rows(), len)?;
            match &self.order {
                Order::F32(panels) => matmul_laid_out(profile, a, panels, rows, bias, y)?,
                Order::Bf16(panels) => matmul_laid_out(profile, a, panels, rows, bias, y)?,
                Order::F16(panels) => matmul_laid_out(profile, a, panels, rows, bias, y)?,
                Order::Blocks(panels) => matmul_blocks(profile, matrix(&x)?, panels, rows, bias, y)?,
            }
            Ok(())
        }))
    }

    /// A part of the weight begins at a multiple of this many rows.
    pub const ROWS: usize = PANEL_COLS;
}

fn panels<T: Scalar + Element>(engine: &Engine, weight: &Tensor) -> Result<Option<Panels<T>>> {
    Ok(Panels::new(engine.profile, matrix(weight)?.transposed()))
}

/// All of a tensor (..., C) as a matrix of C columns.
fn matrix<T: Scalar>(x: &Tensor) -> Result<Mat<'_, T>> {
    let cols = x.shape().last().copied().unwrap_or(0);
    Ok(Mat::new(x.as_slice::<T>()?, x.elements().checked_div(cols).unwrap_or(0), cols)?)
}
