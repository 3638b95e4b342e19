//! What can be wrong with a tensor, an operation or the memory it asks for.

use std::fmt;

use crate::{DType, Dim};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault: its [`kind`](Error::kind) and the operation, then the modules around it.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    kind: Box<ErrorKind>,
    place: Option<String>,
}

/// The ways to be wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A shape that does not fit an operation.
    #[error("`{argument}` has shape {}, expected {expected}", shown(found))]
    Shape {
        /// Which input.
        argument: &'static str,
        /// Its shape.
        found: Vec<Dim>,
        /// What fits.
        expected: String,
    },
    /// A dtype that does not fit an operation.
    #[error("`{argument}` has dtype {found}, expected {expected}")]
    DType {
        /// Which input.
        argument: &'static str,
        /// Its dtype.
        found: DType,
        /// What fits.
        expected: String,
    },
    /// An operation called with too few or too many inputs.
    #[error("{found} inputs, expected {expected}")]
    Arity {
        /// Inputs given.
        found: usize,
        /// Inputs that the operation takes.
        expected: String,
    },
    /// Elements that do not fill the shape they are given.
    #[error("{found} elements, expected the {expected} of the shape")]
    Length {
        /// Elements given.
        found: usize,
        /// Elements that the shape asks for.
        expected: usize,
    },
    /// A symbolic extent where a number is needed.
    #[error("extent `{dim}` is symbolic while tracing and cannot be read as a number")]
    Symbolic {
        /// The extent.
        dim: Dim,
    },
    /// More memory than the budget holds.
    #[error("{needed_bytes} bytes needed, the budget is {limit_bytes} bytes (of which {in_use_bytes} are in use)")]
    Budget {
        /// What would be in use with the buffer that was asked for.
        needed_bytes: u64,
        /// The limit.
        limit_bytes: u64,
        /// What is in use now.
        in_use_bytes: u64,
    },
    /// A token id, a slice end or a route that points outside.
    #[error("index {found}, expected less than {bound}")]
    Index {
        /// The index given.
        found: i64,
        /// One past the last that exists.
        bound: usize,
    },
    /// A fault that a kernel found.
    #[error("{0}")]
    Kernel(kernels::Error),
}

fn shown(shape: &[Dim]) -> String {
    let dims: Vec<_> = shape.iter().map(ToString::to_string).collect();
    format!("({})", dims.join(", "))
}

impl Error {
    /// The fault.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Where the fault is, outermost first.
    pub fn place(&self) -> Option<&str> {
        self.place.as_deref()
    }

    /// The same fault, placed inside `outer`.
    #[must_use]
    pub fn at(mut self, outer: impl fmt::Display) -> Self {
        self.place = Some(match self.place {
            Some(inner) => format!("{outer}: {inner}"),
            None => outer.to_string(),
        });
        self
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind: Box::new(kind), place: None }
    }
}

impl From<kernels::Error> for Error {
    fn from(error: kernels::Error) -> Self {
        ErrorKind::Kernel(error).into()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{} (in `{place}`)", self.kind),
            None => self.kind.fmt(f),
        }
    }
}

impl std::error::Error for Error {}
