//! Where the numbers of a run go while it runs.

use lifecycle::metrics::{
    CsvLogger, Entry, JsonLinesLogger, Level, LogTypes, Logger, LoggerManager, Metrics, PythonLogger, TensorBoardLogger,
};
use modifiers::quantization::ModuleRecord;
use pipelines::Wave;

use super::OneshotOptions;
use crate::error::{ErrorKind, Result};

/// The loggers that the options ask for: files in `log_dir`, lines of the log where it is detailed.
///
/// # Errors
/// `Option` for a folder inside of the output, and files that cannot be opened.
pub(super) fn loggers(options: &OneshotOptions) -> Result<Option<LoggerManager>> {
    let mut loggers: Vec<Box<dyn Logger>> = Vec::new();
    if let Some(folder) = &options.log_dir {
        loggers.push(Box::new(JsonLinesLogger::open(&folder.join("metrics.jsonl"))?));
        loggers.push(Box::new(CsvLogger::open(&folder.join("metrics.csv"))?));
        loggers.push(Box::new(TensorBoardLogger::new(Some(folder), None)?));
    }
    if tracing::enabled!(tracing::Level::DEBUG) {
        loggers.push(Box::new(PythonLogger::new(|_, line| {
            tracing::debug!("{line}");
            Ok(())
        })));
    }
    Ok((!loggers.is_empty()).then(|| LoggerManager::with_default_frequency(loggers)).transpose()?)
}

/// Refuses a folder for logs that the output would have to hold.
///
/// # Errors
/// `Option`.
pub(super) fn check(options: &OneshotOptions) -> Result<()> {
    let Some(folder) = &options.log_dir else { return Ok(()) };
    let absolute = |it| std::path::absolute(it).map_err(|source| ErrorKind::File { path: folder.clone(), source });
    if absolute(folder)?.starts_with(absolute(&options.output)?) {
        let expected = "a folder outside of the output".to_owned();
        return Err(ErrorKind::Option { option: "--log-dir", found: folder.display().to_string(), expected }.into());
    }
    Ok(())
}

/// Logs how far the weights of a wave's modules are from what was to be rounded, relative to it.
///
/// # Errors
/// A sink that cannot be written.
pub(super) fn log_errors<'m>(
    loggers: &mut LoggerManager,
    wave: &Wave,
    records: impl Iterator<Item = &'m ModuleRecord>,
) -> Result<()> {
    for (record, weight) in records.filter_map(|it| Some((it, it.weight?))) {
        let entry = Entry::new(&record.module).step(wave.index as i64).level(Level::METRIC);
        let values = Metrics::from([("relative_error", weight.relative_error)]);
        loggers.metric().log_scalars(&entry, &values, &LogTypes::All)?;
    }
    Ok(())
}
