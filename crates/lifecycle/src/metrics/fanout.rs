//! [`LoggerManager`]: hands metrics to several loggers, as often as a [`FrequencyManager`] says.

use std::time::Instant;

use super::{
    frequency::{FrequencyManager, FrequencyOptions, LogStepType},
    logger::{Entry, Level, Logger, Metrics, Number, PythonLogger},
};
use crate::Result;

/// The tag of values that were logged without one, spelled as in the reference.
const DEFAULT_TAG: &str = "defaul_tag";

/// Which loggers an entry goes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogTypes {
    /// All of them, `__ALL__`.
    #[default]
    All,
    /// Those with one of these names.
    Named(Vec<String>),
}

/// Several loggers and a frequency. Only enabled loggers are called.
pub struct LoggerManager {
    name: String,
    loggers: Vec<Box<dyn Logger>>,
    frequency: FrequencyManager,
}

impl LoggerManager {
    /// A manager of the given loggers.
    ///
    /// # Errors
    /// Options that [`FrequencyManager::new`] refuses.
    pub fn new(loggers: Vec<Box<dyn Logger>>, options: FrequencyOptions) -> Result<Self> {
        Ok(Self { name: "manager".to_owned(), loggers, frequency: FrequencyManager::new(options)? })
    }

    /// A manager with the reference's frequency, every tenth of an epoch.
    ///
    /// # Errors
    /// None; the type is that of [`LoggerManager::new`].
    pub fn with_default_frequency(loggers: Vec<Box<dyn Logger>>) -> Result<Self> {
        let log_frequency = Some(Number::Float(0.1));
        Self::new(loggers, FrequencyOptions { log_frequency, ..FrequencyOptions::default() })
    }

    /// A manager that writes to the console only.
    ///
    /// # Errors
    /// None; the type is that of [`LoggerManager::new`].
    pub fn console() -> Result<Self> {
        Self::with_default_frequency(vec![Box::new(PythonLogger::console(Level::INFO))])
    }

    /// The manager's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a logger.
    pub fn add_logger(&mut self, logger: Box<dyn Logger>) {
        self.loggers.push(logger);
    }

    /// The loggers.
    pub fn loggers(&self) -> &[Box<dyn Logger>] {
        &self.loggers
    }

    /// The loggers, to switch them on and off.
    pub fn loggers_mut(&mut self) -> &mut [Box<dyn Logger>] {
        &mut self.loggers
    }

    /// Number of loggers.
    pub fn len(&self) -> usize {
        self.loggers.len()
    }

    /// Whether there are no loggers.
    pub fn is_empty(&self) -> bool {
        self.loggers.is_empty()
    }

    /// How often to log.
    pub fn frequency_manager(&self) -> &FrequencyManager {
        &self.frequency
    }

    /// Whether it is time to log and somebody is there to do it. A given `last_log_step` is noted first.
    ///
    /// # Errors
    /// A last step that [`FrequencyManager::log_written`] refuses.
    pub fn log_ready(&mut self, current_log_step: LogStepType, last_log_step: LogStepType) -> Result<bool> {
        if last_log_step.is_some() {
            self.frequency.log_written(last_log_step)?;
        }
        Ok(self.loggers.iter().any(|it| it.enabled()) && self.frequency.log_ready(current_log_step))
    }

    /// See [`FrequencyManager::log_written`].
    ///
    /// # Errors
    /// As there.
    pub fn log_written(&mut self, step: LogStepType) -> Result<()> {
        self.frequency.log_written(step)
    }

    /// See [`FrequencyManager::model_updated`].
    ///
    /// # Errors
    /// As there.
    pub fn model_updated(&mut self, step: LogStepType) -> Result<()> {
        self.frequency.model_updated(step)
    }

    /// The frequency to log at.
    pub fn log_frequency(&self) -> LogStepType {
        self.frequency.log_frequency()
    }

    /// Changes the frequency to any value, also to one that [`FrequencyManager`] would refuse.
    pub fn set_log_frequency(&mut self, log_frequency: LogStepType) {
        self.frequency.force_log_frequency(log_frequency);
    }

    /// The step at which an epoch begins, halves to even; an epoch counts as a step where
    /// `steps_per_epoch` is not above 0.
    pub fn epoch_to_step(epoch: f64, steps_per_epoch: i64) -> i64 {
        let steps = if steps_per_epoch <= 0 { 1.0 } else { steps_per_epoch as f64 };
        (epoch * steps).round_ties_even() as i64
    }

