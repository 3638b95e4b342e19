//! A Hugging Face model directory on disk: distrustful reader, atomic resumable writer.
//!
//! [`Source`] opens a directory and reads tensors by position.
//! [`OutputPlan`] lays an output out from shapes alone, and its [`Writer`] fills it so that a killed run resumes.

#![forbid(unsafe_code)]

mod error;
mod header;
mod hub;
mod json;
mod output;
mod regular;
mod scheduling;
mod shown;
mod source;

pub use error::{Class, Error, ErrorKind, Place, Result};
pub use header::{Header, HeaderTensor, MAX_HEADER_BYTES, MAX_NAME_BYTES, MAX_RANK, MAX_TENSORS};
pub use hub::{HubEnvironment, Origin, ResolvedModel, resolve_model};
pub use json::{MAX_CONFIG_BYTES, MAX_DEPTH, MAX_INDEX_BYTES, parse_json, pretty_json, read_json};
pub use output::{
    DoneUnit, Existing, Finish, Finished, Generated, IndexRule, Opened, OutputPlan, Resumed, ShardPlan, TensorSpec,
    UnitCommit, WORK_DIR, Writer, replace_generated,
};
pub use scheduling::{DeviceMemory, Devices, JobSchedule, Packing, greedy_bin_packing, pick_device};
pub use source::{Companion, IndexFacts, Links, Shard, Source, TensorEntry, Treatment};
