//! What can go wrong while a pipeline runs.

use std::{fmt, io, path::PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault of a run; [`ErrorKind`] says which.
#[derive(Debug)]
pub struct Error {
    kind: Box<ErrorKind>,
}

/// The ways a run can fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A modifier, or the order of its events.
    #[error(transparent)]
    Lifecycle(lifecycle::Error),
    /// The model.
    #[error(transparent)]
    Model(models::Error),
    /// A module that gives no finite numbers.
    #[error("the output of module `{module}` is NaN or infinite in batch {batch}")]
    NotFinite {
        /// The innermost module whose output is the first that is not finite.
        module: String,
        /// Index of the batch.
        batch: usize,
    },
    /// A modifier that hears what is unchanged behind one that changes it.
    #[error(
        "{modifier} is to hear layers as they were, behind a modifier that has changed them, expected it to be the first \
         of the recipe"
    )]
    Unchanged {
        /// Its type.
        modifier: String,
    },
    /// A modifier that was to leave what the model computes, and did not.
    #[error(
        "{modifier} has changed what `{module}` gives by {percent:.1} % where it was to leave it as it is, expected at most \
         {:.0} %, which rounding may do: its mappings do not fit this model, give it `mappings` that name all readers of what is smoothed",
        100.0 * crate::promise::ROUNDING
    )]
    Moved {
        /// Its type.
        modifier: String,
        /// The first module whose output has moved too far.
        module: String,
        /// By how much of itself.
        percent: f64,
    },
    /// A system that gives no threads.
    #[error("no threads to compute on: {0}, expected the system to grant them (see `ulimit -u`)")]
    Threads(rayon::ThreadPoolBuildError),
    /// Activations that went to disk.
    #[error("activations in {}: {source}", path.display())]
    Spill {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Error {
    /// The fault.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// The fault, by value.
    pub fn into_kind(self) -> ErrorKind {
        *self.kind
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind: Box::new(kind) }
    }
}

impl From<lifecycle::Error> for Error {
    fn from(error: lifecycle::Error) -> Self {
        ErrorKind::Lifecycle(error).into()
    }
}

impl From<models::Error> for Error {
    fn from(error: models::Error) -> Self {
        ErrorKind::Model(error).into()
    }
}

impl From<tensor::Error> for Error {
    fn from(error: tensor::Error) -> Self {
        models::Error::from(error).into()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.kind.source()
    }
}
