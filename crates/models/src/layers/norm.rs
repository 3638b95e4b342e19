//! Norms.

use graph::{Timing, Value};
use tensor::{Op, Rounded};

use super::exactly;
use crate::context::{Cx, Layer};
use crate::error::Result;
use crate::store::ParameterId;

/// Root-mean-square normalization of the last dimension: x (..., C) -> (..., C).
#[derive(Debug)]
pub(crate) struct RmsNorm {
    pub(crate) weight: ParameterId,
    pub(crate) eps: f32,
    pub(crate) weight_offset: f32,
    pub(crate) rounded: Rounded,
}

impl Layer for RmsNorm {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let weight = cx.parameter(self.weight)?;
        let op = Op::RmsNorm { eps: self.eps, weight_offset: self.weight_offset, rounded: self.rounded };
        cx.apply_all(op, vec![x, weight])
    }

    fn timing(&self) -> Timing {
        Timing::Prologue
    }
}
