//! Where the numbers of a run go while it runs, and the one that only the written form tells.

use std::collections::HashSet;

use compressed_tensors::numbers::read_f32;
use lifecycle::{
    CompressionLifecycle,
    metrics::{
        CsvLogger, Entry, JsonLinesLogger, Level, LogTypes, Logger, LoggerManager, Metrics, PythonLogger,
        TensorBoardLogger,
    },
};
use pipelines::{ModelStore, Wave};

use super::{OneshotOptions, commit::engine_store};
use crate::error::{ErrorKind, InContext, Result};

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

/// Logs how far the written weights of a wave are from those of the checkpoint, relative to these; weights that a transform
/// writes to are no approximation and are left out.
///
/// # Errors
/// A failed read, a sink that cannot be written.
pub(super) fn log_errors<'m>(
    lifecycle: &mut CompressionLifecycle,
    wave: &Wave,
    transformed: &HashSet<String>,
    written: impl Iterator<Item = (&'m str, Vec<u8>)>,
) -> Result<()> {
    for (module, bytes) in written.filter(|it| !transformed.contains(it.0)) {
        let relative_error = relative_error(engine_store(lifecycle)?, module, &bytes)?;
        if let Some(loggers) = &mut lifecycle.state.loggers {
            let entry = Entry::new(module).step(wave.index as i64).level(Level::METRIC);
            let values = Metrics::from([("relative_error", relative_error)]);
            loggers.metric().log_scalars(&entry, &values, &LogTypes::All)?;
        }
    }
    Ok(())
}

/// `|W - V| / |W|` of a module's weight `W` in the checkpoint and `V`, in bytes of its type; sums in f64.
fn relative_error(store: &ModelStore, module: &str, bytes: &[u8]) -> Result<f64> {
    let (model, engine) = (store.model(), store.engine());
    let Some(id) = model.store().find(&format!("{module}.weight")) else { return Ok(0.0) };
    let original = model.store().original(engine, id)?;
    let before = original.to_f32().map_err(models::Error::from)?;
    let mut after = vec![0.0; before.len()];
    read_f32(original.dtype(), bytes, &mut after).context(format!("module `{module}`"))?;
    let (mut noise, mut signal) = (0.0, 0.0);
    for (before, after) in before.iter().zip(&after) {
        noise += (f64::from(*before) - f64::from(*after)).powi(2);
        signal += f64::from(*before).powi(2);
    }
    Ok(if noise == 0.0 { 0.0 } else { (noise / signal).sqrt() })
}
