//! The [`Logger`] contract and the loggers that write text or call a closure.

use std::{
    fmt,
    io::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use indexmap::IndexMap;

use super::tensorboard::TensorBoardLogger;
use crate::{
    Result,
    error::{Error, ErrorKind},
    number_text::float_text,
};

/// A whole number or a float; the text of a metric keeps the difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// A whole number.
    Int(i64),
    /// A float.
    Float(f64),
}

impl Number {
    /// The value as a float.
    pub fn as_f64(self) -> f64 {
        match self {
            Self::Int(value) => value as f64,
            Self::Float(value) => value,
        }
    }
}

impl From<i64> for Number {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(value) => value.fmt(f),
            Self::Float(value) => f.write_str(&float_text(*value)),
        }
    }
}

/// Named values, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(pub IndexMap<String, Number>);

impl<V: Into<Number>, const N: usize> From<[(&str, V); N]> for Metrics {
    fn from(values: [(&str, V); N]) -> Self {
        Self(values.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect())
    }
}

impl fmt::Display for Metrics {
    /// Writes `{'a': 1, 'b': 2.5}`, or `None` where there are none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("None");
        }
        let pairs: Vec<_> = self.0.iter().map(|(name, value)| format!("'{name}': {value}")).collect();
        write!(f, "{{{}}}", pairs.join(", "))
    }
}

/// How important an entry is, as a number of the usual scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(pub u8);

impl Level {
    /// Details.
    pub const DEBUG: Self = Self(10);
    /// Ordinary messages.
    pub const INFO: Self = Self(20);
    /// Something to look at.
    pub const WARNING: Self = Self(30);
    /// Metrics of compressed modules.
    pub const METRIC: Self = Self(38);
    /// A fault.
    pub const ERROR: Self = Self(40);
    /// A fault that ends the run.
    pub const CRITICAL: Self = Self(50);
}

/// Where a value belongs: its tag, step, time and level.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Entry {
    /// Name of the value or of the group of values.
    pub tag: Option<String>,
    /// Step or epoch.
    pub step: Option<Number>,
    /// Seconds since 1970; `None` means now where a logger needs a time.
    pub wall_time: Option<f64>,
    /// How important it is.
    pub level: Option<Level>,
}

impl Entry {
    /// An entry under a tag.
    pub fn new(tag: impl Into<String>) -> Self {
        Self { tag: Some(tag.into()), ..Self::default() }
    }

    /// The same at a step or epoch.
    #[must_use]
    pub fn step(self, step: impl Into<Number>) -> Self {
        Self { step: Some(step.into()), ..self }
    }

    /// The same at a time, in seconds since 1970.
    #[must_use]
    pub fn wall_time(self, seconds: f64) -> Self {
        Self { wall_time: Some(seconds), ..self }
    }

    /// The same with a level.
    #[must_use]
    pub fn level(self, level: Level) -> Self {
        Self { level: Some(level), ..self }
    }

    /// The entry's time, or now where it has none.
    pub(super) fn time(&self) -> f64 {
        self.wall_time.filter(|it| *it != 0.0).unwrap_or_else(now)
    }
}

pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |it| it.as_secs_f64())
}

/// Whether a manager calls a logger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// It does.
    On,
    /// It does not.
    Off,
}

/// A place where metrics go. Every method says whether it did something; the defaults do nothing.
pub trait Logger: Send {
    /// The logger's name.
    fn name(&self) -> &str;

    /// Whether a manager calls the logger.
    fn enabled(&self) -> bool;

    /// Switches the logger on or off for its manager.
    fn switch(&mut self, to: Switch);

    /// Logs the settings of a run.
    ///
    /// # Errors
    /// A sink that cannot be written.
    fn log_hyperparams(&mut self, _params: &Metrics, _level: Option<Level>) -> Result<bool> {
        Ok(false)
    }

    /// Logs one value.
    ///
    /// # Errors
    /// A sink that cannot be written.
    fn log_scalar(&mut self, _entry: &Entry, _value: Number) -> Result<bool> {
        Ok(false)
    }

    /// Logs several values of one time.
    ///
    /// # Errors
    /// A sink that cannot be written.
    fn log_scalars(&mut self, _entry: &Entry, _values: &Metrics) -> Result<bool> {
        Ok(false)
    }

