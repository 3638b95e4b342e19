//! The short causal convolution of mixers with a state.

use graph::{ModuleId, Value};
use tensor::{Activation, Op};

use super::exactly;
use crate::build::{Bias, Builder};
use crate::context::{Cx, Layer};
use crate::error::Result;
use crate::store::ParameterId;

/// Shape of a convolution of each channel, and the function after it.
#[derive(Clone, Copy)]
pub(crate) struct ShortConv {
    pub(crate) channels: usize,
    /// Tokens that it sees.
    pub(crate) taps: usize,
    pub(crate) activation: Activation,
}

/// x (B, T, C) -> (B, T, C).
struct Conv {
    weight: ParameterId,
    bias: Option<ParameterId>,
    activation: Activation,
}

/// A convolution under `name`.
pub(crate) fn short_conv(b: &mut Builder, name: &str, plan: ShortConv, bias: Bias) -> Result<ModuleId> {
    b.module(name, "Conv1d", |b| {
        let weight = b.parameter("weight", &[plan.channels, 1, plan.taps]);
        let bias = (bias == Bias::Given).then(|| b.parameter("bias", &[plan.channels]));
        Ok(Conv { weight, bias, activation: plan.activation })
    })
}

impl Layer for Conv {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let mut operands = vec![x, cx.parameter(self.weight)?];
        if let Some(bias) = self.bias {
            operands.push(cx.parameter(bias)?);
        }
        let [y] = exactly(cx.apply_all(Op::CausalConv, operands)?, "one result")?;
        cx.apply_all(Op::Activate(self.activation), vec![y])
    }
}
