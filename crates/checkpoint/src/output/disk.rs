//! Every change of the file system that the writer makes, one function each, so that a test can fail any of them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use rustix::{fs::FallocateFlags, fs::OFlags, io::Errno};

use crate::error::{Error, ErrorKind, Result};

/// The file system; in tests one whose n-th change fails and every later one too, as if the process had died.
#[derive(Debug, Default)]
pub(super) struct Disk {
    #[cfg(test)]
    pub(super) fuse: Option<std::sync::atomic::AtomicI64>,
    #[cfg(test)]
    pub(super) trace: std::sync::Mutex<Vec<String>>,
}

impl Disk {
    #[cfg(test)]
    fn step(&self, action: &str, path: &Path) -> io::Result<()> {
        use std::sync::atomic::Ordering;
        if let (Ok(mut trace), Some(name)) = (self.trace.lock(), path.file_name()) {
            trace.push(format!("{action} {}", name.to_string_lossy()));
        }
        match &self.fuse {
            Some(left) if left.fetch_sub(1, Ordering::SeqCst) <= 0 => Err(Errno::NOSPC.into()),
            _ => Ok(()),
        }
    }

    #[cfg(not(test))]
    fn step(&self, _: &str, _: &Path) -> io::Result<()> {
        Ok(())
    }

    /// Whether changes are to outlive a loss of power; tests that only count steps go without.
    #[cfg(test)]
    fn is_durable(&self) -> bool {
        self.fuse.is_none()
    }

    #[cfg(not(test))]
    fn is_durable(&self) -> bool {
        true
    }

    fn change<T>(&self, action: &'static str, path: &Path, run: impl FnOnce() -> io::Result<T>) -> Result<T> {
        self.step(action, path).and_then(|()| run()).map_err(|e| Error::io(action, path, e))
    }

    /// Creates a directory and those above it.
    pub(super) fn create_dir_all(&self, path: &Path) -> Result<()> {
        self.change("create", path, || fs::create_dir_all(path))
    }

    /// Opens a file for reading and writing, creating it where it is absent; a link is not followed.
    pub(super) fn open(&self, path: &Path) -> Result<File> {
        self.change("open", path, || own_file().create(true).open(path))
    }

    /// Writes all bytes at a position.
    pub(super) fn write_at(&self, file: &File, path: &Path, bytes: &[u8], offset: u64) -> Result<()> {
        if self.step("write to", path).is_err() {
            // A process that dies in a write may leave the first part of it.
            let torn = file.write_all_at(&bytes[..bytes.len() / 2], offset);
            return Err(Error::io("write to", path, torn.err().unwrap_or_else(|| Errno::NOSPC.into())));
        }
        file.write_all_at(bytes, offset).map_err(|e| Error::io("write to", path, e))
    }

    /// Sets a file's length and takes its blocks now, where the file system can; keeps the bytes it has.
    pub(super) fn reserve(&self, file: &File, path: &Path, bytes: u64) -> Result<()> {
        self.change("reserve space for", path, || {
            file.set_len(bytes)?;
            if bytes == 0 {
                return Ok(());
            }
            match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
                other => other.map_err(io::Error::from),
            }
        })
    }

    /// Sets a file's length.
    pub(super) fn set_len(&self, file: &File, path: &Path, bytes: u64) -> Result<()> {
        self.change("set the length of", path, || file.set_len(bytes))
    }

    /// Brings a file's data to the disk.
    pub(super) fn sync(&self, file: &File, path: &Path) -> Result<()> {
        self.change("sync", path, || if self.is_durable() { file.sync_data() } else { Ok(()) })
    }

    /// Brings a directory's names to the disk.
    pub(super) fn sync_dir(&self, path: &Path) -> Result<()> {
        let sync = || if self.is_durable() { File::open(path)?.sync_all() } else { Ok(()) };
        self.change("sync", path, || match sync() {
            // Some network file systems cannot sync a directory.
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => Ok(()),
            other => other,
        })
    }

    /// Renames; what has the new name is replaced.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.change("rename", to, || fs::rename(from, to))
    }

    /// Removes a file, or a link itself; absent is fine.
    pub(super) fn remove_file(&self, path: &Path) -> Result<()> {
        self.change("remove", path, || or_absent(fs::remove_file(path)))
    }

    /// Removes a directory of ours with all it holds, following no link; absent is fine.
    pub(super) fn remove_dir_all(&self, path: &Path) -> Result<()> {
        self.change("remove", path, || or_absent(fs::remove_dir_all(path)))
    }

    /// Writes a whole file by way of `temp`: its name appears only when its bytes are on the disk.
    pub(super) fn write_whole(&self, temp: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut source = bytes;
        self.stream_whole(temp, path, &mut source)
    }

    /// Copies a stream to a file as [`Disk::write_whole`] does.
    pub(super) fn stream_whole(&self, temp: &Path, path: &Path, source: &mut dyn io::Read) -> Result<()> {
        let mut file = self.change("create", temp, || own_file().create(true).truncate(true).open(temp))?;
        self.change("write to", temp, || io::copy(source, &mut file).and_then(|_| file.flush()))?;
        self.sync(&file, temp)?;
        drop(file);
        self.rename(temp, path)
    }
}

fn own_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32);
    options
}

fn or_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// A fault of the set-up as the caller sees it: an output that cannot be created, rather than a failed write.
pub(super) fn as_cannot_create(error: Error) -> Error {
    use io::ErrorKind as Os;
    let ErrorKind::Io { source, .. } = error.kind() else { return error };
    let is_refusal = matches!(
        source.kind(),
        Os::PermissionDenied
            | Os::ReadOnlyFilesystem
            | Os::NotADirectory
            | Os::InvalidFilename
            | Os::StorageFull
            | Os::FileTooLarge
            | Os::QuotaExceeded
            | Os::AlreadyExists
            | Os::NotFound
    );
    if !is_refusal {
        return error;
    }
    let path = error.place().path.clone().unwrap_or_default();
    ErrorKind::CannotCreate { reason: error.kind().to_string() }.at(path)
}