    /// Logs a text.
    ///
    /// # Errors
    /// A sink that cannot be written.
    fn log_string(&mut self, _entry: &Entry, _text: Option<&str>) -> Result<bool> {
        Ok(false)
    }

    /// Makes what was logged durable.
    ///
    /// # Errors
    /// A sink that cannot be written.
    fn save(&mut self) -> Result<bool> {
        Ok(false)
    }
}

/// What a [`LambdaLogger`]'s closure is given.
#[derive(Clone, Debug, PartialEq)]
pub struct LambdaCall {
    /// Where the values belong; `wall_time` is filled in, except for settings.
    pub entry: Entry,
    /// The value, for a single one.
    pub value: Option<Number>,
    /// The values, for several or for settings.
    pub values: Option<Metrics>,
}

/// Hands metrics to a closure, which says whether it took them.
pub struct LambdaLogger {
    name: String,
    enabled: bool,
    call: Box<dyn FnMut(LambdaCall) -> bool + Send>,
}

impl LambdaLogger {
    /// A logger with the usual name, `lambda`.
    pub fn new(call: impl FnMut(LambdaCall) -> bool + Send + 'static) -> Self {
        Self::named("lambda", call)
    }

    /// A logger with a name.
    pub fn named(name: impl Into<String>, call: impl FnMut(LambdaCall) -> bool + Send + 'static) -> Self {
        Self { name: name.into(), enabled: true, call: Box::new(call) }
    }
}

impl fmt::Display for LambdaLogger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let enabled = if self.enabled { "True" } else { "False" };
        write!(f, "LambdaLogger(name={}, enabled={enabled})", self.name)
    }
}

impl Logger for LambdaLogger {
    fn name(&self) -> &str {
        &self.name
    }

    fn enabled(&self) -> bool {
        self.enabled
    }

    fn switch(&mut self, to: Switch) {
        self.enabled = to == Switch::On;
    }

    fn log_hyperparams(&mut self, params: &Metrics, level: Option<Level>) -> Result<bool> {
        let entry = Entry { level, ..Entry::default() };
        let call = LambdaCall { entry, value: None, values: Some(params.clone()) };
        Ok(self.enabled && (self.call)(call))
    }

    fn log_scalar(&mut self, entry: &Entry, value: Number) -> Result<bool> {
        let entry = Entry { wall_time: Some(entry.time()), ..entry.clone() };
        Ok(self.enabled && (self.call)(LambdaCall { entry, value: Some(value), values: None }))
    }

    fn log_scalars(&mut self, entry: &Entry, values: &Metrics) -> Result<bool> {
        let entry = Entry { wall_time: Some(entry.time()), ..entry.clone() };
        Ok(self.enabled && (self.call)(LambdaCall { entry, value: None, values: Some(values.clone()) }))
    }
}

/// Where a [`PythonLogger`] puts its lines.
type LineSink = Box<dyn FnMut(Level, &str) -> std::io::Result<()> + Send>;

/// Writes metrics as lines of text. The name is the reference's.
pub struct PythonLogger {
    name: String,
    enabled: bool,
    sink: LineSink,
}

impl PythonLogger {
    /// Hands lines to a closure.
    pub fn new(sink: impl FnMut(Level, &str) -> std::io::Result<()> + Send + 'static) -> Self {
        Self { name: "python".to_owned(), enabled: true, sink: Box::new(sink) }
    }

    /// Writes lines of at least `level` to the console's error stream.
    pub fn console(level: Level) -> Self {
        Self::new(move |at, line| if at >= level { writeln!(std::io::stderr(), "{line}") } else { Ok(()) })
    }

    fn write(&mut self, entry: &Entry, timed: bool, value: &dyn fmt::Display) -> Result<bool> {
        let level = entry.level.unwrap_or(Level::DEBUG);
        let tag = entry.tag.as_deref().unwrap_or("None");
        let step = entry.step.map(|it| it.to_string());
        let line = if level > Level::DEBUG {
            let step = step.map_or_else(String::new, |it| format!(" step {it}"));
            format!("{} {tag}{step}: {value}", self.name)
        } else {
            let step = step.unwrap_or_else(|| "None".to_owned());
            let time = if timed { float_text(entry.time()) } else { "None".to_owned() };
            format!("{} {tag} [{step} - {time}]: {value}", self.name)
        };
        (self.sink)(level, &line).map_err(|error| io_error("write a log line", &error))?;
        Ok(true)
    }
}

