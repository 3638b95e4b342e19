//! When statistics are gathered, scales searched and applied.

use std::{collections::HashSet, ops::Range, sync::OnceLock};

use compressed_tensors::{
    args::QuantizationStrategy,
    target::{NamedModule, lowest_common_ancestor},
};
use indexmap::IndexMap;
use kernels::{Element, Profile};
use lifecycle::{
    Activation, Event, Fields, Modifier, ModuleStore, Result, Sample, Settings, State, Tap, TapPoint, Wave,
    error::Error,
};
use serde_json::{Value, json};

use super::{
    algorithm::{ActivationMean, Balance, DuoScaling, weight_mean},
    config::AwqFields,
    loss::{BatchLoss, Gram},
    mappings::mappings_for,
    search::{Best, Judge, race, search},
};
use crate::{
    dense::Dense,
    error::{ErrorKind, check_len},
    observers::fused_modules,
    quantization::config::take_settings,
    smoothquant::{
        mappings::Resolved,
        modifier::{Parameter, apply},
    },
};

/// Scales channels up where activations are large, before a quantizing modifier rounds the weights.
///
/// It reads the schemes of the modules from [`State::schemes`].
#[derive(Debug)]
pub struct AwqModifier {
    settings: Settings,
    fields: Fields,
    config: AwqFields,
    profile: Profile,
    mappings: Option<Vec<Place>>,
    seen: IndexMap<String, Seen>,
    /// What parents gave in each batch, by their names.
    outputs: IndexMap<String, Vec<(usize, Dense<'static>)>>,
    report: Vec<Value>,
}

/// A mapping in one place, and where it is measured.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    layers: Resolved,
    /// The module whose output judges the scales.
    parent: String,
    /// The module whose input is the smoothed activation.
    tapped: String,
}

impl Place {
    /// Whether the parent is run for every candidate: a single linear is its own parent, and second moments judge it.
    fn is_rerun(&self) -> bool {
        self.layers.balance.len() > 1
    }
}

/// What came by at a tap.
#[derive(Debug)]
struct Seen {
    mean: ActivationMean,
    gram: Option<Gram>,
    batches: Vec<(usize, Option<Vec<bool>>)>,
}

impl Seen {
    /// Takes tokens (T, C).
    fn observe<E: Element>(&mut self, tokens: &[E], mask: Option<&[bool]>) -> crate::Result<()> {
        self.mean.observe(tokens, mask)?;
        self.gram.as_mut().map_or(Ok(()), |it| it.accumulate(tokens, mask))
    }
}

impl AwqModifier {
    /// The type's name.
    pub const NAME: &'static str = "AWQModifier";

    /// From all fields of a recipe, defaults written out.
    ///
    /// # Errors
    /// As [`AwqFields::read`].
    pub fn new(fields: &Fields) -> crate::Result<Self> {
        let mut own = fields.clone();
        let settings = take_settings(&mut own)?;
        let config = AwqFields::read(own.clone())?;
        let (profile, seen, outputs) = (Profile::detect(), IndexMap::new(), IndexMap::new());
        Ok(Self { settings, fields: own, config, profile, mappings: None, seen, outputs, report: Vec::new() })
    }

    /// The mappings in a model; those whose shapes do not fit (value projections with fewer heads than the output's) are
    /// left out, and those that are frozen.
    fn resolve(&self, model: &dyn ModuleStore) -> Result<Vec<Place>> {
        let classes: Vec<Vec<&str>> =
            model.modules().iter().map(|it| it.classes.iter().map(String::as_str).collect()).collect();
        let facts = model.modules().iter().zip(&classes).filter(|(it, _)| !it.internal);
        let modules: Vec<NamedModule<'_>> =
            facts.map(|(it, classes)| NamedModule { name: &it.name, classes }).collect();
        let root = modules.iter().find(|it| it.name.is_empty());
        let class = root.and_then(|it| it.classes.first()).copied().unwrap_or_default();
        let mappings = match &self.config.mappings {
            Some(mappings) => mappings.clone(),
            None => mappings_for(class, &modules)?,
        };
        let mut places = Vec::new();
        for layers in mappings.iter().map(|it| it.resolve(&modules)).collect::<crate::Result<Vec<_>>>()?.concat() {
            if !fits(model, &layers)? || layers.is_frozen(model)? {
                continue;
            }
            let parent = parent_of(&layers.balance, &modules);
            let tapped = match &layers.activation_hook_target {
                None => layers.balance.first().cloned().unwrap_or_default(),
                Some(path) => {
                    let name = if parent.is_empty() { path.clone() } else { format!("{parent}.{path}") };
                    if !modules.iter().any(|it| it.name == name) {
                        let reason = format!("activation_hook_target `{path}` is not below `{parent}`");
                        let kind = ErrorKind::Mapping { smooth: layers.smooth.clone(), reason };
                        return Err(crate::Error::from(kind).into());
                    }
                    name
                }
            };
            places.push(Place { layers, parent, tapped });
        }
        Ok(places)
    }

