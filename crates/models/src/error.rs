//! What can be wrong with a model directory, a model or a run.

use std::fmt;

use tensor::DType;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of whoever supplied a hook or the weights.
pub type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// A fault: its [`kind`](Error::kind) and the module, parameter or config key it was found at.
#[derive(Debug)]
pub struct Error {
    kind: Box<ErrorKind>,
    place: Option<String>,
}

/// The ways to be wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A graph or an operation refuses.
    #[error("{0}")]
    Graph(graph::Error),
    /// A pattern is no pattern.
    #[error("{0}")]
    Pattern(compressed_tensors::Error),
    /// An architecture that is not written here.
    #[error("model_type `{found}` is not supported, known are {} (try `model-free-ptq`, which needs no architecture)", known.join(", "))]
    UnknownArchitecture {
        /// What the config says.
        found: String,
        /// All that are known.
        known: Vec<&'static str>,
    },
    /// A config key that holds what nobody can use.
    #[error("found {found}, expected {expected}")]
    Config {
        /// What it holds.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// A parameter that the checkpoint lacks.
    #[error("the checkpoint has no such tensor")]
    MissingTensor,
    /// A parameter with another shape than the config implies.
    #[error("shape {found:?}, expected {expected:?} by the config")]
    Shape {
        /// Its shape.
        found: Vec<usize>,
        /// What the config implies.
        expected: Vec<usize>,
    },
    /// A parameter in a type that nothing computes in.
    #[error("dtype {found}, expected {expected}")]
    DType {
        /// Its dtype.
        found: DType,
        /// What is accepted.
        expected: &'static str,
    },
    /// The weights cannot be read.
    #[error("{0}")]
    Weights(BoxedError),
    /// A hook failed.
    #[error("hook: {0}")]
    Hook(BoxedError),
    /// A hook gave a replacement where none can be used.
    #[error("a hook replaced a value of a module that holds others (hook the modules it holds)")]
    Replacement,
    /// A module called with other values than it takes.
    #[error("{found} values, expected {expected}")]
    Arity {
        /// Values given.
        found: usize,
        /// Values that it takes.
        expected: &'static str,
    },
    /// A module that only holds others was called.
    #[error("the module only holds others and cannot be called")]
    NotCallable,
    /// A pattern that matches no module.
    #[error("target `{pattern}` matches no module{}", near(nearest))]
    NoMatch {
        /// The pattern.
        pattern: String,
        /// Names that are like it.
        nearest: Vec<String>,
    },
}

fn near(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(", nearest are {}", names.join(", ")) }
}

impl Error {
    /// The fault.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// The module, parameter or config key.
    pub fn place(&self) -> Option<&str> {
        self.place.as_deref()
    }

    /// The same fault, placed at `place` where it has no place yet.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.place.get_or_insert_with(|| place.to_string());
        self
    }

    pub(crate) fn config(found: impl fmt::Display, expected: impl Into<String>) -> Self {
        ErrorKind::Config { found: found.to_string(), expected: expected.into() }.into()
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind: Box::new(kind), place: None }
    }
}

impl From<graph::Error> for Error {
    fn from(error: graph::Error) -> Self {
        ErrorKind::Graph(error).into()
    }
}

impl From<tensor::Error> for Error {
    fn from(error: tensor::Error) -> Self {
        graph::Error::from(error).into()
    }
}

impl From<compressed_tensors::Error> for Error {
    fn from(error: compressed_tensors::Error) -> Self {
        ErrorKind::Pattern(error).into()
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

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.kind {
            ErrorKind::Graph(error) => Some(error),
            ErrorKind::Pattern(error) => Some(error),
            ErrorKind::Weights(error) | ErrorKind::Hook(error) => Some(error.as_ref()),
            _ => None,
        }
    }
}
