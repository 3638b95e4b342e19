//! What can go wrong in a job, with its exit code and a hint where the remedy is known.

use std::{fmt, path::PathBuf};

use indexmap::IndexMap;

use crate::{ExitCode, names::fold_names};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault of a job; [`ErrorKind`] says which.
#[derive(Debug)]
pub struct Error {
    kind: Box<ErrorKind>,
}

/// A module and the number of its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The module's name.
    pub module: String,
    /// Columns of its weight.
    pub columns: usize,
}

/// The ways a job can fail.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The checkpoint on disk, read or written.
    #[error(transparent)]
    Checkpoint(checkpoint::Error),
    /// The model: an architecture, a weight, an operation.
    #[error(transparent)]
    Model(models::Error),
    /// A recipe, a modifier, or the order of its events.
    #[error(transparent)]
    Lifecycle(lifecycle::Error),
    /// Activations that went to disk.
    #[error("{}: {source}", path.display())]
    Activations {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A module that is to be compressed and has no scales.
    #[error("module `{module}` has a scheme and no scales after its wave (does a modifier of the recipe observe it?)")]
    NoScale {
        /// The module.
        module: String,
    },
    /// A scale that no engine could divide by.
    #[error("module `{module}`: `{tensor}` {position} is {value}, expected a finite number that is not 0")]
    BadScale {
        /// The module.
        module: String,
        /// Local name of the tensor.
        tensor: String,
        /// Which of its elements.
        position: usize,
        /// What it holds.
        value: f32,
    },
    /// A tensor whose size cannot be told before the run.
    #[error("{what} cannot be planned")]
    Unplanned {
        /// What it is.
        what: String,
    },
    /// Data or tokenizer.
    #[error(transparent)]
    Data(calibration::Error),
    /// A model that gives no finite likelihood.
    #[error(
        "row {row} of the data has no finite likelihood at token {token}: the first output that is NaN or infinite is that of `{module}`"
    )]
    NotANumber {
        /// Index of the row.
        row: usize,
        /// Index of the token.
        token: usize,
        /// The innermost module whose output is the first that is not finite.
        module: String,
    },
    /// An instruction set that this processor lacks.
    #[error(transparent)]
    Profile(kernels::Error),
    /// A module that gives no finite numbers for calibration data.
    #[error("the output of module `{module}` is NaN or infinite in batch {batch} of the calibration data")]
    NotFinite {
        /// The innermost module whose output is the first that is not finite.
        module: String,
        /// Index of the batch.
        batch: usize,
    },
    /// A scheme, config or pattern.
    #[error("{context}: {source}")]
    Format {
        /// Where it was met: an option, a file, a module.
        context: String,
        /// The fault.
        source: compressed_tensors::Error,
    },
    /// An option holds something that cannot be used.
    #[error("`{option}` is {found}, expected {expected}")]
    Option {
        /// The option as typed.
        option: &'static str,
        /// Its value.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// A target that no module matches.
    #[error("{option} `{pattern}` matches no module{}", nearest_text(nearest))]
    Unmatched {
        /// `target`, `ignore` or `include`.
        option: &'static str,
        /// The pattern.
        pattern: String,
        /// Names that are close to it.
        nearest: Vec<String>,
    },
    /// A name that no registry has.
    #[error("`{name}` is no scheme, format, converter, observer or modifier{}", nearest_text(nearest))]
    UnknownName {
        /// The name.
        name: String,
        /// Names that are close to it.
        nearest: Vec<String>,
    },
    /// A chosen module that cannot be compressed apart from one that is not.
    #[error("module `{module}` is chosen and `{other}` is not: {reason}")]
    Inseparable {
        /// The chosen module.
        module: String,
        /// The other one.
        other: String,
        /// What binds them.
        reason: String,
    },
    /// An output of which nothing can be done again.
    #[error("`{}` cannot be gone on from: {reason}", dir.display())]
    Unsuitable {
        /// The output.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
    /// Nothing would be quantized.
    #[error("no module would be quantized: {reason}")]
    NothingToDo {
        /// Why.
        reason: String,
    },
    /// A group size that does not divide the columns of some modules.
    #[error(
        "group size {group_size} does not divide the columns of {} modules; sizes that do: {}; modules: {}",
        modules.len(), numbers(fitting), columns_text(modules)
    )]
    Indivisible {
        /// Columns of a group.
        group_size: usize,
        /// Every module it concerns.
        modules: Vec<Columns>,
        /// Group sizes that divide all of them.
        fitting: Vec<usize>,
    },
    /// An embedding that is the output head too, and would be compressed as both.
    #[error("`{module}` is the output head's weight too, and compressed no engine can tie them")]
    TiedEmbedding {
        /// The embedding.
        module: String,
    },
    /// A checkpoint that no engine could run.
    #[error(
        "{scheme} quantizes activations in groups of {group_size}, which do not divide the inputs of {} modules, so that no engine can run the result; schemes that fit: {}; modules: {}",
        modules.len(), schemes.join(", "), columns_text(modules)
    )]
    Unservable {
        /// The scheme.
        scheme: String,
        /// Columns of an activation group.
        group_size: usize,
        /// Every module it concerns.
        modules: Vec<Columns>,
        /// Presets that fit.
        schemes: Vec<String>,
    },
    /// NaN or infinite weights.
    #[error(
        "tensor `{tensor}` in `{file}` holds {count} values that are NaN or infinite, the first at element {first}"
    )]
    NonFinite {
        /// File name of the shard.
        file: String,
        /// The tensor.
        tensor: String,
        /// How many.
        count: u64,
        /// Flat index of the first.
        first: u64,
    },
    /// A weight whose dtype cannot be quantized.
    #[error("tensor `{tensor}` in `{file}` has dtype {found}, expected {expected}")]
    WeightDType {
        /// File name of the shard.
        file: String,
        /// The tensor.
        tensor: String,
        /// Its dtype.
        found: String,
        /// What can be quantized.
        expected: &'static str,
    },
    /// The source's own quantization cannot be read.
    #[error("`{}`: quantization method `{method}` is unknown, known are {}", file.display(), known.join(", "))]
    SourceMethod {
        /// The config file.
        file: PathBuf,
        /// What it names.
        method: String,
        /// What can be read.
        known: Vec<&'static str>,
    },
    /// A compressed module that the config does not explain.
    #[error("module `{module}` is compressed, and {reason}")]
    Unexplained {
        /// The module.
        module: String,
        /// What is missing.
        reason: String,
    },
    /// The memory ceiling is below what the job needs.
    #[error("needs at least {needed_bytes} bytes of memory for `{module}`, --max-memory allows {allowed_bytes}")]
    Memory {
        /// The module that needs most.
        module: String,
        /// Least ceiling that works.
        needed_bytes: u64,
        /// The ceiling given.
        allowed_bytes: u64,
    },
    /// A file that is no part of a checkpoint could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file that cannot be parsed.
    #[error("{}: {reason}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and what is wrong.
        reason: String,
    },
    /// A page that cannot be made of a report.
    #[error("report.html: {source}")]
    Page {
        /// What the template engine says.
        source: minijinja::Error,
    },
    /// The thread that brings finished units to the disk ended before the job did.
    #[error("finished modules could not be committed")]
    CommitStopped,
    /// A request to stop was heard; everything committed is kept.
    #[error("stopped by signal {signal}; the same command resumes")]
    Interrupted {
        /// The signal's number.
        signal: i32,
    },
}

