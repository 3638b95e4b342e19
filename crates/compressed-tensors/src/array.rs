//! A tensor as the format sees it: dtype, shape and little-endian bytes, row-major.

use indexmap::IndexMap;

use crate::DType;

/// A stored tensor: element type, shape and its little-endian, row-major bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array {
    /// Element type.
    pub dtype: DType,
    /// Extent of each dimension.
    pub shape: Vec<usize>,
    /// `dtype.byte_len(shape.product())` bytes.
    pub data: Vec<u8>,
}

/// Tensors of one module under their local names (`weight`, `weight_scale`, ...), in order.
pub type ModuleTensors = IndexMap<String, Array>;

impl Array {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}
