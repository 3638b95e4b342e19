//! What can be wrong with a kernel's arguments or its numbers.

use std::fmt;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault: its [`kind`](Error::kind) and the operation and argument it was found at.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    kind: ErrorKind,
    place: &'static str,
}

/// The ways to be wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A slice with a length that does not fit its stated shape.
    #[error("length {found}, expected {expected}")]
    Length {
        /// Elements given.
        found: usize,
        /// Elements that the shape asks for.
        expected: usize,
    },
    /// A dimension that does not fit another one.
    #[error("extent {found}, expected {expected}")]
    Extent {
        /// The extent given.
        found: usize,
        /// What fits, in words or as a number.
        expected: String,
    },
    /// An index beyond its table.
    #[error("index {found} at position {position}, expected less than {bound}")]
    Index {
        /// The index given.
        found: usize,
        /// Its position in the list of indices.
        position: usize,
        /// Entries of the table.
        bound: usize,
    },
    /// A matrix that has no Cholesky factor.
    #[error("pivot {pivot} is {value}, expected a positive number (raise the damping)")]
    NotPositiveDefinite {
        /// Index of the first pivot that is not positive, in the order of the matrix as given.
        pivot: usize,
        /// What stands there after the elimination of the pivots before it.
        value: f64,
    },
    /// An instruction set that this processor lacks.
    #[error("profile {found} is not available on this processor, available are {available}")]
    ProfileAbsent {
        /// The profile asked for.
        found: crate::Isa,
        /// Names of the profiles that exist here.
        available: String,
    },
    /// A name that is no profile.
    #[error("unknown profile `{found}`, known are portable, avx2, avx512, avx512-bf16, avx512-vnni")]
    ProfileName {
        /// The name as given.
        found: String,
    },
}

impl Error {
    pub(crate) fn new(place: &'static str, kind: ErrorKind) -> Self {
        Self { kind, place }
    }

    /// The fault.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Operation and argument, as `gemm: bias`.
    pub fn place(&self) -> &'static str {
        self.place
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (in `{}`)", self.kind, self.place)
    }
}

impl std::error::Error for Error {}

/// Checks the length of a slice against its shape, whose product may overflow.
pub(crate) fn check_len(place: &'static str, found: usize, shape: &[usize]) -> Result<()> {
    let expected = shape.iter().try_fold(1usize, |acc, &n| acc.checked_mul(n)).unwrap_or(usize::MAX);
    if found == expected { Ok(()) } else { Err(Error::new(place, ErrorKind::Length { found, expected })) }
}

/// Checks that a dimension is what another argument asks for.
pub(crate) fn check_extent(place: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        Ok(())
    } else {
        Err(Error::new(place, ErrorKind::Extent { found, expected: expected.to_string() }))
    }
}
