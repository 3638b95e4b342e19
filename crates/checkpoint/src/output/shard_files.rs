//! The shards of an unfinished output: where they are, a few of them open at a time.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{disk::Disk, guard, layout::LaidShard};
use crate::{
    error::{Error, ErrorKind, Result},
    regular,
};

/// Files that stay open at once.
const MAX_OPEN: usize = 8;

/// Shards in the work directory, or at their final place where a finish was cut short.
#[derive(Debug)]
pub(super) struct ShardFiles {
    work: PathBuf,
    out: PathBuf,
    /// The most recently used files, the latest last.
    open: Mutex<Vec<(usize, Arc<OpenShard>)>>,
}

/// An open shard and where it is.
#[derive(Debug)]
pub(super) struct OpenShard {
    pub(super) file: File,
    pub(super) path: PathBuf,
}

impl ShardFiles {
    pub(super) fn new(work: PathBuf, out: PathBuf) -> Self {
        Self { work, out, open: Mutex::default() }
    }

    /// Where a file of this name is now, or is to be created.
    pub(super) fn path(&self, file_name: &str) -> PathBuf {
        let (work, out) = (self.work.join(file_name), self.out.join(file_name));
        let is_final = |it: &Path| fs::symlink_metadata(it).is_ok_and(|meta| meta.is_file());
        if !work.exists() && is_final(&out) { out } else { work }
    }

    /// Bytes that the shards still have to take from the disk, in whole blocks.
    pub(super) fn missing_bytes(&self, shards: &[LaidShard]) -> u64 {
        const BLOCK: u64 = 4096;
        let missing = |it: &LaidShard| {
            let rounded = it.file_bytes.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
            rounded.saturating_sub(guard::allocated_bytes(&self.path(&it.file_name)))
        };
        shards.iter().map(missing).fold(0, u64::saturating_add)
    }

    /// Brings every shard to its planned length with its planned head; data that is there stays.
    pub(super) fn prepare(&self, disk: &Disk, shards: &[LaidShard]) -> Result<()> {
        for shard in shards {
            let path = self.path(&shard.file_name);
            let file = disk.open(&path)?;
            disk.reserve(&file, &path, shard.file_bytes)?;
            disk.write_at(&file, &path, &shard.head, 0)?;
            disk.sync(&file, &path)?;
        }
        disk.sync_dir(&self.work)
    }

    /// The open file of a shard.
    pub(super) fn get(&self, disk: &Disk, shard_idx: usize, shard: &LaidShard) -> Result<Arc<OpenShard>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|it| it.0 == shard_idx) {
            let hit = open.remove(at);
            let shard = Arc::clone(&hit.1);
            open.push(hit);
            return Ok(shard);
        }
        let path = self.path(&shard.file_name);
        let file = disk.open(&path)?;
        let bytes = file.metadata().map_err(|e| Error::io("look at", &path, e))?.len();
        if bytes != shard.file_bytes {
            let reason = format!("the unfinished shard had {} bytes and has {bytes}", shard.file_bytes);
            return Err(ErrorKind::Changed { reason }.at(path));
        }
        if open.len() == MAX_OPEN {
            open.remove(0);
        }
        let opened = Arc::new(OpenShard { file, path });
        open.push((shard_idx, Arc::clone(&opened)));
        Ok(opened)
    }
}

/// Feeds bytes `from..to` of a file to a hash.
pub(super) fn hash_range(file: &File, mut from: u64, to: u64, hasher: &mut blake3::Hasher) -> Result<()> {
    let mut buffer = vec![0; (1 << 20).min(to.saturating_sub(from)) as usize];
    while from < to {
        let n_bytes = (to - from).min(buffer.len() as u64) as usize;
        regular::read_exact_at(file, &mut buffer[..n_bytes], from)?;
        hasher.update(&buffer[..n_bytes]);
        from += n_bytes as u64;
    }
    Ok(())
}
