//! What can be wrong with a scheme, a config or a module's tensors.

use std::fmt;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault: its [`kind`](Error::kind) and, where known, the [`place`](Error::place) a person should look at.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    kind: Box<ErrorKind>,
    place: Option<String>,
}

/// The ways to be wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A field holds a value that the schema or its cross-field rules refuse.
    #[error("`{field}` is {found}, expected {expected}")]
    InvalidField {
        /// Name of the field.
        field: String,
        /// What it holds.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// A field that the schema lacks.
    #[error("unknown field `{field}`, known are {}", known.join(", "))]
    UnknownField {
        /// Name of the field.
        field: String,
        /// All fields of that object.
        known: Vec<String>,
    },
    /// Text that is not JSON.
    #[error("not JSON at line {line}, column {column}: {reason}")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser says.
        reason: String,
    },
    /// A name that is not in a registry.
    #[error("unknown {what} `{name}`, known are {}", known.join(", "))]
    UnknownName {
        /// What kind of thing was looked up.
        what: &'static str,
        /// The name as given.
        name: String,
        /// All names that exist.
        known: Vec<String>,
    },
    /// A combination that no codec or formula covers.
    #[error("{what} is not supported")]
    Unsupported {
        /// The combination.
        what: String,
    },
    /// A tensor with a shape that does not fit.
    #[error("tensor `{tensor}` has shape {found:?}, expected {expected}")]
    Shape {
        /// Local name of the tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// What fits.
        expected: String,
    },
    /// A tensor with a dtype that does not fit.
    #[error("tensor `{tensor}` has dtype {found}, expected {expected}")]
    DType {
        /// Local name of the tensor.
        tensor: String,
        /// Its dtype.
        found: crate::DType,
        /// What fits.
        expected: String,
    },
    /// A tensor that a codec needs is absent.
    #[error("tensor `{tensor}` is missing")]
    MissingTensor {
        /// Local name of the tensor.
        tensor: String,
    },
    /// A tensor that a converter cannot place.
    #[error("tensor `{tensor}` is left over: {reason}")]
    UnexpectedTensor {
        /// Name of the tensor.
        tensor: String,
        /// Why it cannot be placed.
        reason: String,
    },
    /// A pattern that is no regular expression, or that ran past its step limit.
    #[error("pattern `{pattern}` is refused: {reason}")]
    Pattern {
        /// The pattern as given.
        pattern: String,
        /// What the engine says.
        reason: String,
    },
}

impl Error {
    /// The fault.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Where the fault is: a module path or a config field, outermost first.
    pub fn place(&self) -> Option<&str> {
        self.place.as_deref()
    }

    /// The same fault, placed inside `outer`.
    #[must_use]
    pub fn at(mut self, outer: impl fmt::Display) -> Self {
        self.place = Some(match self.place {
            Some(inner) => format!("{outer}.{inner}"),
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

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{} (in `{place}`)", self.kind),
            None => self.kind.fmt(f),
        }
    }
}

impl std::error::Error for Error {}