impl Error {
    /// The fault.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// What the process should exit with.
    pub fn exit_code(&self) -> ExitCode {
        match &*self.kind {
            ErrorKind::Checkpoint(error) => checkpoint_code(error),
            ErrorKind::Option { .. } | ErrorKind::UnknownName { .. } => ExitCode::Usage,
            ErrorKind::Format { .. }
            | ErrorKind::Unmatched { .. }
            | ErrorKind::NothingToDo { .. }
            | ErrorKind::Indivisible { .. }
            | ErrorKind::NonFinite { .. }
            | ErrorKind::WeightDType { .. }
            | ErrorKind::SourceMethod { .. }
            | ErrorKind::Unexplained { .. }
            | ErrorKind::Parse { .. } => ExitCode::BadInput,
            ErrorKind::Unservable { .. }
            | ErrorKind::TiedEmbedding { .. }
            | ErrorKind::Memory { .. }
            | ErrorKind::Inseparable { .. }
            | ErrorKind::Unsuitable { .. }
            | ErrorKind::Profile(_) => ExitCode::Refused,
            ErrorKind::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => ExitCode::InputAbsent,
            ErrorKind::File { .. } => ExitCode::Io,
            ErrorKind::Model(error) => model_code(error),
            ErrorKind::Data(error) => data_code(error),
            ErrorKind::NotANumber { .. } | ErrorKind::NotFinite { .. } => ExitCode::BadInput,
            ErrorKind::Lifecycle(error) => lifecycle_code(error),
            ErrorKind::Activations { .. } => ExitCode::Io,
            ErrorKind::NoScale { .. } | ErrorKind::BadScale { .. } | ErrorKind::Unplanned { .. } => ExitCode::BadInput,
            ErrorKind::CommitStopped | ErrorKind::Page { .. } => ExitCode::Unexpected,
            ErrorKind::Interrupted { signal: 2 } => ExitCode::Interrupted,
            ErrorKind::Interrupted { signal: 15 } => ExitCode::Terminated,
            ErrorKind::Interrupted { .. } => ExitCode::Resumable,
        }
    }

