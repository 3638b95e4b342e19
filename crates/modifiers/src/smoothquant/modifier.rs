//! When ranges are gathered and layers smoothed.

use std::collections::HashSet;

use compressed_tensors::{
    numbers::Float,
    target::{NamedModule, Patterns},
};
use indexmap::IndexMap;
use lifecycle::{
    Division, Divisors, Event, Fields, Modifier, ModuleStore, Place, Result, Sample, Settings, State, Tap, TapPoint,
    error::Error,
};
use serde_json::{Value, json};

use super::{
    algorithm::{
        ChannelRange, Norm, Smoothing, column_maxima, divide_norm, divide_rows, divisors, multiply_columns, scales,
    },
    config::{SmoothQuantFields, refuse_schedule},
    mappings::{OFFSET_NORM_CLASSES, Resolved, mappings_for},
};
use crate::{error::ErrorKind, quantization::config::take_settings};

/// Moves outliers of activations into the weights that read them.
#[derive(Debug)]
pub struct SmoothQuantModifier {
    type_name: &'static str,
    settings: Settings,
    fields: Fields,
    config: SmoothQuantFields,
    mappings: Vec<Resolved>,
    ranges: IndexMap<String, ChannelRange>,
    divisors: Vec<Divisors>,
    report: Vec<Value>,
}

impl SmoothQuantModifier {
    /// The type's name.
    pub const NAME: &'static str = "SmoothQuantModifier";
    /// The name under which `algorithm` is `log_equalization`.
    pub const LOG_EQUALIZATION: &'static str = "LogarithmicEqualizationModifier";

    /// From all fields of a recipe, defaults written out.
    ///
    /// # Errors
    /// As [`SmoothQuantFields::read`], and a schedule.
    pub fn new(fields: &Fields) -> crate::Result<Self> {
        Self::named(Self::NAME, fields)
    }

    /// As [`new`](Self::new), under the name that stands for logarithmic equalization.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn log_equalization(fields: &Fields) -> crate::Result<Self> {
        let mut modifier = Self::named(Self::LOG_EQUALIZATION, fields)?;
        modifier.config.smoothing = Smoothing::LogEqualization;
        Ok(modifier)
    }

    fn named(type_name: &'static str, fields: &Fields) -> crate::Result<Self> {
        let mut own = fields.clone();
        let settings = take_settings(&mut own)?;
        refuse_schedule(&settings)?;
        let config = SmoothQuantFields::read(own.clone())?;
        let (mappings, ranges, divisors, report) = (Vec::new(), IndexMap::new(), Vec::new(), Vec::new());
        Ok(Self { type_name, settings, fields: own, config, mappings, ranges, divisors, report })
    }

    /// The mappings in a model, without those that are ignored or frozen as a whole.
    fn resolve(&self, model: &dyn ModuleStore) -> Result<Vec<Resolved>> {
        let classes: Vec<Vec<&str>> =
            model.modules().iter().map(|it| it.classes.iter().map(String::as_str).collect()).collect();
        let facts = model.modules().iter().zip(&classes).filter(|(it, _)| !it.internal);
        let modules: Vec<NamedModule<'_>> =
            facts.map(|(it, classes)| NamedModule { name: &it.name, classes }).collect();
        let mappings = match &self.config.mappings {
            Some(mappings) => mappings.clone(),
            None => {
                let root = modules.iter().find(|it| it.name.is_empty());
                let class = root.and_then(|it| it.classes.first()).copied().unwrap_or_default();
                mappings_for(class, &modules)?
            }
        };
        let ignore = Patterns::compile(&self.config.ignore)?;
        let is_ignored = |name: &str| -> Result<bool> {
            let module = modules.iter().find(|it| it.name == name);
            Ok(module.map(|it| ignore.matches_module(*it)).transpose()?.unwrap_or(false))
        };
        let mut resolved = Vec::new();
        for mapping in mappings {
            for found in mapping.resolve(&modules)? {
                let mut names = std::iter::once(&found.smooth).chain(&found.balance);
                let is_idle = names.try_fold(true, |all, name| Ok::<_, Error>(all && is_ignored(name)?))?;
                if !is_idle && !found.is_frozen(model)? {
                    resolved.push(found);
                }
            }
        }
        Ok(resolved)
    }

    /// Scales of a mapping from its range, applied to the model.
    fn smooth(&mut self, model: &mut dyn ModuleStore, mapping: &Resolved, range: &ChannelRange) -> Result<()> {
        let mut maxima = vec![0.0; range.min().len()];
        for name in &mapping.balance {
            let weight = Parameter::read(model, name, "weight")?;
            column_maxima(&weight.values, &mut maxima)?;
        }
        let before = Parameter::read(model, &mapping.smooth, "weight")?;
        let found = scales(self.config.smoothing, range, &maxima, before.float)?;
        let wide: Vec<f64> = found.iter().map(|it| f64::from(*it)).collect();
        apply(model, mapping, &wide)?;
        let by = if let Some(norm) = norm_of(model, &mapping.smooth, &before)? {
            let after = Parameter::read(model, &mapping.smooth, "weight")?;
            divisors(norm, &found, &before.values, &after.values)?
        } else {
            found.clone()
        };
        self.divisors.push(Divisors { module: mapping.smooth.clone(), by });
        let bounds = found.iter().fold((f32::INFINITY, 0.0f32), |(low, high), it| (low.min(*it), high.max(*it)));
        self.report.push(json!({
            "smooth": mapping.smooth,
            "balance": mapping.balance,
            "tokens": range.n_tokens(),
            "smallest_scale": bounds.0,
            "largest_scale": bounds.1,
        }));
        Ok(())
    }
}

