//! Tables of rotary position embedding.

use graph::Value;
use tensor::Op;

use super::exactly;
use crate::context::{Cx, Layer};
use crate::error::Result;
use crate::rope::Frequencies;

/// x (B, T, C) -> cos (T, F), sin (T, F) for each set of frequencies.
pub(crate) struct Rotary(pub(crate) Vec<Frequencies>);

impl Layer for Rotary {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [x] = exactly(inputs, "x")?;
        let mut tables = Vec::with_capacity(2 * self.0.len());
        for Frequencies { inverse, scaling, longer } in &self.0 {
            let op = Op::RopeTable { inverse_frequencies: inverse.clone(), scaling: *scaling, longer: longer.clone() };
            tables.extend(cx.apply_all(op, vec![x.clone()])?);
        }
        Ok(tables)
    }
}
