//! What can go wrong in the framework: a kind with named fields and the place a person should look at.

use std::fmt;

use crate::EventType;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A fault: its [`kind`](Error::kind) and, where known, its [`place`](Error::place).
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    kind: Box<ErrorKind>,
    place: Option<Box<Place>>,
}

/// Where a fault lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file as a whole.
    File(String),
    /// A line of a recipe.
    Recipe {
        /// The file, or `None` where the recipe was given as text.
        file: Option<String>,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
    },
    /// A modifier of the running recipe.
    Modifier {
        /// Position in the recipe, from 0.
        index: usize,
        /// Its type.
        type_name: String,
    },
    /// A module of the model, by its path.
    Module(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => f.write_str(file),
            Self::Recipe { file: Some(file), line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Recipe { file: None, line, column } => write!(f, "recipe:{line}:{column}"),
            Self::Modifier { index, type_name } => write!(f, "modifier {index} ({type_name})"),
            Self::Module(name) => write!(f, "module {name}"),
        }
    }
}

/// Which exception of the reference a kind stands for, so that bindings can map it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants are the reference's exception names")]
pub enum ReferenceKind {
    ValueError,
    RuntimeError,
    TypeError,
    KeyError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    ZeroDivisionError,
    NameError,
    SyntaxError,
    OSError,
}

impl ReferenceKind {
    /// The exception's name, `"ValueError"`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ValueError => "ValueError",
            Self::RuntimeError => "RuntimeError",
            Self::TypeError => "TypeError",
            Self::KeyError => "KeyError",
            Self::AttributeError => "AttributeError",
            Self::AssertionError => "AssertionError",
            Self::NotImplementedError => "NotImplementedError",
            Self::ZeroDivisionError => "ZeroDivisionError",
            Self::NameError => "NameError",
            Self::SyntaxError => "SyntaxError",
            Self::OSError => "OSError",
        }
    }
}

