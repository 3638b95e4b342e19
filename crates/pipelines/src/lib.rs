//! Calibration pipelines.
#![forbid(unsafe_code)]

pub mod choice;
