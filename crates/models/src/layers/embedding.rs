//! The token embedding.

use graph::{ModuleId, Value};
use tensor::Op;

use super::exactly;
use crate::build::Builder;
use crate::context::{Cx, Layer};
use crate::error::Result;
use crate::store::ParameterId;

/// Shape of an embedding.
pub(crate) struct EmbeddingPlan {
    /// The class that Hugging Face gives it.
    pub(crate) class: &'static str,
    /// V.
    pub(crate) vocab_size: usize,
    /// C.
    pub(crate) width: usize,
    /// Factor on its rows.
    pub(crate) factor: Factor,
}

/// A factor on the rows of an embedding.
#[derive(Clone, Copy)]
pub(crate) enum Factor {
    /// None.
    One,
    /// As it is.
    Exact(f32),
    /// Rounded to the type that the model computes in.
    InType(f32),
}

/// ids (B, T) -> (B, T, C).
struct Embedding {
    weight: ParameterId,
    factor: Factor,
}

/// An embedding under `name`, and its table.
pub(crate) fn embedding(b: &mut Builder, name: &str, plan: &EmbeddingPlan) -> Result<(ModuleId, ParameterId)> {
    let mut table = None;
    let id = b.module(name, plan.class, |b| {
        let weight = b.parameter("weight", &[plan.vocab_size, plan.width]);
        table = Some(weight);
        Ok(Embedding { weight, factor: plan.factor })
    })?;
    Ok((id, table.expect("the closure ran, else there were an error")))
}

/// Shape of learned positions.
#[derive(Clone, Copy)]
pub(crate) struct PositionsPlan {
    pub(crate) class: &'static str,
    /// Rows of the table.
    pub(crate) rows: usize,
    /// Added to each position.
    pub(crate) offset: u32,
    pub(crate) counted: Counted,
}

/// Which tokens a position counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// All before it.
    All,
    /// Those before it that are not hidden.
    Visible,
}

/// ids (B, T), then a mask (B, T) or not -> (B, T, C).
struct LearnedPositions {
    weight: ParameterId,
    plan: PositionsPlan,
}

/// Learned positions under `name` over `width` channels.
pub(crate) fn learned_positions(b: &mut Builder, name: &str, plan: PositionsPlan, width: usize) -> Result<ModuleId> {
    b.module(name, plan.class, |b| Ok(LearnedPositions { weight: b.parameter("weight", &[plan.rows, width]), plan }))
}

impl Layer for LearnedPositions {
    fn forward(&self, cx: &mut Cx<'_>, mut inputs: Vec<Value>) -> Result<Vec<Value>> {
        if self.plan.counted == Counted::All {
            inputs.truncate(1);
        }
        let [at] = exactly(cx.apply_all(Op::Positions { offset: self.plan.offset }, inputs)?, "positions")?;
        Ok(vec![cx.embed(self.weight, at)?])
    }
}

impl Layer for Embedding {
    fn forward(&self, cx: &mut Cx<'_>, inputs: Vec<Value>) -> Result<Vec<Value>> {
        let [ids] = exactly(inputs, "ids")?;
        let x = cx.embed(self.weight, ids)?;
        match self.factor {
            Factor::One => Ok(vec![x]),
            Factor::Exact(factor) => cx.apply_all(Op::Scale { factor }, vec![x]),
            Factor::InType(factor) => cx.apply_all(Op::ScaleInType { factor }, vec![x]),
        }
    }
}
