//! What can go wrong in an algorithm or in a modifier's fields.

use std::fmt;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault: its [`kind`](Error::kind) and, where known, the module it concerns.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    kind: Box<ErrorKind>,
    module: Option<String>,
}

/// The ways to be wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
    /// The format refused arguments or shapes.
    #[error(transparent)]
    Format(#[from] compressed_tensors::Error),
    /// A slice with a length that does not fit its stated shape.
    #[error("{what} has {found} elements, expected {expected}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Elements given.
        found: usize,
        /// Elements that the shape asks for.
        expected: usize,
    },
    /// Statistics that hold NaN or infinities.
    #[error(
        "{what} of channel {channel} is {value}, expected a finite number (the calibration data or a layer before it overflows)"
    )]
    NonFinite {
        /// Which statistic.
        what: &'static str,
        /// The first channel that is not finite.
        channel: usize,
        /// What it holds.
        value: f64,
    },
    /// A search in which no candidate has a finite loss.
    #[error("none of {candidates} candidates has a finite loss")]
    NoFiniteLoss {
        /// Candidates tried.
        candidates: usize,
    },
    /// A field with a value that a modifier refuses.
    #[error("field `{field}` is {found}, expected {expected}")]
    InvalidField {
        /// The field.
        field: &'static str,
        /// What it holds.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// Groups that do not divide a weight's columns.
    #[error("group sizes do not divide columns: {}", list(modules))]
    Indivisible {
        /// Modules with their columns and group size.
        modules: Vec<(String, usize, usize)>,
    },
    /// A mapping that cannot be applied to the model.
    #[error("mapping of `{smooth}`: {reason}")]
    Mapping {
        /// Name or pattern of the smoothed layer.
        smooth: String,
        /// Why.
        reason: String,
    },
    /// Statistics that were gathered and never used, or needed and never gathered.
    #[error("{what} of {}", modules.join(", "))]
    Statistics {
        /// What is wrong with them.
        what: &'static str,
        /// The modules concerned.
        modules: Vec<String>,
    },
}

fn list(modules: &[(String, usize, usize)]) -> String {
    let one = |(name, cols, group): &(String, usize, usize)| format!("{name} ({cols} columns, group_size {group})");
    modules.iter().map(one).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// The fault.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// The module that it concerns.
    pub fn module(&self) -> Option<&str> {
        self.module.as_deref()
    }

    /// The same fault at a module, unless one is known already.
    #[must_use]
    pub fn at(mut self, module: impl Into<String>) -> Self {
        self.module.get_or_insert_with(|| module.into());
        self
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind: Box::new(kind), module: None }
    }
}

impl From<kernels::Error> for Error {
    fn from(error: kernels::Error) -> Self {
        ErrorKind::Kernel(error).into()
    }
}

impl From<compressed_tensors::Error> for Error {
    fn from(error: compressed_tensors::Error) -> Self {
        ErrorKind::Format(error).into()
    }
}

impl From<Error> for lifecycle::Error {
    fn from(error: Error) -> Self {
        let failed = Self::failed(&error.kind);
        match error.module {
            Some(module) => failed.at(lifecycle::Place::Module(module)),
            None => failed,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.module {
            Some(module) => write!(f, "module {module}: {}", self.kind),
            None => self.kind.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

/// Checks the length of a slice against its shape, whose product may overflow.
pub(crate) fn check_len(what: &'static str, found: usize, shape: &[usize]) -> Result<()> {
    let expected = shape.iter().try_fold(1usize, |acc, &n| acc.checked_mul(n)).unwrap_or(usize::MAX);
    if found == expected { Ok(()) } else { Err(ErrorKind::Length { what, found, expected }.into()) }
}
