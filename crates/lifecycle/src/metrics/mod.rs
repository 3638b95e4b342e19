//! Metrics of a run: how often to log ([`FrequencyManager`]) and where to ([`LoggerManager`]).

mod fanout;
mod frequency;
mod logger;
mod model_info;
mod record_files;
mod tensorboard;

pub use self::{
    fanout::{LogTypes, LoggerManager, MetricLogs, SystemLogs},
    frequency::{
        FrequencyManager, FrequencyOptions, FrequencyType, LogStepType, LoggingModeType, log_ready, step_from_json,
    },
    logger::{
        Entry, GroupOptions, LambdaCall, LambdaLogger, Level, Logger, Metrics, Number, PythonLogger,
        SparsificationGroupLogger, Switch,
    },
    model_info::{Loggable, log_model_info, should_log_model_info},
    record_files::{CsvLogger, JsonLinesLogger},
    tensorboard::{EventWriter, ScalarEvent, TensorBoardLogger, read_events},
};
