//! When second moments are gathered and weights rounded.

use std::{
    collections::{BTreeSet, HashSet},
    time::Instant,
};

use compressed_tensors::DType;
use half::bf16;
use indexmap::IndexMap;
use kernels::{Mat, Profile};
use lifecycle::{
    Activation, Event, Fields, Modifier, ModuleStore, Place, Result, Sample, Settings, State, Tap, TapPoint,
    error::Error,
};
use serde_json::{Value, json};

use super::{
    algorithm::{Consumer, Factored, Fallback, Hessian, Order, factorize, quantize},
    config::{GptqFields, ScaleSearch},
    correction::{CrossMoments, correct},
    refine::{Objective, refine, search_scales},
};
use crate::{
    quantization::{
        config::take_settings,
        record::{Energy, ModuleRecord, distances},
        targets::{Observed, Targets},
    },
    smoothquant::mappings::parent,
};

/// Part of the names of experts' linears.
const EXPERTS: &str = ".experts.";

/// Rounds weights so that the outputs of their layers change least.
#[derive(Debug)]
pub struct GptqModifier {
    settings: Settings,
    fields: Fields,
    config: GptqFields,
    profile: Profile,
    targets: Targets,
    /// One entry per distinct input.
    inputs: Vec<Input>,
    /// Position in `inputs` of each module that has seen a token.
    input_of: IndexMap<String, usize>,
    last: Option<Last>,
    /// Buffers for inputs.
    values: Vec<f32>,
    fallbacks: Vec<String>,
    report: Vec<Value>,
}

/// Second moments and the modules that share them; the first one is the one whose input is added.
#[derive(Debug)]
struct Input {
    leader: String,
    first_batch: (usize, usize),
    hessian: Hessian,
    /// How far it has moved.
    moved: CrossMoments,
}

/// Adds a value (..., N) to second moments, where it lies if it can be; else by way of `values`.
fn add(
    hessian: &mut Hessian,
    profile: Profile,
    value: &dyn Activation,
    n_samples: u64,
    values: &mut Vec<f32>,
) -> Result<()> {
    let cols = hessian.cols();
    let rows = value.shape().iter().product::<usize>() / cols.max(1);
    let bytes = value.as_bytes().unwrap_or_default();
    match (value.dtype(), bytemuck::try_cast_slice(bytes), bytemuck::try_cast_slice(bytes)) {
        (DType::BF16, Ok(x), _) if !bytes.is_empty() => {
            hessian.accumulate::<bf16>(profile, matrix(x, rows, cols)?, n_samples)
        }
        (DType::F32, _, Ok(x)) if !bytes.is_empty() => {
            hessian.accumulate::<f32>(profile, matrix(x, rows, cols)?, n_samples)
        }
        (dtype, ..) => {
            values.resize(rows * cols, 0.0);
            value.read_rows(0..rows, values)?;
            if dtype == DType::BF16 {
                let narrow: Vec<bf16> = values.iter().map(|it| bf16::from_f32(*it)).collect();
                hessian.accumulate(profile, matrix(&narrow, rows, cols)?, n_samples)
            } else {
                hessian.accumulate(profile, matrix(values, rows, cols)?, n_samples)
            }
        }
    }?;
    Ok(())
}

fn matrix<T>(data: &[T], rows: usize, cols: usize) -> crate::Result<Mat<'_, T>> {
    Ok(Mat::new(data, rows, cols)?)
}

