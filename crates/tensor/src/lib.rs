//! Tensors with budgeted storage and the fused operations models need.
