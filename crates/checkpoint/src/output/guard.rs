//! Whether an output may be written at all: apart from the inputs, not through a link, with space enough.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::WORK_DIR;
use crate::error::{Error, ErrorKind, Result};

/// What lies at the output's place.
pub(super) enum Found {
    /// Nothing, or an empty directory.
    Nothing,
    /// A work directory, and these files beside it.
    Work(Vec<String>),
    /// Files and no work directory.
    Files(Vec<String>),
}

/// Looks at the output's place; a link and a file are refused.
pub(super) fn look(out: &Path) -> Result<Found> {
    let meta = match fs::symlink_metadata(out) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        other => other.map_err(|e| Error::io("look at", out, e))?,
    };
    if meta.is_symlink() {
        return Err(unsafe_link(out));
    }
    if !meta.is_dir() {
        let reason = "a file is in the way, expected a directory or nothing".to_owned();
        return Err(ErrorKind::CannotCreate { reason }.at(out));
    }
    let (mut names, mut has_work) = (Vec::new(), false);
    for entry in fs::read_dir(out).map_err(|e| Error::io("list", out, e))? {
        let entry = entry.map_err(|e| Error::io("list", out, e))?;
        if entry.file_name() == WORK_DIR {
            if !entry.file_type().is_ok_and(|it| it.is_dir()) {
                return Err(unsafe_link(&entry.path()));
            }
            has_work = true;
        } else {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(match (has_work, names.is_empty()) {
        (true, _) => Found::Work(names),
        (false, true) => Found::Nothing,
        (false, false) => Found::Files(names),
    })
}

fn unsafe_link(path: &Path) -> Error {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    ErrorKind::Unsafe { name, reason: "nothing is written through a link, give the directory itself" }.at(path)
}

/// Refuses an output that is an input, lies in one, or holds one, also by way of links and bind mounts.
pub(super) fn check_apart(out: &Path, inputs: &[PathBuf]) -> Result<()> {
    let standing = existing_ancestor(out);
    let out_upwards = identities(&standing)?;
    let out_itself = if standing == out { out_upwards.first().copied() } else { None };
    for input in inputs.iter().filter(|it| it.exists()) {
        let upwards = identities(input)?;
        let inside = upwards.first().is_some_and(|it| out_upwards.contains(it));
        let around = out_itself.is_some_and(|it| upwards.contains(&it));
        if inside || around {
            return Err(ErrorKind::OutputIsInput { input: input.clone() }.at(out));
        }
    }
    Ok(())
}

/// The path itself, or the nearest directory above it that exists.
pub(super) fn existing_ancestor(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let found = absolute.ancestors().find(|it| it.exists()).unwrap_or(Path::new("/")).to_owned();
    if found == absolute { path.to_owned() } else { found }
}

/// Device and inode of the path and of every directory above it; a bind mount has those of what it shows.
fn identities(path: &Path) -> Result<Vec<(u64, u64)>> {
    let resolved = path.canonicalize().map_err(|e| Error::io("resolve", path, e))?;
    let ids = resolved.ancestors().map(|it| fs::metadata(it).map(|meta| (meta.dev(), meta.ino())));
    ids.collect::<io::Result<_>>().map_err(|e| Error::io("look at", path, e))
}

/// Checks that `needs` bytes, of which `freed` come back first, fit on the file system of the output.
pub(super) fn check_space(out: &Path, needs: u64, freed: u64) -> Result<()> {
    let standing = existing_ancestor(out);
    let Ok(stat) = rustix::fs::statvfs(&standing) else { return Ok(()) };
    // A file system without a size, such as some network ones, reports no blocks at all.
    if stat.f_blocks == 0 {
        return Ok(());
    }
    let has = stat.f_bavail.saturating_mul(stat.f_frsize).saturating_add(freed);
    if needs > has {
        return Err(ErrorKind::NoSpace { needs, has }.at(out));
    }
    Ok(())
}

/// Bytes that a file has on the disk; 0 where it is absent.
pub(super) fn allocated_bytes(path: &Path) -> u64 {
    fs::symlink_metadata(path).map_or(0, |it| it.blocks() * 512)
}
