//! A value of model code: computed, or traced.

use tensor::{Spec, Tensor};

use crate::Port;
use crate::error::{ErrorKind, Result};

/// What model code works on.
#[derive(Clone, Debug)]
pub enum Value {
    /// A tensor that exists.
    Computed(Tensor),
    /// A tensor that a graph will give.
    Traced {
        /// Dtype and shape, with symbolic extents.
        spec: Spec,
        /// Which value of the graph; none inside a module that is one node.
        port: Option<Port>,
    },
}

impl Value {
    /// Dtype and shape.
    pub fn spec(&self) -> Spec {
        match self {
            Self::Computed(tensor) => Spec::of(tensor),
            Self::Traced { spec, .. } => spec.clone(),
        }
    }

    /// Extent of dimension `dim` as a number.
    ///
    /// # Errors
    /// [`tensor::ErrorKind::Symbolic`] where a trace leaves it open, [`tensor::ErrorKind::Index`] where there is none.
    pub fn dim(&self, dim: usize) -> Result<usize> {
        let spec = self.spec();
        let bound = spec.shape.len();
        let found = spec.shape.get(dim).ok_or(tensor::ErrorKind::Index { found: dim as i64, bound });
        Ok(found.map_err(tensor::Error::from)?.known()?)
    }

    /// The tensor of a computed value.
    ///
    /// # Errors
    /// [`ErrorKind::Mixed`] for a traced one.
    pub fn into_tensor(self) -> Result<Tensor> {
        match self {
            Self::Computed(tensor) => Ok(tensor),
            Self::Traced { .. } => Err(ErrorKind::Mixed { found: "traced", expected: "computed" }.into()),
        }
    }

    pub(crate) fn traced(&self) -> Result<(&Spec, Option<Port>)> {
        match self {
            Self::Traced { spec, port } => Ok((spec, *port)),
            Self::Computed(_) => Err(ErrorKind::Mixed { found: "computed", expected: "traced" }.into()),
        }
    }
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Self {
        Self::Computed(tensor)
    }
}
