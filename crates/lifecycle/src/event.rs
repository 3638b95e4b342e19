//! [`EventType`] and [`Event`]: what a pipeline tells modifiers, and at which step and epoch.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    Result,
    error::{Error, ErrorKind},
};

/// The kinds of event of a compression run.
///
/// The wire name is the lower-case snake form of the name. `CALIBRATION_EPOCH_START` and
/// `CALIBRATION_EPOCH_END` are the names that releases 0.6 to 0.12 of the reference use for
/// [`CalibrationStart`](Self::CalibrationStart) and [`CalibrationEnd`](Self::CalibrationEnd); both
/// spellings are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventType {
    /// Before initialization; named by releases 0.1 to 0.4, never fired.
    PreInit,
    /// Initialization, a method of the lifecycle.
    Initialize,
    /// Finalization, a method of the lifecycle.
    Finalize,
    /// A batch begins.
    BatchStart,
    /// The loss of a batch is known.
    LossCalculated,
    /// A batch is done.
    BatchEnd,
    /// Calibration begins.
    #[serde(alias = "calibration_epoch_start")]
    CalibrationStart,
    /// One subgraph has seen all batches.
    SequentialEpochEnd,
    /// Calibration is done.
    #[serde(alias = "calibration_epoch_end")]
    CalibrationEnd,
    /// The optimizer is about to step.
    OptimPreStep,
    /// The optimizer has stepped.
    OptimPostStep,
}

/// Every type with its name and its value.
const NAMES: [(EventType, &str, &str); 11] = [
    (EventType::PreInit, "PRE_INIT", "pre_init"),
    (EventType::Initialize, "INITIALIZE", "initialize"),
    (EventType::Finalize, "FINALIZE", "finalize"),
    (EventType::BatchStart, "BATCH_START", "batch_start"),
    (EventType::LossCalculated, "LOSS_CALCULATED", "loss_calculated"),
    (EventType::BatchEnd, "BATCH_END", "batch_end"),
    (EventType::CalibrationStart, "CALIBRATION_START", "calibration_start"),
    (EventType::SequentialEpochEnd, "SEQUENTIAL_EPOCH_END", "sequential_epoch_end"),
    (EventType::CalibrationEnd, "CALIBRATION_END", "calibration_end"),
    (EventType::OptimPreStep, "OPTIM_PRE_STEP", "optim_pre_step"),
    (EventType::OptimPostStep, "OPTIM_POST_STEP", "optim_post_step"),
];

impl EventType {
    /// The spelling of releases 0.6 to 0.12 of [`EventType::CalibrationStart`].
    pub const CALIBRATION_EPOCH_START: Self = Self::CalibrationStart;
    /// The spelling of releases 0.6 to 0.12 of [`EventType::CalibrationEnd`].
    pub const CALIBRATION_EPOCH_END: Self = Self::CalibrationEnd;

    /// The member's name, `"BATCH_START"`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The member's value, `"batch_start"`.
    pub fn value(self) -> &'static str {
        self.row().2
    }

    fn row(self) -> &'static (Self, &'static str, &'static str) {
        // The table lists the variants in declaration order; `names_are_in_declaration_order` proves it.
        &NAMES[self as usize]
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EventType {
    type Err = Error;

    /// Reads a member's name or value, in either spelling of the calibration events.
    fn from_str(text: &str) -> Result<Self> {
        let value = match text {
            "CALIBRATION_EPOCH_START" | "calibration_epoch_start" => "calibration_start",
            "CALIBRATION_EPOCH_END" | "calibration_epoch_end" => "calibration_end",
            other => other,
        };
        NAMES.iter().find(|it| it.1 == value || it.2 == value).map(|it| it.0).ok_or_else(|| {
            let known = NAMES.iter().map(|it| it.2).collect();
            ErrorKind::UnknownEventType { found: text.to_owned(), known }.into()
        })
    }
}

/// An event with the counters that hold while it is handled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Event {
    /// The kind, `None` for a bare set of counters.
    pub type_: Option<EventType>,
    /// Optimizer steps in an epoch; without it the index is the step.
    pub steps_per_epoch: Option<i64>,
    /// Batches in an optimizer step.
    pub batches_per_step: Option<i64>,
    /// Calls of the step wrapper for one optimizer step.
    pub invocations_per_step: i64,
    /// The current step.
    pub global_step: i64,
    /// The current batch.
    pub global_batch: i64,
}