    /// The remedy, where one is known.
    pub fn hint(&self) -> Option<String> {
        match &*self.kind {
            ErrorKind::Indivisible { fitting, .. } => Some(match fitting.last() {
                Some(size) => format!("--group-size {size}, or --ignore these modules"),
                None => "--ignore these modules, or choose a scheme without groups".to_owned(),
            }),
            ErrorKind::Unservable { .. } => {
                Some("choose a scheme that fits, --ignore these modules, or write it all the same with --allow-unservable".to_owned())
            }
            ErrorKind::TiedEmbedding { .. } => {
                Some("--ignore it, or let `llmcompressor oneshot` write a head of its own".to_owned())
            }
            ErrorKind::Inseparable { .. } => Some("choose both or neither; a pattern that names a module chooses all that lies in it".to_owned()),
            ErrorKind::Unsuitable { .. } => Some("run the whole model with --recipe alone".to_owned()),
            ErrorKind::NonFinite { .. } => Some("the checkpoint is damaged; --allow-non-finite quantizes it all the same".to_owned()),
            ErrorKind::NotANumber { module, .. } | ErrorKind::NotFinite { module, .. } => Some(format!(
                "look at the weights of `{module}`, and at the type computed in: f16 overflows above 65504 (--dtype)"
            )),
            ErrorKind::Checkpoint(error) => match error.kind() {
                checkpoint::ErrorKind::FingerprintChanged { differing } if differing.iter().any(|it| it == "numerics profile") => {
                    Some("--profile NAME goes on with another instruction set: the one under `numerics profile` in that file".to_owned())
                }
                _ => None,
            },
            ErrorKind::Memory { needed_bytes, .. } => Some(format!("--max-memory {needed_bytes}")),
            ErrorKind::Unmatched { .. } => Some("`llmcompressor inspect MODEL` lists the modules; a pattern that starts with `re:` is a regular expression anchored at the start".to_owned()),
            ErrorKind::NothingToDo { .. } => Some("`llmcompressor inspect MODEL` lists the modules; --include PATTERN or --no-default-ignore widen the choice".to_owned()),
            _ => None,
        }
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind: Box::new(kind) }
    }
}