    fn places(&self, model: &dyn ModuleStore) -> Result<Vec<Place>> {
        self.mappings.clone().map_or_else(|| self.resolve(model), Ok)
    }

    /// The mappings of which a layer has a scheme.
    fn quantized(&self, state: &State) -> Result<Vec<Place>> {
        let mut places = self.resolve(state.model()?)?;
        let args = |name: &String| state.schemes.get(name).and_then(|it| it.weights.as_ref());
        places.retain(|it| {
            state.schemes.contains_key(&it.layers.smooth) || it.layers.balance.iter().any(|it| args(it).is_some())
        });
        for place in &places {
            let refuse = |reason: &str| {
                let (smooth, reason) = (place.layers.smooth.clone(), reason.to_owned());
                Err(crate::Error::from(ErrorKind::Mapping { smooth, reason }).into())
            };
            let is_tensor = |it: &String| args(it).is_some_and(|it| it.strategy == QuantizationStrategy::Tensor);
            if self.config.duo_scaling != DuoScaling::Off && place.layers.balance.iter().any(is_tensor) {
                return refuse("duo_scaling needs more than one scale per weight, found strategy tensor");
            }
            let is_expert = |it: &String| it.contains(".experts.") && it.ends_with("down_proj");
            if state.loss_masks.is_some() && place.layers.balance.iter().any(is_expert) {
                return refuse("a loss mask cannot follow tokens into experts");
            }
        }
        if places.is_empty() {
            return Err(Error::failed(
                "no mapped layer has a scheme, expected a quantizing modifier after AWQModifier that targets some",
            ));
        }
        Ok(places)
    }

    fn smooth(&mut self, state: &mut State, place: &Place, seen: &Seen) -> Result<()> {
        let layers = &place.layers;
        let mut weights = Vec::with_capacity(layers.balance.len());
        for name in &layers.balance {
            weights.push(Parameter::read(state.model()?, name, "weight")?);
        }
        let names: Vec<String> = layers.balance.iter().map(|it| format!("{it}.weight")).collect();
        let sets = fused_modules(&layers.balance.iter().map(String::as_str).collect::<Vec<_>>());
        let balance: Vec<Balance<'_>> = weights
            .iter()
            .enumerate()
            .map(|(idx, weight)| Balance {
                args: state.schemes.get(&layers.balance[idx]).and_then(|it| it.weights.as_ref()),
                float: weight.float,
                rows: weight.shape.first().copied().unwrap_or(0),
                weight: &weight.values,
                fused: sets.iter().position(|set| set.contains(&idx)),
            })
            .collect();
        let x_mean = seen.mean.mean()?;
        let w_mean = weight_mean(x_mean.len(), &balance)?;
        let found = match (&seen.gram, balance.as_slice()) {
            (Some(gram), [only]) => {
                search(&self.config.grid, &x_mean, &w_mean, &balance, &mut |it| gram.loss(only.weight, &it[0]))?
            }
            _ => {
                let outputs = self.outputs.get(&place.parent).map_or(&[][..], Vec::as_slice);
                check_len("outputs of a parent", outputs.len(), &[seen.batches.len()])?;
                let run = Rerun { model: state.model()?, profile: self.profile, place, seen, outputs, names: &names };
                run.judge(|loss| race(&self.config.grid, &x_mean, &w_mean, &balance, seen.batches.len(), loss))?
            }
        };
        apply(state.model_mut()?, layers, &found.scales)?;
        self.report.push(json!({
            "smooth": layers.smooth,
            "balance": layers.balance,
            "tokens": seen.mean.n_tokens(),
            "candidate": {"ratio": self.config.grid[found.index].ratio, "duo_scaling": self.config.grid[found.index].duo},
            "loss": found.compared[1],
            "loss_of_first": found.compared[0],
            "losses": found.losses,
        }));
        Ok(())
    }
}