/// Divides what a mapping's layer gives and multiplies the columns that read it.
///
/// A norm is told by its weight, which is a vector; one whose class multiplies by `1 + w` keeps that form.
///
/// # Errors
/// Parameters that are absent, have another shape, or cannot be written.
pub fn apply(model: &mut dyn ModuleStore, mapping: &Resolved, scales: &[f64]) -> Result<()> {
    for name in &mapping.balance {
        let mut weight = Parameter::read(model, name, "weight")?;
        multiply_columns(weight.float, scales, &mut weight.values).map_err(|e| e.at(name))?;
        weight.write(model)?;
    }
    let mut weight = Parameter::read(model, &mapping.smooth, "weight")?;
    if let Some(norm) = norm_of(model, &mapping.smooth, &weight)? {
        divide_norm(norm, scales, &mut weight.values).map_err(|e| e.at(&mapping.smooth))?;
    } else {
        let cols = weight.shape.get(1).copied().unwrap_or(1);
        divide_rows(weight.float, cols, scales, &mut weight.values).map_err(|e| e.at(&mapping.smooth))?;
    }
    weight.write(model)?;
    if model.module(&mapping.smooth)?.parameters.contains_key("bias") {
        let mut bias = Parameter::read(model, &mapping.smooth, "bias")?;
        divide_rows(bias.float, 1, scales, &mut bias.values).map_err(|e| e.at(&mapping.smooth))?;
        bias.write(model)?;
    }
    Ok(())
}

/// How a module with this weight multiplies; none where the weight is a matrix.
pub(crate) fn norm_of(model: &dyn ModuleStore, name: &str, weight: &Parameter) -> Result<Option<Norm>> {
    let classes = &model.module(name)?.classes;
    let has_offset = classes.iter().any(|it| OFFSET_NORM_CLASSES.contains(&it.as_str()));
    let norm = Norm { offset: if has_offset { 1.0 } else { 0.0 }, float: weight.float };
    Ok((weight.shape.len() == 1).then_some(norm))
}

/// A whole parameter as f32.
pub(crate) struct Parameter {
    name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) float: Float,
    pub(crate) values: Vec<f32>,
}

impl Parameter {
    /// Reads a parameter of a module.
    ///
    /// # Errors
    /// An unknown one, one that is no float, a failed read.
    pub(crate) fn read(model: &dyn ModuleStore, module: &str, local: &str) -> Result<Self> {
        let at = |error: Error| error.at(Place::Module(module.to_owned()));
        let facts = model.module(module)?.parameters.get(local).cloned();
        let facts = facts.ok_or_else(|| at(Error::failed(format_args!("it has no `{local}` to smooth"))))?;
        let float = Float::of(facts.dtype, local).map_err(|e| at(e.into()))?;
        let name = format!("{module}.{local}");
        let mut values = vec![0.0; facts.shape.iter().product()];
        model.read_rows(&name, 0..facts.shape.first().copied().unwrap_or(1), &mut values).map_err(at)?;
        Ok(Self { name, shape: facts.shape, float, values })
    }

