//! What can be wrong with a model directory, on the way in and on the way out.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use crate::shown::{shown, shown_list};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault: its [`kind`](Error::kind) and the [`place`](Error::place) a person should look at.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    place: Place,
}

/// Where a fault is. Every part is optional; what is known is filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file or directory.
    pub path: Option<PathBuf>,
    /// The tensor inside it.
    pub tensor: Option<String>,
    /// Line and column, both from 1, of a text file.
    pub line_column: Option<(usize, usize)>,
}

/// Classes of faults, one for each exit code that this crate can cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The caller broke a contract of this crate.
    Unexpected,
    /// The input is there and wrong.
    BadInput,
    /// The input is absent.
    InputAbsent,
    /// A feature or a service is absent.
    Unavailable,
    /// The output cannot be created.
    CannotCreate,
    /// Reading or writing failed.
    Io,
    /// Refused for safety.
    Refused,
}

/// The ways to be wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something that must exist does not.
    #[error("{what} does not exist{}", dash(hint))]
    Absent {
        /// What was looked for.
        what: String,
        /// The remedy, or empty.
        hint: &'static str,
    },
    /// A file where a directory was expected.
    #[error("this is not a directory, expected a directory with config.json and *.safetensors")]
    NotADirectory,
    /// Weights in a form that is not read.
    #[error(
        "no safetensors file, found {}; such files are never opened, convert them to safetensors first \
         (for example with `save_pretrained(..., safe_serialization=True)`)",
        shown_list(found)
    )]
    ForeignWeights {
        /// The weight files that are there.
        found: Vec<String>,
    },
    /// A file that cannot hold what its header, or the format, says.
    #[error("the file is cut: {needed} bytes needed, {actual} found")]
    Truncated {
        /// Bytes that must be there at least.
        needed: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// A file that goes on after the last tensor.
    #[error("{extra} bytes after the last tensor belong to nothing, expected the file to end at {expected}")]
    TrailingBytes {
        /// Bytes too many.
        extra: u64,
        /// Length that the header describes.
        expected: u64,
    },
    /// A count or length above its cap.
    #[error("{what} is {found}, at most {limit} is accepted")]
    TooLarge {
        /// What was measured.
        what: &'static str,
        /// Its size.
        found: u64,
        /// The cap.
        limit: u64,
    },
    /// A JSON text, or a safetensors header, that does not parse or has the wrong form.
    #[error("{what} is malformed: {reason}")]
    Syntax {
        /// Which text.
        what: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// A key that occurs twice in one object.
    #[error("{what} has the key `{}` twice", shown(key))]
    DuplicateKey {
        /// Which text.
        what: &'static str,
        /// The key.
        key: String,
    },
    /// A dtype that safetensors does not define.
    #[error("unknown dtype `{}`", shown(found))]
    UnknownDType {
        /// The name in the header.
        found: String,
    },
    /// A shape whose size cannot be computed, or that disagrees with the byte range.
    #[error("shape {found} is refused: {reason}")]
    Shape {
        /// The shape as written.
        found: String,
        /// Why.
        reason: String,
    },
    /// A byte range that overlaps, leaves a gap, or lies outside the data.
    #[error("data_offsets {}..{} are refused: {reason}", found.0, found.1)]
    Offsets {
        /// The range as written.
        found: (u64, u64),
        /// Why.
        reason: String,
    },
    /// Shards that an index names and the directory lacks.
    #[error("the index names {} absent shard(s): {}", names.len(), shown_list(names))]
    MissingShards {
        /// Their file names.
        names: Vec<String>,
    },
    /// Tensors that an index names and their shard lacks.
    #[error("the index names {} tensor(s) that its shard lacks: {}", names.len(), shown_list(names))]
    MissingTensors {
        /// Their names.
        names: Vec<String>,
    },
    /// Tensors that a shard holds and the index does not name.
    #[error("{} tensor(s) of the shard are not in the index: {}", names.len(), shown_list(names))]
    UnindexedTensors {
        /// Their names.
        names: Vec<String>,
    },
    /// A tensor that two shards hold.
    #[error("the tensor is in two shards, `{}` and `{}`", shown(first), shown(second))]
    TensorTwice {
        /// First shard.
        first: String,
        /// Second shard.
        second: String,
    },
    /// A tensor that was asked for and is not in the checkpoint.
    #[error("no such tensor")]
    NoSuchTensor,
    /// An input that is no longer what it was when it was opened.
    #[error("changed while reading: {reason}")]
    Changed {
        /// What differs.
        reason: String,
    },
    /// A file name, link or file type that is not safe to follow.
    #[error("`{}` is refused: {reason}", shown(name))]
    Unsafe {
        /// The name as given.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// A system call failed on a file that was usable before.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The output cannot be created.
    #[error("cannot create the output: {reason}")]
    CannotCreate {
        /// Why.
        reason: String,
    },
    /// Too little free space for the planned output.
    #[error("the output needs {needs} bytes, the disk has {has}")]
    NoSpace {
        /// Bytes still to be written.
        needs: u64,
        /// Bytes available.
        has: u64,
    },
    /// Another run works on the same output.
    #[error("another run holds the output: process {} on host `{}`", pid.map_or("unknown".to_owned(), |it| it.to_string()), shown(host))]
    Locked {
        /// Its process id, where it could be read.
        pid: Option<u32>,
        /// Its host.
        host: String,
    },
    /// The output holds files that this run did not write.
    #[error("the output exists and holds {}; `--overwrite` replaces it", shown_list(found))]
    OutputExists {
        /// Some of what is there.
        found: Vec<String>,
    },
    /// The output is the input, or one lies in the other.
    #[error("the output and the input `{}` are the same directory or lie in one another", shown(&input.to_string_lossy()))]
    OutputIsInput {
        /// The input.
        input: PathBuf,
    },
    /// An unfinished output of another command.
    #[error(
        "the unfinished output was made from something else: {} changed; give the same command, or `--overwrite`",
        shown_list(differing)
    )]
    FingerprintChanged {
        /// The names of the fingerprints that differ.
        differing: Vec<String>,
    },
    /// A call that breaks the contract of the writer or the scheduler.
    #[error("{reason}")]
    Contract {
        /// What was broken.
        reason: String,
    },
    /// Jobs that fit on no device.
    #[error("no device has enough estimated free memory: {reason}")]
    DoesNotFit {
        /// Which job, where known.
        reason: String,
    },
    /// A download that failed.
    #[error("cannot download: {reason}")]
    Download {
        /// What the server or the network says.
        reason: String,
    },
}

