//! [`FrequencyManager`]: whether it is time to log again.

use std::{fmt, str::FromStr};

use serde_json::Value;

use super::logger::Number;
use crate::{
    Result,
    error::{Error, ErrorKind},
};

/// A step to log at: a count of steps, a fractional epoch, or none.
pub type LogStepType = Option<Number>;

/// When to log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoggingModeType {
    /// At the frequency.
    #[default]
    Exact,
    /// At the frequency, if the model has changed since the last time.
    OnChange,
}

/// What the frequency counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FrequencyType {
    /// Epochs, whole or not.
    #[default]
    Epoch,
    /// Optimizer steps.
    Step,
}

impl FromStr for LoggingModeType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.trim().to_lowercase().as_str() {
            "exact" => Ok(Self::Exact),
            "on_change" => Ok(Self::OnChange),
            _ => Err(unknown("mode", text, "`exact` or `on_change`")),
        }
    }
}

impl FromStr for FrequencyType {
    type Err = Error;

    /// Reads `epoch` or `step`. `batch` is a name of the reference's without an implementation.
    fn from_str(text: &str) -> Result<Self> {
        match text.trim().to_lowercase().as_str() {
            "epoch" => Ok(Self::Epoch),
            "step" => Ok(Self::Step),
            "batch" => Err(ErrorKind::NotImplemented { what: "a frequency in batches".to_owned() }.into()),
            _ => Err(unknown("frequency_type", text, "`epoch` or `step`")),
        }
    }
}

impl fmt::Display for LoggingModeType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::OnChange => "on_change",
        })
    }
}

impl fmt::Display for FrequencyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Epoch => "epoch",
            Self::Step => "step",
        })
    }
}

fn unknown(argument: &'static str, found: &str, expected: &str) -> Error {
    ErrorKind::OutOfRange { argument, found: format!("`{found}`"), expected: expected.to_owned() }.into()
}

/// Reads a step from JSON, as a recipe or a binding hands it over.
///
/// # Errors
/// Anything but a number or null; truth values count as no number.
pub fn step_from_json(argument: &'static str, value: &Value) -> Result<LogStepType> {
    match value {
        Value::Null => Ok(None),
        Value::Number(number) => {
            let int = number.as_i64().map(Number::Int);
            Ok(int.or(number.as_f64().map(Number::Float)))
        }
        other => {
            let expected = "a number or null";
            Err(ErrorKind::WrongType { argument, found: other.to_string(), expected }.into())
        }
    }
}

/// What [`FrequencyManager::new`] takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FrequencyOptions {
    /// How many epochs or steps lie between two logs; `None` means never.
    pub log_frequency: LogStepType,
    /// When to log.
    pub mode: LoggingModeType,
    /// What the frequency counts.
    pub frequency_type: FrequencyType,
}

impl FrequencyOptions {
    /// Reads the options in the reference's loose types: a number or null, and two words in any case.
    ///
    /// # Errors
    /// Unknown words, in the order mode, type, and a frequency that is no number.
    pub fn parse(log_frequency: &Value, mode: &str, frequency_type: &str) -> Result<Self> {
        let (mode, frequency_type) = (mode.parse()?, frequency_type.parse()?);
        Ok(Self { log_frequency: step_from_json("log_frequency", log_frequency)?, mode, frequency_type })
    }
}

/// Keeps track of when was logged and when the model changed last.
#[derive(Clone, Debug, PartialEq)]
pub struct FrequencyManager {
    options: FrequencyOptions,
    last_log_step: LogStepType,
    last_model_update_step: LogStepType,
}

impl FrequencyManager {
    /// A manager that has not logged yet.
    ///
    /// # Errors
    /// A frequency that is not above 0, or not whole where steps are counted.
    pub fn new(options: FrequencyOptions) -> Result<Self> {
        let manager = Self { options, last_log_step: None, last_model_update_step: None };
        manager.check_frequency(manager.options.log_frequency)?;
        Ok(manager)
    }

    /// The frequency to log at.
    pub fn log_frequency(&self) -> LogStepType {
        self.options.log_frequency
    }

    /// Changes the frequency; a refused one changes nothing.
    ///
    /// # Errors
    /// As [`FrequencyManager::new`].
    pub fn set_log_frequency(&mut self, log_frequency: LogStepType) -> Result<()> {
        self.check_frequency(log_frequency)?;
        self.options.log_frequency = log_frequency;
        Ok(())
    }

    /// Changes the frequency to any value, as [`LoggerManager`](super::LoggerManager) does.
    pub(super) fn force_log_frequency(&mut self, log_frequency: LogStepType) {
        self.options.log_frequency = log_frequency;
    }

    /// When to log.
    pub fn mode(&self) -> LoggingModeType {
        self.options.mode
    }

    /// What the frequency counts.
    pub fn frequency_type(&self) -> FrequencyType {
        self.options.frequency_type
    }

    /// The step of the last log.
    pub fn last_log_step(&self) -> LogStepType {
        self.last_log_step
    }