impl From<checkpoint::Error> for Error {
    fn from(error: checkpoint::Error) -> Self {
        ErrorKind::Checkpoint(error).into()
    }
}

impl From<models::Error> for Error {
    fn from(error: models::Error) -> Self {
        ErrorKind::Model(error).into()
    }
}

impl From<lifecycle::Error> for Error {
    fn from(error: lifecycle::Error) -> Self {
        ErrorKind::Lifecycle(error).into()
    }
}

impl From<pipelines::Error> for Error {
    fn from(error: pipelines::Error) -> Self {
        match error.into_kind() {
            pipelines::ErrorKind::Lifecycle(error) => error.into(),
            pipelines::ErrorKind::Model(error) => error.into(),
            pipelines::ErrorKind::NotFinite { module, batch } => ErrorKind::NotFinite { module, batch }.into(),
            pipelines::ErrorKind::Spill { path, source } => ErrorKind::Activations { path, source }.into(),
            other => ErrorKind::Lifecycle(lifecycle::Error::failed(other)).into(),
        }
    }
}

impl From<calibration::Error> for Error {
    fn from(error: calibration::Error) -> Self {
        ErrorKind::Data(error).into()
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

fn checkpoint_code(error: &checkpoint::Error) -> ExitCode {
    match error.class() {
        checkpoint::Class::Unexpected => ExitCode::Unexpected,
        checkpoint::Class::BadInput => ExitCode::BadInput,
        checkpoint::Class::InputAbsent => ExitCode::InputAbsent,
        checkpoint::Class::Unavailable => ExitCode::Unavailable,
        checkpoint::Class::CannotCreate => ExitCode::CannotCreate,
        checkpoint::Class::Io => ExitCode::Io,
        checkpoint::Class::Refused => ExitCode::Refused,
    }
}

fn model_code(error: &models::Error) -> ExitCode {
    let models::ErrorKind::Graph(graph) = error.kind() else { return ExitCode::BadInput };
    match graph.kind() {
        graph::ErrorKind::Tensor(it) if matches!(it.kind(), tensor::ErrorKind::Budget { .. }) => ExitCode::Refused,
        _ => ExitCode::BadInput,
    }
}

fn lifecycle_code(error: &lifecycle::Error) -> ExitCode {
    match error.kind() {
        lifecycle::ErrorKind::Io { .. } => ExitCode::Io,
        _ => ExitCode::BadInput,
    }
}

fn data_code(error: &calibration::Error) -> ExitCode {
    match error.kind() {
        calibration::ErrorKind::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            ExitCode::InputAbsent
        }
        calibration::ErrorKind::Io { .. } => ExitCode::Io,
        _ => ExitCode::BadInput,
    }
}

/// Gives a format error the context in which it was met.
pub(crate) trait InContext<T> {
    fn context(self, context: impl fmt::Display) -> Result<T>;
}

impl<T> InContext<T> for compressed_tensors::Result<T> {
    fn context(self, context: impl fmt::Display) -> Result<T> {
        self.map_err(|source| ErrorKind::Format { context: context.to_string(), source }.into())
    }
}

fn nearest_text(nearest: &[String]) -> String {
    if nearest.is_empty() { String::new() } else { format!(", nearest are {}", nearest.join(", ")) }
}

fn numbers(sizes: &[usize]) -> String {
    if sizes.is_empty() {
        "none".to_owned()
    } else {
        sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

fn columns_text(modules: &[Columns]) -> String {
    let mut by_columns: IndexMap<usize, Vec<&str>> = IndexMap::new();
    for it in modules {
        by_columns.entry(it.columns).or_default().push(&it.module);
    }
    let texts =
        by_columns.into_iter().map(|(columns, names)| format!("{} ({columns} columns)", fold_names(names).join(", ")));
    texts.collect::<Vec<_>>().join("; ")
}
