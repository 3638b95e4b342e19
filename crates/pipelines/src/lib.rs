//! Calibration pipelines.
