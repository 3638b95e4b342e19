//! Model architectures written once over Value.
