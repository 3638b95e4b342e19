//! CPU kernels on slices, each with its plain reference loop.
