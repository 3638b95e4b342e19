//! A linear layer.

use graph::Value;
use tensor::Op;

use super::exactly;
use crate::context::{Cx, Layer};
use crate::error::Result;
use crate::store::ParameterId;

/// `x @ w^T (+ bias)`: x (..., N) -> (..., O).
#[derive(Clone, Debug)]
pub struct Linear {
    /// w (O, N).
    pub weight: ParameterId,
    /// bias (O).
    pub bias: Option<ParameterId>,
}

impl Layer for Linear {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let mut inputs = vec![x, cx.parameter(self.weight)?];
        if let Some(bias) = self.bias {
            inputs.push(cx.parameter(bias)?);
        }
        cx.apply_all(Op::Linear, inputs)
    }

    fn as_linear(&self) -> Option<&Linear> {
        Some(self)
    }
}
