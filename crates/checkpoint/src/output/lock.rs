//! One run at a time on one output: a file lock that ends with its process.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read as _},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, test_kill_process};

use super::disk::Disk;
use crate::error::{Error, ErrorKind, Result};

/// The lock of an output, held until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

struct Holder {
    pid: Option<u32>,
    host: String,
}

impl Lock {
    /// Takes the lock at `path`; one that a dead process left is taken over.
    pub(super) fn take(disk: &Disk, path: &Path) -> Result<Self> {
        // A finishing run removes the file that it holds; the second try then creates a new one.
        for _ in 0..3 {
            let mut file = disk.open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(locked(path, &Holder::read(&mut file))),
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {
                    let holder = Holder::read(&mut file);
                    if holder.may_live() {
                        return Err(locked(path, &holder));
                    }
                }
                Err(TryLockError::Error(e)) => return Err(Error::io("lock", path, e)),
            }
            let ours = file.metadata().map_err(|e| Error::io("look at", path, e))?;
            if !fs::metadata(path).is_ok_and(|it| it.ino() == ours.ino() && it.dev() == ours.dev()) {
                continue;
            }
            let text = format!("{} {}\n", std::process::id(), host());
            disk.set_len(&file, path, 0)?;
            disk.write_at(&file, path, text.as_bytes(), 0)?;
            return Ok(Self { _file: file });
        }
        Err(locked(path, &Holder { pid: None, host: host() }))
    }
}

impl Holder {
    fn read(file: &mut File) -> Self {
        let mut text = String::new();
        // A lock without a readable holder is still a lock.
        let _ = file.take(512).read_to_string(&mut text);
        let mut words = text.split_whitespace();
        let pid = words.next().and_then(|it| it.parse().ok());
        Self { pid, host: words.next().unwrap_or("unknown").to_owned() }
    }

    /// Whether the holder may still run, where the file system has no locks to ask.
    fn may_live(&self) -> bool {
        let Some(pid) = self.pid else { return false };
        if self.host != host() {
            return true;
        }
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        pid.is_some_and(|it| it != rustix::process::getpid() && test_kill_process(it) != Err(rustix::io::Errno::SRCH))
    }
}

fn locked(path: &Path, holder: &Holder) -> Error {
    ErrorKind::Locked { pid: holder.pid, host: holder.host.clone() }.at(PathBuf::from(path))
}

fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
