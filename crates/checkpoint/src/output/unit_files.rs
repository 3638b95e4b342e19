//! Files of single units: shards whose sizes are known only when a unit is done.

use std::path::Path;

use super::{
    disk::Disk,
    layout::{self, ShardPlan, TensorSpec, contract},
    shard_files,
};
use crate::{
    error::{Error, Result},
    header::{Header, PREFIX_BYTES},
    regular,
    source::read_header,
};

/// A written file of a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UnitFile {
    pub(super) hash: String,
    pub(super) tensors: Vec<String>,
    pub(super) data_bytes: u64,
}

/// Writes a safetensors file with these tensors and brings it to the disk; `temp` is its name until then.
pub(super) fn write(
    disk: &Disk,
    temp: &Path,
    path: &Path,
    plan: &ShardPlan,
    data: &[(&TensorSpec, &[u8])],
) -> Result<UnitFile> {
    let (shard, slots) = layout::place(plan, 0)?;
    let mut bytes = shard.head;
    let data_start = bytes.len() as u64;
    for slot in &slots {
        // The slots are the given tensors in another order.
        let given = data.iter().find(|it| it.0.name == slot.name).map_or(&[][..], |it| it.1);
        if given.len() as u64 != slot.n_bytes() {
            let reason = format!("{} bytes were given for a tensor of {} bytes", given.len(), slot.n_bytes());
            return Err(contract(reason).tensor(&slot.name));
        }
        bytes.extend_from_slice(given);
    }
    disk.write_whole(temp, path, &bytes)?;
    Ok(UnitFile {
        hash: blake3::hash(&bytes).to_hex().to_string(),
        tensors: slots.into_iter().map(|it| it.name).collect(),
        data_bytes: bytes.len() as u64 - data_start,
    })
}

/// Reads a unit's file back, as a whole and as a header.
pub(super) fn read(path: &Path) -> Result<UnitFile> {
    let read = || -> Result<UnitFile> {
        let (file, stamp) = regular::open(path, "the file of a unit")?;
        let mut hasher = blake3::Hasher::new();
        shard_files::hash_range(&file, 0, stamp.bytes, &mut hasher)?;
        let text = read_header(&file, stamp.bytes)?;
        let data_bytes = stamp.bytes - PREFIX_BYTES - text.len() as u64;
        let header = Header::parse(&text, data_bytes)?;
        let tensors = header.tensors.into_iter().map(|it| it.name).collect();
        Ok(UnitFile { hash: hasher.finalize().to_hex().to_string(), tensors, data_bytes })
    };
    read().map_err(|e: Error| e.at(path))
}
