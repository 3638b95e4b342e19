//! When schemes are attached, activations observed, and scales written.

use std::{collections::HashSet, time::Instant};

use lifecycle::{Event, Fields, Modifier, ModuleStore, Result, Sample, Settings, State, Tap, error::Error};
use serde_json::Value;

use super::{
    config::{QuantizationFields, take_settings},
    record::{ModuleRecord, distances},
    targets::{Divisibility, Observed, Targets},
};

/// Gives modules their scales; weights stay as they are until they are packed.
#[derive(Debug)]
pub struct QuantizationModifier {
    settings: Settings,
    fields: Fields,
    config: QuantizationFields,
    needs_data: bool,
    targets: Targets,
    report: Vec<Value>,
}

impl QuantizationModifier {
    /// The type's name.
    pub const NAME: &'static str = "QuantizationModifier";

    /// From all fields of a recipe, defaults written out.
    ///
    /// # Errors
    /// A field of another kind, and as [`QuantizationFields::resolve`].
    pub fn new(fields: &Fields) -> crate::Result<Self> {
        let mut rest = fields.clone();
        let told = rest.get("requires_calibration_data").and_then(serde_json::Value::as_bool).unwrap_or(false);
        let settings = take_settings(&mut rest)?;
        let own = rest.clone();
        let config = QuantizationFields::take(&mut rest)?;
        let _: Nothing = super::config::read_fields(rest)?;
        let needs_data = told || config.needs_data()?;
        Ok(Self { settings, fields: own, config, needs_data, targets: Targets::default(), report: Vec::new() })
    }
}

/// A modifier without further fields.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl QuantizationFields {
    /// The targets of the fields in a model.
    ///
    /// # Errors
    /// Fields without any scheme, and as [`Targets::resolve`].
    pub fn targets_in(&self, model: &dyn ModuleStore) -> Result<Targets> {
        if !self.has_config() {
            return Err(Error::failed("no scheme is given, expected `scheme`, `config_groups` or `kv_cache_scheme`"));
        }
        let check = if self.bypass_divisibility_checks { Divisibility::Bypassed } else { Divisibility::Checked };
        Targets::resolve(&self.resolve()?, model, check)
    }

    /// Patterns of all groups.
    pub(crate) fn patterns(&self) -> Vec<String> {
        let groups = self.resolve().map(|it| it.config_groups).unwrap_or_default();
        groups.into_values().flat_map(|it| it.targets).collect()
    }
}

impl Targets {
    /// The record of a weight that will be rounded to nearest when it is packed.
    ///
    /// # Errors
    /// Scales that do not fit, a failed read.
    pub(crate) fn nearest(&mut self, model: &dyn ModuleStore, observed: Observed) -> Result<ModuleRecord> {
        let Observed { name, mut weight, qparams, .. } = observed;
        let tokens = self.take_tokens(&name);
        let mut record = ModuleRecord { tokens, ..ModuleRecord::default() };
        let target = &self.modules()[&name];
        if let (Some(args), Some(qparams)) = (&target.scheme.weights, &qparams) {
            target.weight_spec(args).round_to_nearest(qparams, &mut weight).map_err(|e| e.at(&name))?;
            record.weight = Some(distances(model, &name, target, &weight, None)?.0);
        }
        record.module = name;
        Ok(record)
    }
}

impl Modifier for QuantizationModifier {
    fn type_name(&self) -> &str {
        Self::NAME
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn fields(&self) -> Fields {
        self.fields.clone()
    }

    fn needs_data(&self) -> bool {
        self.needs_data
    }

    fn targets(&self) -> Vec<String> {
        self.config.patterns()
    }

    fn reads(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(self.config.targets_in(model)?.modules().keys().cloned().collect())
    }

    fn writes(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        self.reads(model)
    }

    fn taps(&self, model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        Ok(self.config.targets_in(model)?.taps())
    }

    fn take_data(&mut self) -> Option<Value> {
        (!self.report.is_empty()).then(|| Value::Array(std::mem::take(&mut self.report)))
    }

    fn on_initialize(&mut self, state: &mut State) -> Result<bool> {
        self.targets = self.config.targets_in(state.model()?)?;
        self.targets.publish(state);
        Ok(true)
    }

    fn on_calibration_start(&mut self, _state: &mut State, _event: &Event) -> Result<()> {
        self.targets.start();
        Ok(())
    }

    fn on_tap(&mut self, tap: &Tap, sample: &Sample<'_>) -> Result<()> {
        self.targets.observe(tap, sample)
    }

    fn on_sequential_epoch_end(&mut self, state: &mut State, _event: &Event, modules: &[String]) -> Result<()> {
        let modules: HashSet<&str> = modules.iter().map(String::as_str).collect();
        let model = state.model_mut()?;
        self.targets.write_activations(model, &modules)?;
        let begin = Instant::now();
        let observed = self.targets.observe_weights(model, &modules)?;
        let n_elements: usize = observed.iter().map(|it| it.weight.len()).sum();
        let seconds_of_all = begin.elapsed().as_secs_f64();
        for observed in observed {
            let Some(qparams) = &observed.qparams else { continue };
            let begin = Instant::now();
            self.targets.write_weight(model, &observed.name, qparams)?;
            let share = observed.weight.len() as f64 / n_elements.max(1) as f64;
            let mut record = self.targets.nearest(model, observed)?;
            record.seconds = seconds_of_all * share + begin.elapsed().as_secs_f64();
            self.report.push(record.value());
        }
        Ok(())
    }
}
