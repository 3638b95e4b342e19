//! What can be wrong with a graph, a trace or a run.

use std::fmt;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault: its [`kind`](Error::kind) and the node, scope or module it was found at.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    kind: Box<ErrorKind>,
    place: Option<String>,
}

/// The ways to be wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An operation refuses its inputs.
    #[error("{0}")]
    Tensor(tensor::Error),
    /// A rule of graphs is broken.
    #[error("{rule}: found {found}")]
    Malformed {
        /// The rule.
        rule: &'static str,
        /// What breaks it.
        found: String,
    },
    /// A value that was computed where a traced one is needed, or the other way round.
    #[error("a {found} value, expected a {expected} one")]
    Mixed {
        /// What it is.
        found: &'static str,
        /// What is needed.
        expected: &'static str,
    },
    /// A name that a run needs and was not given.
    #[error("no value for input `{name}`")]
    MissingInput {
        /// The name.
        name: String,
    },
    /// A function or method known by name only.
    #[error("`{name}` is known by name only and cannot be computed")]
    NotComputable {
        /// The name.
        name: String,
    },
    /// A number of targets a subgraph holds that is not positive.
    #[error("targets_per_subgraph is {found}, expected at least 1")]
    TargetsPerSubgraph {
        /// The number given.
        found: usize,
    },
    /// Sequential targets given in more than one place.
    #[error("sequential targets are given by {places}, expected one place (name them once)")]
    AmbiguousTargets {
        /// Who gives them.
        places: String,
    },
    /// A module name that its parent already has.
    #[error("module `{name}` exists twice")]
    DuplicateModule {
        /// Its path.
        name: String,
    },
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

    pub(crate) fn malformed(rule: &'static str, found: impl fmt::Display) -> Self {
        ErrorKind::Malformed { rule, found: found.to_string() }.into()
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind: Box::new(kind), place: None }
    }
}

impl From<tensor::Error> for Error {
    fn from(error: tensor::Error) -> Self {
        ErrorKind::Tensor(error).into()
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