    /// Logs one value with all loggers.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn log_scalar(&mut self, tag: &str, value: impl Into<Number>, step: LogStepType) -> Result<()> {
        let entry = Entry { step, ..Entry::new(tag) };
        self.metric().log_scalar(&entry, value.into(), &LogTypes::All)
    }

    /// Logs several values with all loggers.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn log_scalars(&mut self, tag: &str, values: &Metrics, step: LogStepType) -> Result<()> {
        let entry = Entry { step, ..Entry::new(tag) };
        self.metric().log_scalars(&entry, values, &LogTypes::All)
    }

    /// Runs some work and logs how many seconds it took, to four decimals.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn time<T>(&mut self, tag: Option<&str>, work: impl FnOnce(&mut Self) -> T) -> Result<T> {
        let start = Instant::now();
        let result = work(self);
        let seconds = (start.elapsed().as_secs_f64() * 1e4).round() / 1e4;
        let tag = tag.map_or_else(|| format!("{DEFAULT_TAG}_time_secs"), str::to_owned);
        self.log_scalar(&tag, seconds, None)?;
        Ok(result)
    }

    /// Makes what was logged durable.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn save(&mut self) -> Result<()> {
        self.each(&LogTypes::All, |it| it.save())
    }

    /// Metrics: settings and values.
    pub fn metric(&mut self) -> MetricLogs<'_> {
        MetricLogs { manager: self }
    }

    /// Messages.
    pub fn system(&mut self) -> SystemLogs<'_> {
        SystemLogs { manager: self }
    }

    fn each(&mut self, types: &LogTypes, mut call: impl FnMut(&mut dyn Logger) -> Result<bool>) -> Result<()> {
        for logger in self.loggers.iter_mut().filter(|it| it.enabled()) {
            let wanted = match types {
                LogTypes::All => true,
                LogTypes::Named(names) => names.iter().any(|name| name == logger.name()),
            };
            if wanted {
                call(&mut **logger)?;
            }
        }
        Ok(())
    }
}

/// Logs settings and values with a manager's loggers.
pub struct MetricLogs<'a> {
    manager: &'a mut LoggerManager,
}

impl MetricLogs<'_> {
    /// Logs the settings of a run.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn log_hyperparams(&mut self, params: &Metrics, level: Option<Level>, types: &LogTypes) -> Result<()> {
        self.manager.each(types, |it| it.log_hyperparams(params, level))
    }

    /// Logs one value.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn log_scalar(&mut self, entry: &Entry, value: Number, types: &LogTypes) -> Result<()> {
        self.manager.each(types, |it| it.log_scalar(entry, value))
    }

    /// Logs several values.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn log_scalars(&mut self, entry: &Entry, values: &Metrics, types: &LogTypes) -> Result<()> {
        self.manager.each(types, |it| it.log_scalars(entry, values))
    }

    /// Logs one value without a tag.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn add_scalar(&mut self, value: Number) -> Result<()> {
        self.log_scalar(&Entry::new(DEFAULT_TAG), value, &LogTypes::All)
    }

    /// Logs several values without a tag.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn add_scalars(&mut self, values: &Metrics) -> Result<()> {
        self.log(values, None)
    }

    /// Logs several values without a tag at a step.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn log(&mut self, values: &Metrics, step: LogStepType) -> Result<()> {
        self.log_scalars(&Entry { step, ..Entry::new(DEFAULT_TAG) }, values, &LogTypes::All)
    }
}

/// Logs messages with a manager's loggers.
pub struct SystemLogs<'a> {
    manager: &'a mut LoggerManager,
}

impl SystemLogs<'_> {
    /// Logs a text.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn log_string(&mut self, entry: &Entry, text: Option<&str>, types: &LogTypes) -> Result<()> {
        self.manager.each(types, |it| it.log_string(entry, text))
    }

    /// Logs a detail.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn debug(&mut self, tag: &str, text: &str) -> Result<()> {
        self.at(Level::DEBUG, tag, text)
    }

    /// Logs an ordinary message.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn info(&mut self, tag: &str, text: &str) -> Result<()> {
        self.at(Level::INFO, tag, text)
    }

    /// Logs something to look at.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn warning(&mut self, tag: &str, text: &str) -> Result<()> {
        self.at(Level::WARNING, tag, text)
    }

    /// Logs a fault.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn error(&mut self, tag: &str, text: &str) -> Result<()> {
        self.at(Level::ERROR, tag, text)
    }

    /// Logs a fault that ends the run.
    ///
    /// # Errors
    /// A sink that cannot be written.
    pub fn critical(&mut self, tag: &str, text: &str) -> Result<()> {
        self.at(Level::CRITICAL, tag, text)
    }

    fn at(&mut self, level: Level, tag: &str, text: &str) -> Result<()> {
        self.log_string(&Entry::new(tag).level(level), Some(text), &LogTypes::All)
    }
}