    /// The step of the last model update.
    pub fn last_model_update_step(&self) -> LogStepType {
        self.last_model_update_step
    }

    /// Whether the manager counts epochs.
    pub fn is_epoch_frequency_manager(&self) -> bool {
        self.options.frequency_type == FrequencyType::Epoch
    }

    /// Whether the manager counts optimizer steps.
    pub fn is_optim_frequency_manager(&self) -> bool {
        self.options.frequency_type == FrequencyType::Step
    }

    /// Whether it is time to log, see [`log_ready`]. The model's updates count in
    /// [`LoggingModeType::OnChange`].
    pub fn log_ready(&self, current_log_step: LogStepType) -> bool {
        match self.options.mode {
            LoggingModeType::Exact => self.cadence_reached(current_log_step, None),
            LoggingModeType::OnChange => self.log_ready_if_updated(current_log_step),
        }
    }

    /// Whether it is time to log and the model has changed, whatever the mode.
    pub fn log_ready_if_updated(&self, current_log_step: LogStepType) -> bool {
        self.cadence_reached(current_log_step, Some(self.last_model_update_step))
    }

    /// Notes that was logged at a step.
    ///
    /// # Errors
    /// A step below 0, or not whole where steps are counted.
    pub fn log_written(&mut self, step: LogStepType) -> Result<()> {
        self.check_step("step", step, 0.0)?;
        self.last_log_step = step;
        Ok(())
    }

    /// Notes that the model was updated at a step.
    ///
    /// # Errors
    /// A step below 0, or not whole where steps are counted.
    pub fn model_updated(&mut self, step: LogStepType) -> Result<()> {
        self.check_step("step", step, 0.0)?;
        self.last_model_update_step = step;
        Ok(())
    }

    fn cadence_reached(&self, current: LogStepType, updates: Option<LogStepType>) -> bool {
        let float = |it: LogStepType| it.map(Number::as_f64);
        let (current, last, frequency) = (float(current), float(self.last_log_step), float(self.log_frequency()));
        log_ready(current, last, frequency, updates.map(float))
    }

    fn check_frequency(&self, log_frequency: LogStepType) -> Result<()> {
        self.check_step("log_frequency", log_frequency, f64::MIN_POSITIVE)
    }

    fn check_step(&self, argument: &'static str, step: LogStepType, least: f64) -> Result<()> {
        let Some(number) = step else { return Ok(()) };
        if self.is_optim_frequency_manager() && matches!(number, Number::Float(_)) {
            let expected = "a whole number or null";
            return Err(ErrorKind::WrongType { argument, found: number.to_string(), expected }.into());
        }
        // Written so that a value that is no number is refused as well.
        if number.as_f64() >= least {
            return Ok(());
        }
        let expected = if least == 0.0 { "at least 0" } else { "above 0" }.to_owned();
        Err(ErrorKind::OutOfRange { argument, found: number.to_string(), expected }.into())
    }
}

impl fmt::Display for FrequencyManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FrequencyOptions { log_frequency, mode, frequency_type } = &self.options;
        let frequency = log_frequency.map_or_else(|| "None".to_owned(), |it| it.to_string());
        write!(f, "FrequencyManager(log_frequency={frequency}, mode={mode}, frequency_type={frequency_type})")
    }
}

/// Whether it is time to log: the frequency is given, and the current step is at least the last one plus
/// the frequency, or one of the two is unknown.
///
/// With `last_model_update_step` given, the model must also have been updated since the last log, the
/// frequency ago or more; unknown steps count as met. Sums are rounded to four decimals (halves to even,
/// on the binary value), so that 0.1 + 0.2 reaches 0.3.
pub fn log_ready(
    current_log_step: Option<f64>,
    last_log_step: Option<f64>,
    log_frequency: Option<f64>,
    last_model_update_step: Option<Option<f64>>,
) -> bool {
    let Some(frequency) = log_frequency else { return false };
    let (Some(current), Some(last)) = (current_log_step, last_log_step) else { return true };
    let cadence_reached = current >= four_decimals(last + frequency);
    match last_model_update_step.flatten() {
        Some(update) if cadence_reached => update >= last && current >= four_decimals(frequency + update),
        _ => cadence_reached,
    }
}

fn four_decimals(value: f64) -> f64 {
    format!("{value:.4}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_decimals_round_halves_to_even_on_the_binary_value() {
        assert_eq!(four_decimals(0.03125), 0.0312);
        assert_eq!(four_decimals(0.09375), 0.0938);
        assert_eq!(four_decimals(0.1 + 0.2), 0.3);
        assert!(four_decimals(f64::NAN).is_nan());
        assert_eq!(four_decimals(f64::INFINITY), f64::INFINITY);
    }

    #[test]
    fn a_frequency_that_is_no_number_is_refused() {
        let options = FrequencyOptions { log_frequency: Some(Number::Float(f64::NAN)), ..Default::default() };
        let error = FrequencyManager::new(options).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::OutOfRange { argument: "log_frequency", .. }));
    }
}