pub(super) fn io_error(operation: &'static str, error: &std::io::Error) -> Error {
    ErrorKind::Io { operation, reason: error.to_string() }.into()
}

impl Logger for PythonLogger {
    fn name(&self) -> &str {
        &self.name
    }

    fn enabled(&self) -> bool {
        self.enabled
    }

    fn switch(&mut self, to: Switch) {
        self.enabled = to == Switch::On;
    }

    fn log_hyperparams(&mut self, params: &Metrics, level: Option<Level>) -> Result<bool> {
        self.write(&Entry { level, ..Entry::default() }, false, params)
    }

    fn log_scalar(&mut self, entry: &Entry, value: Number) -> Result<bool> {
        self.write(entry, true, &value)
    }

    fn log_scalars(&mut self, entry: &Entry, values: &Metrics) -> Result<bool> {
        self.write(entry, true, values)
    }

    fn log_string(&mut self, entry: &Entry, text: Option<&str>) -> Result<bool> {
        self.write(entry, true, &text.unwrap_or("None"))
    }
}

/// What a [`SparsificationGroupLogger`] is made of.
#[derive(Default)]
pub struct GroupOptions {
    /// A closure to call.
    pub lambda_func: Option<Box<dyn FnMut(LambdaCall) -> bool + Send>>,
    /// Lines of at least this level on the console.
    pub python: Option<Level>,
    /// Folder of TensorBoard event files.
    pub tensorboard: Option<std::path::PathBuf>,
    /// Name of the group, `sparsification` by default; its members bear it too.
    pub name: Option<String>,
}

/// Several loggers under one name that are switched together.
pub struct SparsificationGroupLogger {
    name: String,
    enabled: bool,
    loggers: Vec<Box<dyn Logger>>,
}

impl SparsificationGroupLogger {
    /// Makes the members that the options ask for.
    ///
    /// # Errors
    /// A folder that cannot be created.
    pub fn new(options: GroupOptions) -> Result<Self> {
        let name = options.name.unwrap_or_else(|| "sparsification".to_owned());
        let mut loggers: Vec<Box<dyn Logger>> = Vec::new();
        if let Some(call) = options.lambda_func {
            loggers.push(Box::new(LambdaLogger { name: name.clone(), enabled: true, call }));
        }
        if let Some(level) = options.python {
            loggers.push(Box::new(PythonLogger { name: name.clone(), ..PythonLogger::console(level) }));
        }
        if let Some(folder) = options.tensorboard {
            loggers.push(Box::new(TensorBoardLogger::new(Some(&folder), None)?.with_name(&name)));
        }
        Ok(Self { name, enabled: true, loggers })
    }

    /// The members.
    pub fn loggers(&self) -> &[Box<dyn Logger>] {
        &self.loggers
    }

    fn each(&mut self, mut call: impl FnMut(&mut dyn Logger) -> Result<bool>) -> Result<bool> {
        let mut done = false;
        for logger in &mut self.loggers {
            done |= call(&mut **logger)?;
        }
        Ok(done)
    }
}

impl Logger for SparsificationGroupLogger {
    fn name(&self) -> &str {
        &self.name
    }

    fn enabled(&self) -> bool {
        self.enabled
    }

    fn switch(&mut self, to: Switch) {
        self.enabled = to == Switch::On;
        for logger in &mut self.loggers {
            logger.switch(to);
        }
    }

    fn log_hyperparams(&mut self, params: &Metrics, level: Option<Level>) -> Result<bool> {
        self.each(|it| it.log_hyperparams(params, level))
    }

    fn log_scalar(&mut self, entry: &Entry, value: Number) -> Result<bool> {
        self.each(|it| it.log_scalar(entry, value))
    }

    fn log_scalars(&mut self, entry: &Entry, values: &Metrics) -> Result<bool> {
        self.each(|it| it.log_scalars(entry, values))
    }

    fn log_string(&mut self, entry: &Entry, text: Option<&str>) -> Result<bool> {
        self.each(|it| it.log_string(entry, text))
    }

    fn save(&mut self) -> Result<bool> {
        self.each(|it| it.save())
    }
}
