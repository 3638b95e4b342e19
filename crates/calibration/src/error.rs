//! What can be wrong with calibration data, a tokenizer, a chat template or an argument.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault: its [`kind`](Error::kind) and, where known, the [`place`](Error::place) a person should look at.
#[derive(Debug)]
pub struct Error {
    kind: Box<ErrorKind>,
    place: Option<Place>,
}

/// Where a fault is: a file, and a line of it where the file has lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file or folder.
    pub path: PathBuf,
    /// Line counted from 1; for a Parquet or JSON-array file, the row counted from 1.
    pub line: Option<u64>,
}

/// The ways to be wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The file or folder is not there.
    #[error("no such file or folder")]
    Absent,
    /// The operating system refused an operation.
    #[error("{operation} failed: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// Content that is not of the format the reader expects.
    #[error("not valid {format}: {reason}")]
    Malformed {
        /// Name of the format.
        format: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A part of the input exceeds a fixed limit.
    #[error("{what} has {found}, the limit is {limit}")]
    TooLarge {
        /// What was measured.
        what: &'static str,
        /// Its size, unit included.
        found: String,
        /// The limit, unit included.
        limit: String,
    },
    /// The column that holds the text is not in the data.
    #[error("column `{column}` is missing, found columns: {}{}", list(found), hint_text_column(found))]
    MissingColumn {
        /// The column that was asked for.
        column: String,
        /// The columns of that row, in file order.
        found: Vec<String>,
    },
    /// A column holds a value of a type that cannot be used there.
    #[error("column `{column}` holds {found}, expected {expected}")]
    ColumnType {
        /// The column, or a path inside it.
        column: String,
        /// What it holds.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// There is nothing to calibrate with.
    #[error("no usable sample: {reason}")]
    Empty {
        /// Why nothing is left.
        reason: String,
    },
    /// A sample has more tokens than the model has positions.
    #[error("sample {sample} has {tokens} tokens, the model has {limit} positions; set a smaller max_seq_length")]
    BeyondContext {
        /// Index of the sample.
        sample: usize,
        /// Its length.
        tokens: usize,
        /// The model's positions.
        limit: usize,
    },
    /// A token id that the embedding table has no row for.
    #[error(
        "token id {id}{} in sample {sample} is beyond the vocabulary of {rows} rows; \
         the tokenizer does not belong to this model",
        shown(token)
    )]
    BeyondVocabulary {
        /// The id.
        id: u64,
        /// The token's text, if the tokenizer knows it.
        token: Option<String>,
        /// Index of the sample.
        sample: usize,
        /// Rows of the embedding table.
        rows: usize,
    },
    /// An argument or setting with a value that is refused.
    #[error("`{argument}` is {found}, expected {expected}")]
    InvalidArgument {
        /// Name of the argument.
        argument: String,
        /// What it holds.
        found: String,
        /// What is accepted.
        expected: String,
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
    /// The tokenizer refuses its file or a text.
    #[error("tokenizer: {reason}")]
    Tokenizer {
        /// What the tokenizer library says.
        reason: String,
    },
    /// A chat template that cannot be compiled or rendered.
    #[error("chat template{}: {reason}", at_line(line))]
    Template {
        /// Line of the template, counted from 1.
        line: Option<usize>,
        /// What the template engine or the template itself says.
        reason: String,
    },
    /// Rows of a batch have unequal lengths in a column that no collator cuts.
    #[error("column `{column}` has rows of {first} and {other} entries in one batch")]
    Ragged {
        /// The column.
        column: String,
        /// Entries of the first row.
        first: usize,
        /// Entries of the row that differs.
        other: usize,
    },
    /// A combination that is not built.
    #[error("{what} is not supported; {hint}")]
    Unsupported {
        /// The combination.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// An entry of the intermediates cache that does not exist.
    #[error("batch {batch} of {batches} has no entry `{name}`, it has: {}", list(found))]
    MissingEntry {
        /// Index of the batch.
        batch: usize,
        /// Number of batches.
        batches: usize,
        /// Name that was asked for.
        name: String,
        /// Names that exist.
        found: Vec<String>,
    },
    /// A batch of the intermediates cache that does not exist.
    #[error("batch {batch} is beyond the {batches} batches of the cache")]
    MissingBatch {
        /// Index of the batch.
        batch: usize,
        /// Number of batches.
        batches: usize,
    },
}

impl Error {
    /// The fault.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Where the fault is.
    pub fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// The same fault, placed in the file `path` unless it already has a place.
    #[must_use]
    pub fn in_file(mut self, path: &Path) -> Self {
        self.place.get_or_insert_with(|| Place { path: path.to_owned(), line: None });
        self
    }

    /// The same fault, at `place` unless it already has a line.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        if self.place.as_ref().is_none_or(|known| known.line.is_none()) {
            self.place = Some(place);
        }
        self
    }

    /// A failed system call on `path`.
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::Absent,
            _ => ErrorKind::Io { operation, source },
        };
        Self::from(kind).in_file(path)
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
            Some(Place { path, line: Some(line) }) => write!(f, "{}:{line}: {}", path.display(), self.kind),
            Some(Place { path, line: None }) => write!(f, "{}: {}", path.display(), self.kind),
            None => self.kind.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &*self.kind {
            ErrorKind::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.iter().map(|name| format!("`{}`", name.escape_debug())).collect::<Vec<_>>().join(", "),
    }
}

fn hint_text_column(found: &[String]) -> &'static str {
    if found.is_empty() { "" } else { "; name one of them in text_column" }
}

fn shown(token: &Option<String>) -> String {
    token.as_ref().map(|token| format!(" (`{}`)", token.escape_debug())).unwrap_or_default()
}

fn at_line(line: &Option<usize>) -> String {
    line.map(|line| format!(" line {line}")).unwrap_or_default()
}
