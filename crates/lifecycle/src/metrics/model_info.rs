//! What a model has to say about itself, logged at the manager's frequency.

use super::{
    fanout::{LogTypes, LoggerManager},
    logger::{Entry, Metrics, Number},
};
use crate::Result;

/// One thing a model says about itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Loggable {
    /// A value.
    Scalar(Number),
    /// Several values.
    Scalars(Metrics),
    /// A text, or nothing.
    Text(Option<String>),
}

/// Whether a model that has `loggable` items should be logged now: there is a manager, it counts epochs,
/// and it is time.
///
/// # Errors
/// A last epoch that the manager refuses.
pub fn should_log_model_info(
    loggers: Option<&mut LoggerManager>,
    epoch: f64,
    last_log_epoch: Option<f64>,
) -> Result<bool> {
    let Some(loggers) = loggers else { return Ok(false) };
    let ready = loggers.log_ready(Some(Number::Float(epoch)), last_log_epoch.map(Number::Float))?;
    Ok(ready && loggers.frequency_manager().is_epoch_frequency_manager())
}

/// Logs the epoch under the name of the frequency's type, then every item, and notes the time.
///
/// # Errors
/// A sink that cannot be written.
pub fn log_model_info(
    items: impl IntoIterator<Item = (String, Loggable)>,
    loggers: &mut LoggerManager,
    epoch: f64,
) -> Result<()> {
    let step = Some(Number::Float(epoch));
    let kind = loggers.frequency_manager().frequency_type().to_string();
    loggers.log_scalar(&kind, epoch, step)?;
    for (tag, item) in items {
        match item {
            Loggable::Scalar(value) => loggers.log_scalar(&tag, value, step)?,
            Loggable::Scalars(values) => loggers.log_scalars(&tag, &values, step)?,
            Loggable::Text(text) => {
                let entry = Entry { step, ..Entry::new(tag) };
                loggers.system().log_string(&entry, text.as_deref(), &LogTypes::All)?;
            }
        }
    }
    loggers.log_written(step)
}
