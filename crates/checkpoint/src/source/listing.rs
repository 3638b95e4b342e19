//! What lies in a model directory, and which names and links may be followed.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Component, Path, PathBuf},
};

use crate::error::{Error, ErrorKind, Result};

/// Most entries of a model directory that are looked at, sub folders included.
const MAX_ENTRIES: usize = 20_000;
/// Deepest sub folder that is looked into.
const MAX_DEPTH: usize = 8;
/// Longest file name that file systems accept.
const MAX_FILE_NAME_BYTES: usize = 255;

/// Which links in a model directory are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// Those that stay in the directory, and those into `blobs` beside the `snapshots` folder that the
    /// directory is in, as in the Hugging Face cache.
    #[default]
    Confined,
    /// All of them.
    Follow,
}

/// The files of a model directory, sub folders included, sorted by relative name.
#[derive(Debug)]
pub(super) struct Listing {
    /// The directory, links resolved.
    pub(super) dir: PathBuf,
    /// Relative names, `/` between parts.
    pub(super) names: Vec<String>,
    /// Sub folders behind a link, which are not looked into.
    pub(super) linked_dirs: Vec<String>,
    links: Links,
}

impl Listing {
    pub(super) fn read(dir: &Path, links: Links) -> Result<Self> {
        let meta = fs::metadata(dir).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => {
                let hint = "expected a directory with config.json and *.safetensors, or a hub id";
                ErrorKind::Absent { what: "the model directory".to_owned(), hint }.at(dir)
            }
            _ => Error::io("look at", dir, e),
        })?;
        if !meta.is_dir() {
            return Err(ErrorKind::NotADirectory.at(dir));
        }
        let resolved = dir.canonicalize().map_err(|e| Error::io("resolve", dir, e))?;
        let mut listing = Self { dir: resolved, names: Vec::new(), linked_dirs: Vec::new(), links };
        listing.walk("", 0)?;
        listing.names.sort();
        listing.linked_dirs.sort();
        Ok(listing)
    }

    fn walk(&mut self, below: &str, depth: usize) -> Result<()> {
        let dir = self.dir.join(below);
        for entry in fs::read_dir(&dir).map_err(|e| Error::io("list", &dir, e))? {
            let entry = entry.map_err(|e| Error::io("list", &dir, e))?;
            let kind = entry.file_type().map_err(|e| Error::io("look at", entry.path(), e))?;
            // A name that is not UTF-8 cannot be named by an index, and is left where it is.
            let Some(name) = entry.file_name().to_str().map(|it| format!("{below}{it}")) else { continue };
            if name.starts_with(".cache") || name.starts_with(".git") || name == ".llmc" {
                continue;
            }
            if self.names.len() == MAX_ENTRIES {
                let (found, limit) = (MAX_ENTRIES as u64 + 1, MAX_ENTRIES as u64);
                return Err(ErrorKind::TooLarge { what: "the number of files", found, limit }.at(&self.dir));
            }
            if kind.is_dir() {
                if depth == MAX_DEPTH {
                    let (found, limit) = (MAX_DEPTH as u64 + 1, MAX_DEPTH as u64);
                    return Err(ErrorKind::TooLarge { what: "the depth of folders", found, limit }.at(&self.dir));
                }
                self.walk(&format!("{name}/"), depth + 1)?;
            } else if kind.is_symlink() && fs::metadata(entry.path()).is_ok_and(|it| it.is_dir()) {
                self.linked_dirs.push(name);
            } else {
                self.names.push(name);
            }
        }
        Ok(())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.names.binary_search_by(|it| it.as_str().cmp(name)).is_ok()
    }

    /// Names directly in the directory.
    pub(super) fn top_level(&self) -> impl Iterator<Item = &String> {
        self.names.iter().filter(|it| !it.contains('/'))
    }

    /// Where the bytes of a listed file are; a link that leaves its bounds is refused.
    pub(super) fn resolve(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        let refuse = |reason| Err(ErrorKind::Unsafe { name: name.to_owned(), reason }.at(&path));
        let target = match path.canonicalize() {
            Ok(target) => target,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return refuse("the link leads nowhere"),
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return refuse("the links form a loop");
            }
            Err(e) => return Err(Error::io("resolve", &path, e)),
        };
        let confined = target.starts_with(&self.dir)
            || cache_blobs(&self.dir).is_some_and(|blobs| target.starts_with(blobs))
            || self.links == Links::Follow;
        if !confined {
            return refuse("the link leaves the model directory");
        }
        if !fs::metadata(&target).is_ok_and(|it| it.is_file()) {
            return refuse("it is not a regular file");
        }
        Ok(target)
    }
}

/// The `blobs` folder that belongs to a `snapshots/<revision>` directory.
fn cache_blobs(dir: &Path) -> Option<PathBuf> {
    let snapshots = dir.parent().filter(|it| it.file_name() == Some(OsStr::new("snapshots")))?;
    // The blobs may themselves be linked to another disk.
    snapshots.parent()?.join("blobs").canonicalize().ok()
}

/// Refuses every file name that is not plainly one file of the directory.
pub(crate) fn check_file_name(name: &str) -> Result<()> {
    let mut parts = Path::new(name).components();
    let lower = name.to_ascii_lowercase();
    let reason = if name.is_empty() {
        "the file name is empty"
    } else if name.len() > MAX_FILE_NAME_BYTES {
        "the file name is longer than 255 bytes"
    } else if name.contains(['/', '\\', '\0']) || lower.contains("%2f") || lower.contains("%5c") {
        "a file name must not have a separator"
    } else if name.starts_with("..") || !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
        "the file name leaves the directory"
    } else {
        return Ok(());
    };
    Err(ErrorKind::Unsafe { name: name.to_owned(), reason }.into())
}
