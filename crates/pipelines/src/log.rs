//! What a run tells the loggers of its state: time and tokens of each wave, numbers of each module.

use indexmap::IndexMap;
use lifecycle::{
    CompressionLifecycle,
    metrics::{Entry, Level, LogTypes, LoggerManager, Metrics, Number},
};
use serde_json::Value;

use crate::{ModifierData, Times, Wave, error::Result};

/// Logs the numbers that modifiers say of modules: objects with a name under `module` or `smooth`.
///
/// # Errors
/// A sink that cannot be written.
pub(crate) fn log_modules(lifecycle: &mut CompressionLifecycle, wave: &Wave, data: &[ModifierData]) -> Result<()> {
    let Some(loggers) = &mut lifecycle.state.loggers else { return Ok(()) };
    for item in data.iter().filter_map(|it| it.data.as_array()).flatten() {
        let name = ["module", "smooth"].iter().find_map(|it| item[*it].as_str());
        if let (Some(name), Some(fields)) = (name, item.as_object()) {
            let numbers = fields.iter().filter_map(|(key, value)| Some((key.clone(), number(value)?)));
            log(loggers, name, wave, numbers.collect())?;
        }
    }
    Ok(())
}

/// Logs how long a wave took, and how many of its tokens ran a second.
///
/// # Errors
/// A sink that cannot be written.
pub(crate) fn log_wave(lifecycle: &mut CompressionLifecycle, wave: &Wave, spent: Times, n_tokens: usize) -> Result<()> {
    let Some(loggers) = &mut lifecycle.state.loggers else { return Ok(()) };
    let named = spent.by_name().map(|(name, it)| (format!("{name}_seconds"), Number::Float(it)));
    let mut values: IndexMap<String, Number> = named.into_iter().collect();
    let seconds: f64 = spent.by_name().iter().map(|it| it.1).sum();
    if n_tokens > 0 {
        values.insert("tokens".to_owned(), Number::Int(n_tokens as i64));
        values.insert("tokens_per_second".to_owned(), Number::Float(n_tokens as f64 / seconds.max(1e-9)));
    }
    log(loggers, "wave", wave, values)?;
    // A run may be stopped at any time: what was said of a wave is not lost.
    Ok(loggers.save()?)
}

fn log(loggers: &mut LoggerManager, tag: &str, wave: &Wave, values: IndexMap<String, Number>) -> Result<()> {
    let entry = Entry::new(tag).step(wave.index as i64).level(Level::METRIC);
    Ok(loggers.metric().log_scalars(&entry, &Metrics(values), &LogTypes::All)?)
}

fn number(value: &Value) -> Option<Number> {
    value.as_i64().map(Number::Int).or_else(|| value.as_f64().map(Number::Float))
}