/// Losses from running the parent of a mapping again.
struct Rerun<'a> {
    model: &'a dyn ModuleStore,
    profile: Profile,
    place: &'a Place,
    seen: &'a Seen,
    /// What the parent gave before anything was changed.
    outputs: &'a [(usize, Dense<'static>)],
    /// Names of the weights that change.
    names: &'a [String],
}

impl Rerun<'_> {
    fn judge(&self, search: impl FnOnce(Judge<'_>) -> crate::Result<Best>) -> Result<Best> {
        // A fault of the model is kept aside, for the search knows only its own.
        let mut fault = None;
        let (seen, outputs, profile) = (self.seen, self.outputs, self.profile);
        let mut loss = |weights: &[Vec<f32>], range: Range<usize>| -> crate::Result<Vec<BatchLoss>> {
            let replaced: Vec<(&str, &[f32])> =
                self.names.iter().zip(weights).map(|(name, it)| (name.as_str(), it.as_slice())).collect();
            let judge = |batch: usize, output: &dyn Activation| {
                let mask = seen.batches[batch].1.as_deref();
                Ok(BatchLoss::of_values(profile, &outputs[batch].1, &Dense::of(output)?, mask)?)
            };
            self.each(range, &replaced, &judge).map_err(|error| {
                fault = Some(error);
                ErrorKind::NoFiniteLoss { candidates: 0 }.into()
            })
        };
        let found = search(&mut loss);
        match fault {
            Some(fault) => Err(fault),
            None => Ok(found?),
        }
    }

    /// What `see` makes of the parent's output in each of some batches.
    fn each<T: Send + Sync>(
        &self,
        range: Range<usize>,
        replaced: &[(&str, &[f32])],
        see: &(dyn Fn(usize, &dyn Activation) -> Result<T> + Sync),
    ) -> Result<Vec<T>> {
        let batches: Vec<usize> = self.seen.batches[range.clone()].iter().map(|it| it.0).collect();
        let made: Vec<OnceLock<T>> = batches.iter().map(|_| OnceLock::new()).collect();
        self.model.rerun(&self.place.parent, &batches, replaced, &|idx, output| {
            let seen = see(range.start + idx, output)?;
            made[idx].get_or_init(|| seen);
            Ok(())
        })?;
        Ok(made.into_iter().filter_map(OnceLock::into_inner).collect())
    }
}

