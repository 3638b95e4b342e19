//! Loggers that write one record a value: JSON lines and CSV.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Write},
    path::Path,
};

use serde_json::{Value, json};

use super::logger::{Entry, Level, Logger, Metrics, Number, Switch, io_error};
use crate::{
    Result,
    error::{Error, Place},
};

fn open(path: &Path) -> Result<BufWriter<File>> {
    let placed =
        |error: std::io::Error| io_error("write the log file", &error).at(Place::File(path.display().to_string()));
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(placed)?;
    }
    let file = OpenOptions::new().create(true).append(true).open(path).map_err(placed)?;
    Ok(BufWriter::new(file))
}

fn number(value: Number) -> Value {
    match value {
        Number::Int(value) => value.into(),
        // JSON has no infinity and no NaN: they become null, and the text says which.
        Number::Float(value) if value.is_finite() => value.into(),
        Number::Float(_) => Value::Null,
    }
}

fn write_error(error: impl std::fmt::Display) -> Error {
    let reason = error.to_string();
    crate::error::ErrorKind::Io { operation: "write the log file", reason }.into()
}

/// Appends one JSON object a value to a file: `{"wall_time", "step", "tag", "value"}`; a value that is no
/// JSON number also has `"text"`.
pub struct JsonLinesLogger {
    enabled: bool,
    file: BufWriter<File>,
}

impl JsonLinesLogger {
    /// Opens or creates the file and its folder.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { enabled: true, file: open(path)? })
    }

    fn write(&mut self, entry: &Entry, tag: &str, value: Value, text: Option<String>) -> Result<bool> {
        let mut record = json!({"wall_time": entry.time(), "step": entry.step.map(number), "tag": tag, "value": value});
        if let Some(text) = text {
            record["text"] = text.into();
        }
        writeln!(self.file, "{record}").map_err(write_error)?;
        Ok(true)
    }

    fn write_number(&mut self, entry: &Entry, tag: &str, value: Number) -> Result<bool> {
        let json = number(value);
        let text = json.is_null().then(|| value.to_string());
        self.write(entry, tag, json, text)
    }
}

impl Logger for JsonLinesLogger {
    fn name(&self) -> &str {
        "json"
    }

    fn enabled(&self) -> bool {
        self.enabled
    }

    fn switch(&mut self, to: Switch) {
        self.enabled = to == Switch::On;
    }

    fn log_hyperparams(&mut self, params: &Metrics, level: Option<Level>) -> Result<bool> {
        self.log_scalars(&Entry { level, ..Entry::default() }, params)
    }

    fn log_scalar(&mut self, entry: &Entry, value: Number) -> Result<bool> {
        self.write_number(entry, entry.tag.as_deref().unwrap_or_default(), value)
    }

    fn log_scalars(&mut self, entry: &Entry, values: &Metrics) -> Result<bool> {
        for (name, value) in &values.0 {
            self.write_number(entry, &joined(entry, name), *value)?;
        }
        Ok(true)
    }

    fn log_string(&mut self, entry: &Entry, text: Option<&str>) -> Result<bool> {
        self.write(entry, entry.tag.as_deref().unwrap_or_default(), text.into(), None)
    }

    fn save(&mut self) -> Result<bool> {
        self.file.flush().map_err(write_error)?;
        Ok(true)
    }
}

/// `tag/name`, or the name alone where the entry has no tag.
pub(super) fn joined(entry: &Entry, name: &str) -> String {
    match entry.tag.as_deref() {
        Some(tag) if !tag.is_empty() => format!("{tag}/{name}"),
        _ => name.to_owned(),
    }
}

/// Writes one row a value: `wall_time,step,tag,value`.
pub struct CsvLogger {
    enabled: bool,
    file: csv::Writer<BufWriter<File>>,
}

impl CsvLogger {
    /// Opens or creates the file and its folder. An empty file gets a header.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let is_new = std::fs::metadata(path).map_or(true, |it| it.len() == 0);
        let mut file = csv::WriterBuilder::new().has_headers(false).from_writer(open(path)?);
        if is_new {
            file.write_record(["wall_time", "step", "tag", "value"]).map_err(write_error)?;
        }
        Ok(Self { enabled: true, file })
    }

    fn write(&mut self, entry: &Entry, tag: &str, value: &str) -> Result<bool> {
        let time = Number::Float(entry.time()).to_string();
        let step = entry.step.map(|it| it.to_string()).unwrap_or_default();
        self.file.write_record([time.as_str(), &step, tag, value]).map_err(write_error)?;
        Ok(true)
    }
}

impl Logger for CsvLogger {
    fn name(&self) -> &str {
        "csv"
    }

    fn enabled(&self) -> bool {
        self.enabled
    }

    fn switch(&mut self, to: Switch) {
        self.enabled = to == Switch::On;
    }

    fn log_hyperparams(&mut self, params: &Metrics, level: Option<Level>) -> Result<bool> {
        self.log_scalars(&Entry { level, ..Entry::default() }, params)
    }

    fn log_scalar(&mut self, entry: &Entry, value: Number) -> Result<bool> {
        self.write(entry, entry.tag.as_deref().unwrap_or_default(), &value.to_string())
    }

    fn log_scalars(&mut self, entry: &Entry, values: &Metrics) -> Result<bool> {
        for (name, value) in &values.0 {
            self.write(entry, &joined(entry, name), &value.to_string())?;
        }
        Ok(true)
    }

    fn log_string(&mut self, entry: &Entry, text: Option<&str>) -> Result<bool> {
        self.write(entry, entry.tag.as_deref().unwrap_or_default(), text.unwrap_or_default())
    }

    fn save(&mut self) -> Result<bool> {
        self.file.flush().map_err(write_error)?;
        Ok(true)
    }
}
