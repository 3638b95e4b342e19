//! When second moments are gathered and weights rounded.

use std::{collections::HashSet, time::Instant};

use indexmap::IndexMap;
use kernels::Profile;
use lifecycle::{
    Event, Fields, Modifier, ModuleStore, Place, Result, Sample, Settings, State, Tap, TapPoint, error::Error,
};
use serde_json::{Value, json};

use super::{
    algorithm::{Consumer, Factored, Fallback, Hessian, Order, factorize, quantize},
    config::{GptqFields, ScaleSearch},
    correction::CrossMoments,
    inputs::{EXPERTS, Inputs},
    refine::{Objective, refine, search_scales},
};
use crate::quantization::{
    config::take_settings,
    record::{Energy, ModuleRecord, distances},
    targets::{Observed, Targets},
};

/// Rounds weights so that the outputs of their layers change least.
#[derive(Debug)]
pub struct GptqModifier {
    settings: Settings,
    fields: Fields,
    config: GptqFields,
    profile: Profile,
    targets: Targets,
    inputs: Inputs,
    fallbacks: Vec<String>,
    report: Vec<Value>,
}

impl GptqModifier {
    /// The type's name.
    pub const NAME: &'static str = "GPTQModifier";

    /// From all fields of a recipe, defaults written out.
    ///
    /// # Errors
    /// As [`GptqFields::read`].
    pub fn new(fields: &Fields) -> crate::Result<Self> {
        let mut own = fields.clone();
        let settings = take_settings(&mut own)?;
        let config = GptqFields::read(own.clone())?;
        Ok(Self {
            settings,
            fields: own,
            config,
            profile: Profile::detect(),
            targets: Targets::default(),
            inputs: Inputs::default(),
            fallbacks: Vec::new(),
            report: Vec::new(),
        })
    }

    /// Number of second moments held: one per distinct input of the wave.
    pub fn n_inputs(&self) -> usize {
        self.inputs.n_distinct()
    }

    /// Whether the module's input is added to second moments.
    fn is_swept(&self, module: &str) -> bool {
        self.targets.modules().get(module).is_some_and(|it| it.scheme.weights.is_some() && !it.is_embedding)
    }

