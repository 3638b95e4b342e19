//! Linear layers.

use graph::{ModuleId, Value};
use tensor::Op;

use super::exactly;
use crate::build::{Bias, Builder};
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

/// The class of the linear layers of an architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinearKind {
    /// `Linear`, w (O, N).
    Linear,
    /// `FalconLinear`, as `Linear`.
    Falcon,
    /// `Conv1D`, w (N, O) on disk, which no engine quantizes (GPT-2).
    Conv1d,
}

/// `x @ w (+ bias)`: x (..., N) -> (..., O).
struct Conv1d {
    /// w (N, O).
    weight: ParameterId,
    bias: Option<ParameterId>,
}

impl LinearKind {
    /// A layer of `[rows, columns]` under `name`.
    pub(crate) fn build(
        self,
        b: &mut Builder,
        name: &str,
        [rows, columns]: [usize; 2],
        bias: Bias,
    ) -> Result<ModuleId> {
        let class = match self {
            Self::Linear => "Linear",
            Self::Falcon => "FalconLinear",
            Self::Conv1d => {
                return b.module(name, "Conv1D", |b| {
                    let weight = b.parameter("weight", &[columns, rows]);
                    Ok(Conv1d { weight, bias: (bias == Bias::Given).then(|| b.parameter("bias", &[rows])) })
                });
            }
        };
        b.linear_of(name, class, [rows, columns], bias).map(|(id, _)| id)
    }
}

impl Layer for Linear {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        if let Some(y) = cx.product(&x, self)? {
            return Ok(vec![y]);
        }
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

impl Layer for Conv1d {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let weight = cx.parameter(self.weight)?;
        let mut inputs = vec![x, cx.apply(Op::Transpose { a: 0, b: 1 }, [weight])?];
        if let Some(bias) = self.bias {
            inputs.push(cx.parameter(bias)?);
        }
        cx.apply_all(Op::Linear, inputs)
    }
}
