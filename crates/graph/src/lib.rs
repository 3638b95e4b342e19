//! Values, traces, graphs, partitions and interpreters.