/// Whether the smoothed layer gives as many channels as its readers take.
fn fits(model: &dyn ModuleStore, layers: &Resolved) -> Result<bool> {
    let shape = |name: &str| -> Result<Vec<usize>> {
        let weight = model.module(name)?.parameters.get("weight");
        Ok(weight.map(|it| it.shape.clone()).unwrap_or_default())
    };
    let smooth = shape(&layers.smooth)?;
    let Some(&given) = smooth.first() else { return Ok(false) };
    for name in &layers.balance {
        let Some(&taken) = shape(name)?.get(1) else { return Ok(false) };
        let is_fused = smooth.len() > 1 && given > taken && !layers.smooth.ends_with("v_proj");
        let is_qkv = layers.smooth.ends_with("qkv_proj");
        if (is_qkv && given != 3 * taken) || (given != taken && !is_fused) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The nearest module around all of them that is no list of modules; a single one is its own parent.
fn parent_of(balance: &[String], modules: &[NamedModule<'_>]) -> String {
    let mut ancestor = lowest_common_ancestor(balance.iter().map(|it| Some(it.as_str())));
    let is_list = |name: &str| modules.iter().any(|it| it.name == name && it.classes.contains(&"ModuleList"));
    while is_list(&ancestor) {
        ancestor = crate::smoothquant::mappings::parent(&ancestor).unwrap_or_default().to_owned();
    }
    ancestor
}

impl Modifier for AwqModifier {
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

    fn wave(&self) -> Wave {
        Wave::Layer
    }

    fn reads(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        let places = self.places(model)?;
        Ok(places.into_iter().flat_map(|it| std::iter::once(it.parent).chain(it.layers.balance)).collect())
    }

    fn writes(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        let places = self.places(model)?.into_iter().map(|it| it.layers);
        Ok(places.flat_map(|it| std::iter::once(it.smooth).chain(it.balance)).collect())
    }

    fn taps(&self, model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        let mut taps: Vec<Tap> = Vec::new();
        for place in self.places(model)? {
            let output = place.is_rerun().then(|| Tap::new(place.parent, TapPoint::Output));
            for tap in std::iter::once(Tap::new(place.tapped, TapPoint::Input)).chain(output) {
                if !taps.contains(&tap) {
                    taps.push(tap);
                }
            }
        }
        Ok(taps)
    }

    fn reruns(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        let places = self.places(model)?.into_iter().filter(Place::is_rerun);
        Ok(places.map(|it| it.parent).collect())
    }

    fn rescales(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(self.places(model)?.into_iter().map(|it| it.layers.smooth).collect())
    }

    fn take_data(&mut self) -> Option<Value> {
        (!self.report.is_empty()).then(|| Value::Array(std::mem::take(&mut self.report)))
    }

    fn on_initialize(&mut self, state: &mut State) -> Result<bool> {
        self.profile = state.model()?.profile();
        self.resolve(state.model()?)?;
        Ok(true)
    }

    fn check(&self, state: &State) -> Result<()> {
        self.quantized(state).map(drop)
    }

    fn on_calibration_start(&mut self, state: &mut State, _event: &Event) -> Result<()> {
        self.mappings = Some(self.quantized(state)?);
        Ok(())
    }

    fn on_tap(&mut self, tap: &Tap, sample: &Sample<'_>) -> Result<()> {
        let shape = sample.value.shape();
        let (channels, elements) = (shape.last().copied().unwrap_or(0), shape.iter().product::<usize>());
        if elements == 0 {
            return Ok(());
        }
        if tap.point == TapPoint::Output {
            let outputs = self.outputs.entry(tap.module.clone()).or_default();
            // As of its inputs, the last call of a batch counts.
            if outputs.last().is_some_and(|it| it.0 == sample.batch_idx) {
                outputs.pop();
            }
            outputs.push((sample.batch_idx, Dense::of(sample.value)?.into_owned()));
            return Ok(());
        }
        let places = self.mappings.iter().flatten();
        let is_linear = places.filter(|it| it.tapped == tap.module).any(|it| it.parent == tap.module);
        let seen = self.seen.entry(tap.module.clone()).or_insert_with(|| Seen {
            mean: ActivationMean::new(channels),
            gram: is_linear.then(|| Gram::new(self.profile, channels)),
            batches: Vec::new(),
        });
        match Dense::of(sample.value)? {
            Dense::F32(x) => seen.observe(&x, sample.mask),
            Dense::Bf16(x) => seen.observe(&x, sample.mask),
            Dense::F16(x) => seen.observe(&x, sample.mask),
        }
        .map_err(|e| e.at(&tap.module))?;
        if seen.batches.last().is_none_or(|it| it.0 != sample.batch_idx) {
            seen.batches.push((sample.batch_idx, sample.mask.map(<[bool]>::to_vec)));
        }
        Ok(())
    }

    fn on_sequential_epoch_end(&mut self, state: &mut State, _event: &Event, modules: &[String]) -> Result<()> {
        let modules: HashSet<&str> = modules.iter().map(String::as_str).collect();
        let places: Vec<Place> = self.mappings.iter().flatten().cloned().collect();
        let wave: Vec<Place> = places.into_iter().filter(|it| modules.contains(it.tapped.as_str())).collect();
        // Statistics are those of the layer as it was; every smoothing keeps its function.
        let seen: IndexMap<String, Seen> =
            wave.iter().filter_map(|it| self.seen.shift_remove_entry(&it.tapped)).collect();
        for place in &wave {
            if let Some(seen) = seen.get(&place.tapped) {
                let at = |error: Error| error.at(lifecycle::Place::Module(place.layers.smooth.clone()));
                self.smooth(state, place, seen).map_err(at)?;
            }
        }
        for place in &wave {
            self.outputs.shift_remove(&place.parent);
        }
        Ok(())
    }

    fn on_finalize(&mut self, _state: &mut State) -> Result<bool> {
        if self.seen.is_empty() {
            return Ok(true);
        }
        let modules = self.seen.keys().cloned().collect();
        let what = "activations were gathered and never used";
        Err(crate::Error::from(ErrorKind::Statistics { what, modules }).into())
    }
}