    /// Rounds the weights that share second moments and an order, and writes them.
    fn sweep(
        &mut self,
        model: &mut dyn ModuleStore,
        factored: &Factored,
        (hessian, moved): (&Hessian, &CrossMoments),
        begin: Instant,
        weights: &mut [Observed],
    ) -> Result<()> {
        let mut corrected: Vec<&mut Vec<f32>> = weights.iter_mut().map(|it| &mut it.weight).collect();
        moved.correct(self.profile, factored, hessian, self.config.input_correction, &mut corrected)?;
        let is_bettered = self.config.refine_rounds > 0 || self.config.scale_search == ScaleSearch::Moments;
        let objective =
            (is_bettered && factored.fallback.is_none()).then(|| Objective::new(hessian, factored.dampening_frac));
        let objective = objective.as_ref();
        if let (ScaleSearch::Moments, Some(objective)) = (self.config.scale_search, objective) {
            let costs = objective.costs();
            for Observed { name, weight, qparams, .. } in weights.iter_mut() {
                let target = &self.targets.modules()[name.as_str()];
                if let (Some(args), Some(qparams)) = (&target.scheme.weights, qparams) {
                    search_scales(self.profile, &target.weight_spec(args), &costs, weight, qparams)?;
                }
            }
        }
        let rounds = self.config.refine_rounds;
        let refined = objective.filter(|_| rounds > 0);
        let before: Vec<Vec<f32>> = refined.iter().flat_map(|_| weights.iter().map(|it| it.weight.clone())).collect();
        let mut consumers = Vec::with_capacity(weights.len());
        for observed in weights.iter_mut() {
            let target = &self.targets.modules()[&observed.name];
            if let (Some(args), Some(qparams)) = (&target.scheme.weights, &observed.qparams) {
                let weight = &mut observed.weight;
                consumers.push(Consumer { args, float: target.float, qparams, rows: target.rows, weight });
            }
        }
        let losses = quantize(self.profile, factored, &mut consumers)?;
        drop(consumers);
        let mut errors = vec![None; weights.len()];
        if let Some(objective) = refined {
            for (idx, Observed { name, weight, qparams, .. }) in weights.iter_mut().enumerate() {
                let target = &self.targets.modules()[name.as_str()];
                if let (Some(args), Some(qparams)) = (&target.scheme.weights, qparams) {
                    let spec = target.weight_spec(args);
                    let refined = refine(self.profile, &spec, objective, rounds, &before[idx], weight, qparams)?;
                    errors[idx] = Some(refined);
                }
            }
        }
        let n_elements: usize = weights.iter().map(|it| it.weight.len()).sum();
        let seconds_of_all = begin.elapsed().as_secs_f64();
        let energy = |rows: &[f32]| hessian.energy(self.profile, rows).map_err(Error::from);
        let has_seen = hessian.n_tokens() > 0;
        for ((observed, quantized), refined) in weights.iter().zip(losses).zip(errors) {
            let begin = Instant::now();
            let (name, target) = (&observed.name, &self.targets.modules()[&observed.name]);
            let energy: Option<Energy<'_>> = if has_seen { Some(&energy) } else { None };
            let (weight, output) = distances(model, name, target, &observed.weight, energy)?;
            model.write_rows(&format!("{name}.weight"), 0..target.rows, &observed.weight)?;
            if let Some(qparams) = &observed.qparams {
                self.targets.write_weight(model, name, qparams)?;
            }
            if factored.fallback.is_some() {
                self.fallbacks.push(name.clone());
            }
            let fallback = factored.fallback.map(|it| match it {
                Fallback::Tokens { .. } => "too few tokens",
                Fallback::NotPositiveDefinite { .. } => "not positive definite",
            });
            let share = observed.weight.len() as f64 / n_elements.max(1) as f64;
            let record = ModuleRecord {
                module: name.clone(),
                tokens: Some(hessian.n_tokens()),
                loss: Some(quantized.loss),
                weight: Some(weight),
                output,
                dampening_frac: Some(factored.dampening_frac),
                attempts: Some(factored.attempts),
                dead_columns: Some(factored.dead.len()),
                fallback: fallback.map(str::to_owned),
                refined,
                seconds: seconds_of_all * share + begin.elapsed().as_secs_f64(),
            };
            self.report.push(record.value());
        }
        Ok(())
    }
}