impl Default for Event {
    fn default() -> Self {
        Self {
            type_: None,
            steps_per_epoch: None,
            batches_per_step: None,
            invocations_per_step: 1,
            global_step: 0,
            global_batch: 0,
        }
    }
}

/// What [`Event::new_instance`] sets; `None` keeps the value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EventOverrides {
    /// See [`Event::type_`].
    pub type_: Option<EventType>,
    /// See [`Event::steps_per_epoch`].
    pub steps_per_epoch: Option<i64>,
    /// See [`Event::batches_per_step`].
    pub batches_per_step: Option<i64>,
    /// See [`Event::invocations_per_step`].
    pub invocations_per_step: Option<i64>,
    /// See [`Event::global_step`].
    pub global_step: Option<i64>,
    /// See [`Event::global_batch`].
    pub global_batch: Option<i64>,
}

impl Event {
    /// An event of a kind with all counters at their defaults.
    pub fn of(type_: EventType) -> Self {
        Self { type_: Some(type_), ..Self::default() }
    }

    /// Whether the index counts epochs, that is whether `steps_per_epoch` is known.
    pub fn epoch_based(&self) -> bool {
        self.steps_per_epoch.is_some()
    }

    /// The whole epochs done, rounded down also below zero.
    ///
    /// # Errors
    /// Without `steps_per_epoch`, or where it is 0.
    pub fn epoch(&self) -> Result<i64> {
        let (steps, modulus) = self.split("epoch")?;
        let epoch = (i128::from(self.global_step) - i128::from(modulus)) / i128::from(steps);
        // Only the least step over -1 steps per epoch leaves the range.
        Ok(i64::try_from(epoch).unwrap_or(i64::MAX))
    }

    /// Epochs done with the fraction of the current one.
    ///
    /// # Errors
    /// Without `steps_per_epoch`, or where it is 0.
    pub fn epoch_full(&self) -> Result<f64> {
        Ok(self.global_step as f64 / self.steps("epoch_full")? as f64)
    }

    /// The step within the current epoch, with the sign of `steps_per_epoch`.
    ///
    /// # Errors
    /// Without `steps_per_epoch`, or where it is 0.
    pub fn epoch_step(&self) -> Result<i64> {
        Ok(self.split("epoch_step")?.1)
    }

    /// The batch within the current epoch; 0 and absent `batches_per_step` count as 1.
    ///
    /// # Errors
    /// Without `steps_per_epoch`, or where it is 0.
    pub fn epoch_batch(&self) -> Result<i64> {
        let steps = self.steps("epoch_batch")?;
        let batches = self.batches_per_step.filter(|it| *it != 0).unwrap_or(1);
        let batches_per_epoch = i128::from(steps) * i128::from(batches);
        let modulus = floored_modulus(i128::from(self.global_batch), batches_per_epoch);
        Ok(i64::try_from(modulus).unwrap_or(self.global_batch))
    }

    /// The step, or the fractional epoch where `steps_per_epoch` is known.
    ///
    /// # Errors
    /// Where `steps_per_epoch` is 0, or the step has no exact epoch.
    pub fn current_index(&self) -> Result<f64> {
        let Some(steps_per_epoch) = self.steps_per_epoch else {
            return Ok(self.global_step as f64);
        };
        let full = self.epoch_full()?;
        if full - self.epoch()? as f64 > 1.0 {
            return Err(ErrorKind::TooManySteps { global_step: self.global_step, steps_per_epoch }.into());
        }
        Ok(full)
    }

    /// Moves the event to an index: a step, or an epoch where `steps_per_epoch` is known. Fractions of
    /// a step are cut off, and the batch counter follows.
    pub fn set_current_index(&mut self, index: f64) {
        self.global_step = (index * self.steps_per_epoch.map_or(1.0, |it| it as f64)) as i64;
        self.global_batch = match self.batches_per_step {
            Some(batches) if batches >= 2 => self.global_step.saturating_mul(batches),
            _ => self.global_step,
        };
    }

