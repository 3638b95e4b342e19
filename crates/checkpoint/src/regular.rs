//! Opening of regular files only: a pipe or a device in a model directory neither hangs nor feeds us.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::OFlags;

use crate::error::{Error, ErrorKind, Result};

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) bytes: u64,
    pub(crate) modified_ns: i128,
}

impl Stamp {
    pub(crate) fn of(meta: &fs::Metadata) -> Self {
        let modified_ns = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
        Self { device: meta.dev(), inode: meta.ino(), bytes: meta.len(), modified_ns }
    }
}

/// Opens a regular file for reading; links are followed.
pub(crate) fn open(path: &Path, what: &str) -> Result<(File, Stamp)> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => ErrorKind::Absent { what: what.to_owned(), hint: "" }.at(path),
        _ => Error::io("open", path, e),
    };
    // Looking before opening spares a device its open side effects; non-blocking covers the race between both.
    check(path, &fs::metadata(path).map_err(failed)?)?;
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    check(path, &meta)?;
    Ok((file, Stamp::of(&meta)))
}

fn check(path: &Path, meta: &fs::Metadata) -> Result<()> {
    if meta.is_file() {
        return Ok(());
    }
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Err(ErrorKind::Unsafe { name, reason: "it is not a regular file" }.at(path))
}

/// Reads a regular file of at most `max_bytes` bytes.
pub(crate) fn read_whole(path: &Path, what: &'static str, max_bytes: u64) -> Result<Vec<u8>> {
    let (file, stamp) = open(path, what)?;
    if stamp.bytes > max_bytes {
        return Err(ErrorKind::TooLarge { what: "the file size", found: stamp.bytes, limit: max_bytes }.at(path));
    }
    let mut bytes = vec![0; stamp.bytes as usize];
    read_exact_at(&file, &mut bytes, 0).map_err(|e| e.at(path))?;
    Ok(bytes)
}

/// Fills `out` from `offset`; a file that ends before is one that was cut after its size was read.
pub(crate) fn read_exact_at(file: &File, out: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(out, offset).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => {
            let reason = format!("the file ends inside bytes {offset}..{}", offset + out.len() as u64);
            ErrorKind::Changed { reason }.into()
        }
        _ => ErrorKind::Io { action: "read", source }.into(),
    })
}