/// The input that was added last, which the modules beside its own are likely to be given too.
#[derive(Debug)]
struct Last {
    input: usize,
    batch: (usize, usize),
    edge: Option<usize>,
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl GptqModifier {
    /// The type's name.
    pub const NAME: &'static str = "GPTQModifier";

    /// From all fields of a recipe, defaults written out; computes under the profile that is best here.
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
            inputs: Vec::new(),
            input_of: IndexMap::new(),
            last: None,
            values: Vec::new(),
            fallbacks: Vec::new(),
            report: Vec::new(),
        })
    }

    /// The same under another profile.
    #[must_use]
    pub fn with_profile(self, profile: Profile) -> Self {
        Self { profile, ..self }
    }

    /// Number of second moments held: one per distinct input of the wave.
    pub fn n_inputs(&self) -> usize {
        self.inputs.len()
    }

    /// Whether the module's input is added to second moments.
    fn is_swept(&self, module: &str) -> bool {
        self.targets.modules().get(module).is_some_and(|it| it.scheme.weights.is_some() && !it.is_embedding)
    }

    fn accumulate(&mut self, module: &str, sample: &Sample<'_>) -> Result<()> {
        let shape = sample.value.shape();
        let cols = shape.last().copied().unwrap_or(0);
        let elements: usize = shape.iter().product();
        if elements == 0 {
            return Ok(());
        }
        let batch = (sample.batch_idx, sample.call_idx);
        let is_beside = |last: &Last, inputs: &[Input]| {
            last.batch == batch && last.shape == shape && parent(&inputs[last.input].leader) == parent(module)
        };
        // The same edge of the graph is the same value; where edges are not known, values are compared.
        let by_edge = self
            .last
            .as_ref()
            .filter(|last| is_beside(last, &self.inputs) && sample.edge.is_some() && last.edge == sample.edge);
        let by_edge = by_edge.map(|it| it.input);
        let mut values = std::mem::take(&mut self.values);
        if sample.edge.is_none() {
            values.resize(elements, 0.0);
            sample.value.read_rows(0..elements / cols, &mut values)?;
        }
        let shared = by_edge.or_else(|| {
            let is_unknown = sample.edge.is_none();
            let last =
                self.last.as_ref().filter(|last| is_unknown && last.edge.is_none() && is_beside(last, &self.inputs));
            last.filter(|last| last.values == values).map(|it| it.input)
        });
        let input = match (self.input_of.get(module).copied(), shared) {
            (Some(own), Some(shared)) if own == shared && self.inputs[own].leader != module => return Ok(()),
            (Some(own), _) if self.inputs[own].leader == module => own,
            (Some(own), _) => {
                let message = format!("its input has been that of {} and now differs", self.inputs[own].leader);
                return Err(Error::failed(message));
            }
            (None, Some(shared)) if self.inputs[shared].first_batch == batch => {
                self.input_of.insert(module.to_owned(), shared);
                return Ok(());
            }
            (None, _) => {
                let (leader, hessian, moved) = (module.to_owned(), Hessian::new(cols), CrossMoments::new(cols));
                self.inputs.push(Input { leader, first_batch: batch, hessian, moved });
                self.input_of.insert(module.to_owned(), self.inputs.len() - 1);
                self.inputs.len() - 1
            }
        };
        // A matrix is one sequence; of anything larger, the first dimension counts sequences.
        let n_samples = if shape.len() < 3 { 1 } else { shape[0] as u64 };
        let Input { hessian, moved, .. } = &mut self.inputs[input];
        // Experts are chosen by inputs: other tokens come by where these have moved.
        if let Some(unchanged) = sample.unchanged.filter(|_| !module.contains(EXPERTS)) {
            let (mut now, mut before) = (vec![0.0; elements], vec![0.0; elements]);
            sample.value.read_rows(0..elements / cols, &mut now)?;
            unchanged.read_rows(0..elements / cols, &mut before)?;
            moved.accumulate(self.profile, &now, &mut before)?;
        }
        add(hessian, self.profile, sample.value, n_samples, &mut values)?;
        // What was compared last is the buffer of what comes next.
        let before = self.last.take().map(|it| it.values).unwrap_or_default();
        let (kept, free) = if sample.edge.is_none() { (values, before) } else { (before, values) };
        self.values = free;
        self.last = Some(Last { input, batch, edge: sample.edge, shape: shape.to_vec(), values: kept });
        Ok(())
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
        if let Some(correction) = moved.correction(self.profile, factored, hessian, self.config.input_correction)? {
            for observed in weights.iter_mut() {
                correct(self.profile, &correction, &mut observed.weight)?;
            }
        }
        let is_bettered = self.config.refine_rounds > 0 || self.config.scale_search == ScaleSearch::Moments;
        let objective =
            (is_bettered && factored.fallback.is_none()).then(|| Objective::new(hessian, factored.dampening_frac));
        let objective = objective.as_ref();
        if let (ScaleSearch::Moments, Some(objective)) = (self.config.scale_search, objective) {
            let costs = objective.costs();
            for Observed { name, weight, qparams, .. } in weights.iter_mut() {
                let target = &self.targets.modules()[name.as_str()];
                if let (Some(args), Some(qparams)) = (&target.scheme.weights, qparams) {
                    search_scales(&target.weight_spec(args), &costs, weight, qparams)?;
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
                    errors[idx] = Some(refine(&spec, objective, rounds, &before[idx], weight, qparams)?);
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
        let inputs = taps.iter().filter_map(|it| self.input_of.get(&it.module).copied());
        let inputs: BTreeSet<usize> = inputs.collect();
        for idx in inputs {
            let Input { leader, hessian, moved, .. } = &mut self.inputs[idx];
            hessian.divide_inputs(divisors).map_err(|e| e.at(leader.as_str()))?;
            moved.divide_inputs(divisors).map_err(|e| e.at(leader.as_str()))?;
        }
        Ok(())
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
            self.accumulate(&tap.module, sample).map_err(|error| error.at(Place::Module(tap.module.clone())))?;
        }
        Ok(())
    }

    fn on_sequential_epoch_end(&mut self, state: &mut State, _event: &Event, modules: &[String]) -> Result<()> {
        let modules: HashSet<&str> = modules.iter().map(String::as_str).collect();
        let min_expert_tokens = state.min_expert_tokens;
        let model = state.model_mut()?;
        self.last = None;
        self.values = Vec::new();
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
            let input = self.input_of.shift_remove(&observed.name);
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
            let hessian = std::mem::replace(&mut self.inputs[input].hessian, Hessian::new(0));
            let moved = std::mem::replace(&mut self.inputs[input].moved, CrossMoments::new(0));
            let name = weights.first().map_or("", |it| &it.name).to_owned();
            let mut damping = self.config.damping();
            if name.contains(EXPERTS) {
                damping.min_tokens = damping.min_tokens.max(min_expert_tokens);
            }
            let factored = factorize(self.profile, &hessian, order, &damping).map_err(|e| e.at(name))?;
            self.sweep(model, &factored, (&hessian, &moved), begin, &mut weights)?;
            (self.inputs[input].hessian, self.inputs[input].moved) = (hessian, moved);
        }
        if self.input_of.is_empty() {
            self.inputs.clear();
        }
        Ok(())
    }

    fn on_finalize(&mut self, _state: &mut State) -> Result<bool> {
        if self.input_of.is_empty() {
            return Ok(true);
        }
        let modules = self.input_of.keys().cloned().collect();
        let what = "second moments were gathered and never used";
        Err(crate::Error::from(crate::ErrorKind::Statistics { what, modules }).into())
    }
}
