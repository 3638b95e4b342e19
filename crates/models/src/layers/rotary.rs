//! Tables of rotary position embedding.

use graph::Value;
use tensor::Op;

use super::exactly;
use crate::context::{Cx, Layer};
use crate::error::Result;
use crate::rope::Frequencies;

/// x (B, T, C) -> cos (T, F), sin (T, F).
pub(crate) struct Rotary(pub(crate) Frequencies);

impl Layer for Rotary {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let Frequencies { inverse, scaling } = &self.0;
        cx.apply_all(Op::RopeTable { inverse_frequencies: inverse.clone(), scaling: *scaling }, vec![x])
    }
}