/// The ways to be wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An epoch property of an event without `steps_per_epoch`.
    #[error("`{property}` needs `steps_per_epoch`, the event has none")]
    NotEpochBased {
        /// The property that was read.
        property: &'static str,
    },
    /// An epoch property of an event with zero steps an epoch.
    #[error("`steps_per_epoch` is 0, expected at least 1")]
    ZeroStepsPerEpoch,
    /// An epoch that is further ahead of its whole part than one.
    #[error("step {global_step} with {steps_per_epoch} steps per epoch has no exact epoch")]
    TooManySteps {
        /// The step.
        global_step: i64,
        /// Steps in an epoch.
        steps_per_epoch: i64,
    },
    /// A name that is no event type.
    #[error("`{found}` is no event type, known are {}", known.join(", "))]
    UnknownEventType {
        /// The name as given.
        found: String,
        /// All names.
        known: Vec<&'static str>,
    },
    /// A lifecycle call before `initialize`.
    #[error("cannot {operation} before initializing")]
    NotInitialized {
        /// What was tried.
        operation: &'static str,
    },
    /// A lifecycle call after `finalize`.
    #[error("cannot {operation} after finalizing")]
    AlreadyFinalized {
        /// What was tried.
        operation: &'static str,
    },
    /// An event that has a method of its own.
    #[error("cannot invoke the {event_type} event, use the method of that name")]
    NotAnEvent {
        /// The event type.
        event_type: EventType,
    },
    /// An event that the order of a batch forbids.
    #[error(
        "lifecycle events must follow the order {}; found {last} before {event_type}",
        order.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    EventOrder {
        /// The order.
        order: Vec<EventType>,
        /// The event before.
        last: EventType,
        /// The event that was refused.
        event_type: EventType,
    },
    /// An event whose payload is absent.
    #[error("the {event_type} event needs `{argument}`")]
    MissingArgument {
        /// The event type.
        event_type: EventType,
        /// Name of the payload.
        argument: &'static str,
    },
    /// A call that an event state machine of the first releases forbids.
    #[error("{event_type} cannot come {}", match last { Some(last) => format!("after {last}"), None => "first".to_owned() })]
    EventSequence {
        /// The event type.
        event_type: EventType,
        /// The event before.
        last: Option<EventType>,
    },
    /// A modifier that is driven out of order.
    #[error("cannot {operation} a modifier that {state}")]
    ModifierPhase {
        /// What was tried.
        operation: &'static str,
        /// What forbids it.
        state: &'static str,
    },
    /// The state lacks something that a modifier needs.
    #[error("the state has no {what}")]
    MissingState {
        /// What is absent.
        what: &'static str,
    },
    /// A module or parameter that the model lacks.
    #[error("the model has no {what} `{name}`")]
    UnknownModule {
        /// `module` or `parameter`.
        what: &'static str,
        /// The name as given.
        name: String,
    },
    /// A fault that an implementor of this crate's traits reports.
    #[error("{message}")]
    Failed {
        /// Lower case: what was found, what was expected.
        message: String,
    },
    /// Text that is neither JSON nor YAML.
    #[error("not valid {format}: {reason}")]
    Syntax {
        /// `JSON` or `YAML`.
        format: &'static str,
        /// What the parser says.
        reason: String,
    },
    /// A recipe or a part of it with the wrong shape.
    #[error("{what} is {found}, expected {expected}")]
    Shape {
        /// Which part.
        what: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A key that the grammar or a modifier lacks.
    #[error("unknown {what} `{name}`{}", nearest(nearest_names, known))]
    UnknownKey {
        /// What kind of key: `modifier`, `field of GPTQModifier`, ...
        what: String,
        /// The key as given.
        name: String,
        /// The closest known names, best first.
        nearest_names: Vec<String>,
        /// All known names.
        known: Vec<String>,
    },
    /// A key that stands twice in one mapping.
    #[error("key `{name}` stands twice in one mapping; give the modifiers of a group as a list to keep both")]
    DuplicateKey {
        /// The key.
        name: String,
    },
    /// A field that a modifier must be given.
    #[error("{type_name} needs the field `{field}`")]
    MissingField {
        /// The modifier.
        type_name: String,
        /// The field.
        field: String,
    },
    /// A field with a value that its kind or its modifier refuses.
    #[error("field `{field}` of {type_name} is {found}, expected {expected}")]
    InvalidField {
        /// The modifier.
        type_name: String,
        /// The field.
        field: String,
        /// What it holds.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// A recipe without a single modifier.
    #[error("no modifiers found; a recipe is `<name>_stage: {{<name>_modifiers: {{SomeModifier: {{...}}}}}}`{hint}")]
    NoModifiers {
        /// What was found instead, or empty.
        hint: String,
    },
    /// A modifier that needs another one after it.
    #[error("{type_name} must be followed by {needs}")]
    NeedsFollower {
        /// The modifier.
        type_name: String,
        /// What must follow.
        needs: &'static str,
    },
    /// A Markdown recipe without front matter.
    #[error("no front matter between `---` or `+++` lines")]
    NoFrontMatter,
    /// A name that is registered already.
    #[error("{what} `{name}` is registered already")]
    AlreadyRegistered {
        /// What kind of thing.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// An `eval(...)` that is no expression, or that cannot be computed.
    #[error("cannot evaluate `{expression}`: {reason}")]
    Expression {
        /// The text between the parentheses.
        expression: String,
        /// Why.
        reason: String,
        /// The exception that the reference raises there.
        reference: ReferenceKind,
    },
    /// A value of the wrong type, where the reference raises a type error.
    #[error("`{argument}` is {found}, expected {expected}")]
    WrongType {
        /// Name of the argument.
        argument: &'static str,
        /// What was given.
        found: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// A value outside its range.
    #[error("`{argument}` is {found}, expected {expected}")]
    OutOfRange {
        /// Name of the argument.
        argument: &'static str,
        /// What was given.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// Values that do not fill groups.
    #[error("{found} values do not divide into groups of {group}")]
    Indivisible {
        /// Number of values.
        found: usize,
        /// Length of a group.
        group: usize,
    },
    /// A thing that the reference names and never made.
    #[error("{what} is not implemented")]
    NotImplemented {
        /// The thing.
        what: String,
    },
    /// A file that cannot be read or written.
    #[error("cannot {operation}: {reason}")]
    Io {
        /// `read` or `write`, and what.
        operation: &'static str,
        /// What the system says.
        reason: String,
    },
}

fn nearest(nearest: &[String], known: &[String]) -> String {
    let quoted = |names: &[String]| names.iter().map(|it| format!("`{it}`")).collect::<Vec<_>>().join(", ");
    match (nearest.is_empty(), known.is_empty()) {
        (false, _) => format!(", did you mean {}?", quoted(nearest)),
        (true, false) => format!(", known are {}", quoted(known)),
        (true, true) => String::new(),
    }
}

impl ErrorKind {
    /// The exception that the reference raises for this misuse.
    pub fn reference_kind(&self) -> ReferenceKind {
        use ReferenceKind as R;
        match self {
            Self::ZeroStepsPerEpoch => R::ZeroDivisionError,
            Self::ModifierPhase { .. } | Self::NoFrontMatter | Self::Indivisible { .. } => R::RuntimeError,
            Self::UnknownModule { .. } | Self::MissingState { .. } => R::AttributeError,
            Self::Expression { reference, .. } => *reference,
            Self::WrongType { .. } | Self::MissingArgument { argument: "modules", .. } => R::TypeError,
            Self::NotImplemented { .. } => R::NotImplementedError,
            Self::Io { .. } => R::OSError,
            _ => R::ValueError,
        }
    }
}

impl Error {
    /// The fault.
    pub fn kind(&self) -> &ErrorKind {
        &self.kind
    }

    /// Where the fault is.
    pub fn place(&self) -> Option<&Place> {
        self.place.as_deref()
    }

    /// The exception that the reference raises for this misuse.
    pub fn reference_kind(&self) -> ReferenceKind {
        self.kind.reference_kind()
    }

    /// The same fault at `place`, unless a closer place is known already.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.place.get_or_insert_with(|| Box::new(place));
        self
    }

    /// A fault that an implementor of this crate's traits reports in its own words.
    pub fn failed(message: impl fmt::Display) -> Self {
        ErrorKind::Failed { message: message.to_string() }.into()
    }
}

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self { kind: Box::new(kind), place: None }
    }
}

impl From<compressed_tensors::Error> for Error {
    fn from(error: compressed_tensors::Error) -> Self {
        Self::failed(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some(place) => write!(f, "{place}: {}", self.kind),
            None => self.kind.fmt(f),
        }
    }
}

impl std::error::Error for Error {}