    /// Whether something that runs from `start` to `end`, both inclusive, every `update` should run now.
    ///
    /// `None` and values up to 0 of `update` mean always. The remainder is taken in f64 and has the
    /// sign of `update`: 0.3 modulo 0.1 is just below 0.1, so that index 0.3 is no multiple of 0.1.
    ///
    /// # Errors
    /// As [`Event::current_index`].
    pub fn should_update(&self, start: Option<f64>, end: Option<f64>, update: Option<f64>) -> Result<bool> {
        let current = self.current_index()?;
        if start.is_some_and(|start| current < start) || end.is_some_and(|end| current > end) {
            return Ok(false);
        }
        Ok(match update {
            Some(update) if update > 0.0 => current.rem_euclid(update) < 1e-10,
            _ => true,
        })
    }

    /// A copy with some fields set anew.
    #[must_use]
    pub fn new_instance(&self, overrides: &EventOverrides) -> Self {
        Self {
            type_: overrides.type_.or(self.type_),
            steps_per_epoch: overrides.steps_per_epoch.or(self.steps_per_epoch),
            batches_per_step: overrides.batches_per_step.or(self.batches_per_step),
            invocations_per_step: overrides.invocations_per_step.unwrap_or(self.invocations_per_step),
            global_step: overrides.global_step.unwrap_or(self.global_step),
            global_batch: overrides.global_batch.unwrap_or(self.global_batch),
        }
    }

    fn steps(&self, property: &'static str) -> Result<i64> {
        match self.steps_per_epoch {
            None => Err(ErrorKind::NotEpochBased { property }.into()),
            Some(0) => Err(ErrorKind::ZeroStepsPerEpoch.into()),
            Some(steps) => Ok(steps),
        }
    }

    /// Steps per epoch and the floored remainder of the current step.
    fn split(&self, property: &'static str) -> Result<(i64, i64)> {
        let steps = self.steps(property)?;
        let modulus = floored_modulus(i128::from(self.global_step), i128::from(steps));
        // The remainder is smaller than `steps` in magnitude.
        Ok((steps, modulus as i64))
    }
}

/// The remainder with the sign of the divisor.
fn floored_modulus(dividend: i128, divisor: i128) -> i128 {
    let remainder = dividend % divisor;
    if remainder != 0 && (remainder < 0) != (divisor < 0) { remainder + divisor } else { remainder }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_declaration_order() {
        for (position, row) in NAMES.iter().enumerate() {
            assert_eq!(row.0 as usize, position);
            assert_eq!(row.1.to_lowercase(), row.2);
        }
    }

    #[test]
    fn both_spellings_of_the_calibration_events_are_one_member() {
        assert_eq!("CALIBRATION_EPOCH_START".parse(), Ok(EventType::CalibrationStart));
        assert_eq!("calibration_epoch_end".parse(), Ok(EventType::CALIBRATION_EPOCH_END));
        let found: EventType = serde_json::from_str("\"calibration_epoch_start\"").unwrap();
        assert_eq!(found, EventType::CALIBRATION_EPOCH_START);
        assert!(matches!("epoch".parse::<EventType>().unwrap_err().kind(), ErrorKind::UnknownEventType { .. }));
    }

    #[test]
    fn extreme_counters_do_not_overflow() {
        for global_step in [i64::MIN, -1, i64::MAX] {
            for steps in [i64::MIN, -1, 1, i64::MAX] {
                let event = Event {
                    steps_per_epoch: Some(steps),
                    batches_per_step: Some(steps),
                    global_step,
                    global_batch: global_step,
                    ..Event::default()
                };
                assert!(event.epoch_step().unwrap().abs() < steps.saturating_abs().max(1));
                event.epoch_batch().unwrap();
                let _ = event.epoch();
                let mut moved = event.clone();
                for index in [f64::NAN, f64::INFINITY, -1e300] {
                    moved.set_current_index(index);
                }
            }
        }
    }

    #[test]
    fn overrides_refuse_unknown_names() {
        assert!(serde_json::from_str::<EventOverrides>(r#"{"global_step": 3}"#).is_ok());
        assert!(serde_json::from_str::<EventOverrides>(r#"{"step": 3}"#).is_err());
    }
}
