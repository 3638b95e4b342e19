//! Calibration pipelines: they run a model, tell modifiers what happens, and have done with modules that nobody changes any more.
//!
//! A pipeline knows no modifier: it asks each what it declares ([`lifecycle::Modifier`]) and drives all of them through one
//! [`lifecycle::CompressionLifecycle`]. What becomes of finished modules is a [`Committer`]'s business.
#![forbid(unsafe_code)]

mod activation;
mod basic;
mod boundaries;
mod change;
pub mod choice;
mod committer;
mod course;
mod data_free;
mod divisions;
mod error;
mod independent;
mod lanes;
mod listen;
mod log;
mod needs;
mod promise;
mod sequential;
mod store;
mod times;
mod waves;
mod windows;

pub use basic::Basic;
pub use boundaries::Spill;
pub use committer::{Committer, ModifierData};
pub use data_free::DataFree;
pub use error::{Error, ErrorKind, Result};
pub use independent::Independent;
pub use lanes::Lanes;
pub use needs::{Needs, WaveNeeds};
pub use sequential::{CalibrationBatch, Passes, Sequential};
pub use store::ModelStore;
pub use times::Times;
pub use waves::{Partition, Wave, WaveKind, Waves};