    /// Writes it back.
    ///
    /// # Errors
    /// A failed write.
    pub(crate) fn write(&self, model: &mut dyn ModuleStore) -> Result<()> {
        model.write_rows(&self.name, 0..self.shape.first().copied().unwrap_or(1), &self.values)
    }
}

impl Modifier for SmoothQuantModifier {
    fn type_name(&self) -> &str {
        self.type_name
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn fields(&self) -> Fields {
        self.fields.clone()
    }

    fn needs_data(&self) -> bool {
        true
    }

    fn reads(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        self.writes(model)
    }

    fn writes(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(self.resolve(model)?.into_iter().flat_map(|it| std::iter::once(it.smooth).chain(it.balance)).collect())
    }

    fn taps(&self, model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        Ok(self.resolve(model)?.into_iter().map(|it| Tap::new(it.smooth, TapPoint::Output)).collect())
    }

    fn divisions(&self, model: &dyn ModuleStore) -> Result<Vec<Division>> {
        Ok(self.resolve(model)?.into_iter().map(|it| Division { module: it.smooth, balanced: it.balance }).collect())
    }

    fn rescales(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(self.resolve(model)?.into_iter().map(|it| it.smooth).collect())
    }

    fn divisible(&self, model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        self.taps(model)
    }

    fn take_divisors(&mut self) -> Vec<Divisors> {
        std::mem::take(&mut self.divisors)
    }

    fn divide(&mut self, taps: &[Tap], divisors: &[f32]) -> Result<()> {
        let wide: Vec<f64> = divisors.iter().map(|it| f64::from(*it)).collect();
        for tap in taps {
            if let Some(range) = self.ranges.get_mut(&tap.module) {
                range.divide(&wide).map_err(|e| e.at(&tap.module))?;
            }
        }
        Ok(())
    }

    fn take_data(&mut self) -> Option<Value> {
        (!self.report.is_empty()).then(|| Value::Array(std::mem::take(&mut self.report)))
    }

    fn on_initialize(&mut self, state: &mut State) -> Result<bool> {
        self.mappings = self.resolve(state.model()?)?;
        Ok(true)
    }

    fn on_tap(&mut self, tap: &Tap, sample: &Sample<'_>) -> Result<()> {
        let shape = sample.value.shape();
        let channels = shape.last().copied().unwrap_or(0);
        let elements: usize = shape.iter().product();
        if elements == 0 {
            return Ok(());
        }
        let mut values = vec![0.0; elements];
        sample.value.read_rows(0..elements / channels, &mut values)?;
        let range = self.ranges.entry(tap.module.clone()).or_insert_with(|| ChannelRange::new(channels));
        range.observe(&values).map_err(|e| e.at(&tap.module))?;
        Ok(())
    }

    fn on_sequential_epoch_end(&mut self, state: &mut State, _event: &Event, modules: &[String]) -> Result<()> {
        let modules: HashSet<&str> = modules.iter().map(String::as_str).collect();
        let model = state.model_mut()?;
        self.divisors.clear();
        let wave: Vec<Resolved> =
            self.mappings.iter().filter(|it| modules.contains(it.smooth.as_str())).cloned().collect();
        for mapping in &wave {
            if let Some(range) = self.ranges.get(&mapping.smooth).cloned() {
                let at = |error: Error| error.at(Place::Module(mapping.smooth.clone()));
                self.smooth(model, mapping, &range).map_err(at)?;
            }
        }
        wave.iter().for_each(|it| drop(self.ranges.shift_remove(&it.smooth)));
        Ok(())
    }

    fn on_finalize(&mut self, _state: &mut State) -> Result<bool> {
        if self.ranges.is_empty() {
            return Ok(true);
        }
        let modules = self.ranges.keys().cloned().collect();
        let what = "ranges were gathered and never used";
        Err(crate::Error::from(ErrorKind::Statistics { what, modules }).into())
    }
}