impl Modifier for GptqModifier {
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
        true
    }

    fn hears_unchanged(&self) -> bool {
        self.config.input_correction > 0.0
    }

    fn targets(&self) -> Vec<String> {
        self.config.quantization.patterns()
    }

    fn reads(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(self.config.quantization.targets_in(model)?.modules().keys().cloned().collect())
    }

    fn writes(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        self.reads(model)
    }

    fn taps(&self, model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        let targets = self.config.quantization.targets_in(model)?;
        let mut taps = targets.taps();
        for (name, target) in targets.modules() {
            let tap = Tap::new(name, TapPoint::Input);
            if target.scheme.weights.is_some() && !target.is_embedding && !taps.contains(&tap) {
                taps.push(tap);
            }
        }
        Ok(taps)
    }

    fn divisible(&self, model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        // One scale for many channels cannot be found from ranges that are one for many channels too.
        let observed = self.config.quantization.targets_in(model)?.taps();
        Ok(self.taps(model)?.into_iter().filter(|it| !observed.contains(it)).collect())
    }

    fn divide(&mut self, taps: &[Tap], divisors: &[f32]) -> Result<()> {
        self.inputs.divide(taps, divisors)
    }

    fn snapshot(&self) -> Result<Value> {
        // Second moments live within a wave, so that nothing else is carried from one to the next.
        Ok(json!({"fallbacks": self.fallbacks}))
    }

    fn restore(&mut self, snapshot: &Value) -> Result<()> {
        let names = snapshot.get("fallbacks").and_then(Value::as_array);
        let names = names.and_then(|it| it.iter().map(|name| name.as_str().map(str::to_owned)).collect());
        self.fallbacks = names.ok_or_else(|| Error::failed("no snapshot of a GPTQModifier, expected `fallbacks`"))?;
        Ok(())
    }

    fn take_data(&mut self) -> Option<Value> {
        (!self.report.is_empty()).then(|| Value::Array(std::mem::take(&mut self.report)))
    }

    fn on_initialize(&mut self, state: &mut State) -> Result<bool> {
        self.profile = state.model()?.profile();
        self.targets = self.config.quantization.targets_in(state.model()?)?;
        for (name, target) in self.targets.modules() {
            if let Some(args) = &target.scheme.weights {
                self.config.order(args).map_err(|e| e.at(name))?;
            }
        }
        if let Some(order) = self.config.actorder {
            self.targets.set_order(order);
        }
        self.targets.publish(state);
        Ok(true)
    }

    fn on_calibration_start(&mut self, _state: &mut State, _event: &Event) -> Result<()> {
        if !self.targets.modules().keys().any(|it| self.is_swept(it)) {
            return Err(Error::failed("no linear has a scheme for its weight, expected at least one"));
        }
        self.targets.start();
        Ok(())
    }

    fn on_tap(&mut self, tap: &Tap, sample: &Sample<'_>) -> Result<()> {
        self.targets.observe(tap, sample)?;
        if tap.point == TapPoint::Input && self.is_swept(&tap.module) {
            self.inputs
                .accumulate(self.profile, &tap.module, sample)
                .map_err(|error| error.at(Place::Module(tap.module.clone())))?;
        }
        Ok(())
    }

    fn on_sequential_epoch_end(&mut self, state: &mut State, _event: &Event, modules: &[String]) -> Result<()> {
        let modules: HashSet<&str> = modules.iter().map(String::as_str).collect();
        let min_expert_tokens = state.min_expert_tokens;
        let model = state.model_mut()?;
        self.inputs.finish();
        self.targets.write_activations(model, &modules)?;
        // Weights that share an input and an order are swept as one stack.
        let mut stacks: IndexMap<(Option<usize>, bool), Vec<Observed>> = IndexMap::new();
        for observed in self.targets.observe_weights(model, &modules)? {
            let target = &self.targets.modules()[&observed.name];
            let Some(args) = &target.scheme.weights else { continue };
            if target.is_embedding {
                if let Some(qparams) = &observed.qparams {
                    self.targets.write_weight(model, &observed.name, qparams)?;
                }
                let record = self.targets.nearest(model, observed)?;
                self.report.push(record.value());
                continue;
            }
            let order = self.config.order(args).map_err(|e| e.at(&observed.name))?;
            // Without an input there is no width in common.
            let input = self.inputs.input_of(&observed.name);
            match input {
                Some(_) => stacks.entry((input, order == Order::Diagonal)).or_default().push(observed),
                None => {
                    let nearest = Factored::nearest(target.cols, 0);
                    let unseen = Hessian::new(0);
                    let unseen = (&unseen, &CrossMoments::new(0));
                    self.sweep(model, &nearest, unseen, Instant::now(), &mut [observed])?;
                }
            }
        }
        for ((input, by_diagonal), mut weights) in stacks {
            let Some(input) = input else { continue };
            let order = if by_diagonal { Order::Diagonal } else { Order::Stored };
            let begin = Instant::now();
            let (hessian, moved) = self.inputs.take(input);
            let name = weights.first().map_or("", |it| &it.name).to_owned();
            let mut damping = self.config.damping();
            if name.contains(EXPERTS) {
                damping.min_tokens = damping.min_tokens.max(min_expert_tokens);
            }
            let factored = factorize(self.profile, &hessian, order, &damping).map_err(|e| e.at(name))?;
            self.sweep(model, &factored, (&hessian, &moved), begin, &mut weights)?;
            self.inputs.put_back(input, (hessian, moved));
        }
        self.inputs.forget();
        Ok(())
    }

    fn on_finalize(&mut self, _state: &mut State) -> Result<bool> {
        let modules: Vec<String> = self.inputs.modules().cloned().collect();
        if modules.is_empty() {
            return Ok(true);
        }
        let what = "second moments were gathered and never used";
        Err(crate::Error::from(crate::ErrorKind::Statistics { what, modules }).into())
    }
}