fn dash(hint: &str) -> String {
    if hint.is_empty() { String::new() } else { format!("; {hint}") }
}

impl ErrorKind {
    /// The class, and with it the exit code, that the fault belongs to.
    pub fn class(&self) -> Class {
        match self {
            Self::Absent { .. } => Class::InputAbsent,
            Self::NotADirectory
            | Self::ForeignWeights { .. }
            | Self::Truncated { .. }
            | Self::TrailingBytes { .. }
            | Self::TooLarge { .. }
            | Self::Syntax { .. }
            | Self::DuplicateKey { .. }
            | Self::UnknownDType { .. }
            | Self::Shape { .. }
            | Self::Offsets { .. }
            | Self::MissingShards { .. }
            | Self::MissingTensors { .. }
            | Self::UnindexedTensors { .. }
            | Self::TensorTwice { .. }
            | Self::NoSuchTensor
            | Self::Changed { .. } => Class::BadInput,
            Self::Unsafe { .. }
            | Self::OutputExists { .. }
            | Self::OutputIsInput { .. }
            | Self::FingerprintChanged { .. }
            | Self::DoesNotFit { .. } => Class::Refused,
            Self::Io { .. } => Class::Io,
            Self::CannotCreate { .. } | Self::NoSpace { .. } | Self::Locked { .. } => Class::CannotCreate,
            Self::Contract { .. } => Class::Unexpected,
            Self::Download { .. } => Class::Unavailable,
        }
    }

    /// The fault, placed at a file.
    pub(crate) fn at(self, path: impl AsRef<Path>) -> Error {
        Error::from(self).at(path)
    }
}

impl Error {
    /// The fault.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// Where the fault is.
    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// The class that the fault belongs to.
    pub fn class(&self) -> Class {
        self.0.kind.class()
    }

    /// A failed system call on `path`.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Self {
        ErrorKind::Io { action, source }.at(path)
    }

    pub(crate) fn at(mut self, path: impl AsRef<Path>) -> Self {
        self.0.place.path.get_or_insert_with(|| path.as_ref().to_owned());
        self
    }

    pub(crate) fn tensor(mut self, name: impl Into<String>) -> Self {
        self.0.place.tensor.get_or_insert_with(|| name.into());
        self
    }

    pub(crate) fn line_column(mut self, line: usize, column: usize) -> Self {
        self.0.place.line_column = Some((line, column));
        self
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self(Box::new(Inner { kind, place: Place::default() }))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(path) = &self.path {
            write!(f, "{}", shown(&path.to_string_lossy()))?;
            separator = ", ";
        }
        if let Some((line, column)) = self.line_column {
            write!(f, "{separator}line {line} column {column}")?;
            separator = ", ";
        }
        if let Some(tensor) = &self.tensor {
            write!(f, "{separator}tensor `{}`", shown(tensor))?;
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.place == Place::default() {
            return self.0.kind.fmt(f);
        }
        write!(f, "{}: {}", self.0.place, self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.kind {
            ErrorKind::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
