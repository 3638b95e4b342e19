//! A few open shard files: a process with a small descriptor limit reads a checkpoint of any number of shards.

use std::{
    fs::File,
    sync::{Arc, Mutex, PoisonError},
};

use super::Shard;
use crate::{error::Result, regular};

/// Files that stay open at once.
const MAX_OPEN: usize = 8;

/// The most recently used files, the latest last.
#[derive(Debug, Default)]
pub(super) struct Handles(Mutex<Vec<(usize, Arc<File>)>>);

impl Handles {
    /// The open file of a shard; one that is opened anew must still be the file whose header was read.
    pub(super) fn get(&self, shard_idx: usize, shard: &Shard) -> Result<Arc<File>> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|it| it.0 == shard_idx) {
            let hit = open.remove(at);
            let file = Arc::clone(&hit.1);
            open.push(hit);
            return Ok(file);
        }
        let (file, stamp) = regular::open(&shard.path, "the shard")?;
        shard.check_stamp(&stamp)?;
        if open.len() == MAX_OPEN {
            open.remove(0);
        }
        let file = Arc::new(file);
        open.push((shard_idx, Arc::clone(&file)));
        Ok(file)
    }
}
