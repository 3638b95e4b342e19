//! Modules with a scheme: which ones, what is observed of them, and the scales that are written to them.

use std::collections::HashSet;

use compressed_tensors::{
    Array, DType,
    args::{ActivationOrdering, Dynamic, QuantizationArgs, QuantizationStrategy},
    config::{QuantizationConfig, SchemeTable},
    kv_cache::{cache_scheme, check_attention_scheme, is_cached_attention},
    minmax::{MinMaxObserver, Running},
    numbers::{Float, write_f32},
    quantize::{Qparams, ScaleMap},
    scales::{Arithmetic, global_scale},
    scheme::QuantizationScheme,
    target::{NamedModule, Patterns, is_narrow_match},
};
use indexmap::IndexMap;
use lifecycle::{
    Error, ModuleFacts, ModuleStore, Place, Result, Sample, State, Tap, TapPoint, matching::match_modules,
};

use super::algorithm::{WeightSpec, amax};
use crate::{error::ErrorKind, observers::fused_modules};

/// A module whose weight is a matrix, and its scheme.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// How it is quantized.
    pub scheme: QuantizationScheme,
    /// Type of its weight.
    pub float: Float,
    /// O.
    pub rows: usize,
    /// N.
    pub cols: usize,
    /// Whether it looks rows up instead of multiplying.
    pub is_embedding: bool,
}

impl Target {
    /// Its weight's shape under arguments for weights.
    pub fn weight_spec<'a>(&self, args: &'a QuantizationArgs) -> WeightSpec<'a> {
        WeightSpec { args, float: self.float, rows: self.rows, cols: self.cols }
    }
}

/// The modules of a model that a config quantizes, and the statistics of their activations.
#[derive(Debug, Default)]
pub struct Targets {
    modules: IndexMap<String, Target>,
    /// Attention modules whose keys and values are quantized, and their queries where the scheme has targets.
    attentions: IndexMap<String, QuantizationScheme>,
    observers: IndexMap<Tap, Observation>,
    idle_ignores: Vec<String>,
    /// Rows of inputs that were observed, by module.
    n_tokens: IndexMap<String, u64>,
}

/// A running range of an activation.
#[derive(Debug)]
struct Observation {
    args: QuantizationArgs,
    observer: Option<MinMaxObserver>,
    values: Vec<f32>,
}

/// Whether columns that groups do not divide are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divisibility {
    /// They are, all in one error.
    Checked,
    /// They are not.
    Bypassed,
}

impl Targets {
    /// Finds the modules of a config in a model; those that are frozen are left out.
    ///
    /// # Errors
    /// Targets that match nothing, weights of a type without arithmetic, groups that do not divide columns, a scheme for caches
    /// where modules are frozen.
    pub fn resolve(config: &QuantizationConfig, model: &dyn ModuleStore, check: Divisibility) -> Result<Self> {
        let patterns: Vec<&String> = config.config_groups.values().flat_map(|it| &it.targets).collect();
        let matched = match_modules(model, &patterns, &config.ignore)?;
        let table = SchemeTable::new(config)?;
        let mut targets = Self { idle_ignores: matched.idle_ignores, ..Self::default() };
        let mut indivisible = Vec::new();
        let cached = attentions(model);
        if let Some(args) = &config.kv_cache_scheme {
            if model.modules().iter().any(|it| it.frozen) {
                let kind = ErrorKind::InvalidField {
                    field: "kv_cache_scheme",
                    found: "given in a run over chosen modules".to_owned(),
                    expected: "none: a cache has one scheme in all layers".to_owned(),
                };
                return Err(crate::Error::from(kind).into());
            }
            let scheme = cache_scheme(args.clone());
            targets.attentions = cached.iter().map(|it| (it.clone(), scheme.clone())).collect();
        }
        let wanted: HashSet<&str> = matched.modules.iter().map(String::as_str).collect();
        for module in model.modules().iter().filter(|it| wanted.contains(it.name.as_str()) && !it.frozen) {
            let classes: Vec<&str> = module.classes.iter().map(String::as_str).collect();
            let mut found = None;
            for name in module.names() {
                found = found.or(table.assign(NamedModule { name, classes: &classes })?);
            }
            let Some(found) = found else { continue };
            let Some(target) = target(module, found.scheme)? else {
                let is_attention = cached.contains(&module.name);
                if is_attention && means_attention(model, &found.scheme.targets, &module.name)? {
                    check_attention_scheme(found.scheme).map_err(|e| Error::from(e.at(&module.name)))?;
                    targets.attentions.insert(module.name.clone(), found.scheme.clone());
                }
                continue;
            };
            if let Some(size) = group_size(&target)
                && target.cols >= size
                && !target.cols.is_multiple_of(size)
            {
                indivisible.push((module.name.clone(), target.cols, size));
            }
            targets.modules.insert(module.name.clone(), target);
        }
        if check == Divisibility::Checked && !indivisible.is_empty() {
            return Err(crate::Error::from(ErrorKind::Indivisible { modules: indivisible }).into());
        }
        Ok(targets)
    }

    /// The modules by name, in definition order.
    pub fn modules(&self) -> &IndexMap<String, Target> {
        &self.modules
    }

    /// Tells the modifiers before it how modules are quantized.
    pub fn publish(&self, state: &mut State) {
        for (name, target) in &self.modules {
            state.schemes.insert(name.clone(), target.scheme.clone());
        }
        for (name, scheme) in &self.attentions {
            state.schemes.insert(name.clone(), scheme.clone());
        }
    }

    /// Writes into the schemes in which order columns are visited.
    pub(crate) fn set_order(&mut self, order: ActivationOrdering) {
        let weights = self.modules.values_mut().filter_map(|it| it.scheme.weights.as_mut());
        weights.for_each(|it| it.actorder = Some(order));
    }

    /// Ignore patterns that match nothing: something to warn of.
    pub fn idle_ignores(&self) -> &[String] {
        &self.idle_ignores
    }

    /// Where activations are observed.
    pub fn taps(&self) -> Vec<Tap> {
        self.observed().into_iter().map(|it| it.0).collect()
    }

    fn observed(&self) -> Vec<(Tap, &QuantizationArgs)> {
        let mut all = Vec::new();
        for (name, target) in &self.modules {
            let points = [
                (TapPoint::Input, &target.scheme.input_activations),
                (TapPoint::Output, &target.scheme.output_activations),
            ];
            for (point, args) in points {
                if let Some(args) = args.as_ref().filter(|it| it.dynamic != Dynamic::Yes) {
                    all.push((Tap::new(name, point), args));
                }
            }
        }
        for (name, scheme) in &self.attentions {
            let Some(args) = scheme.input_activations.as_ref().filter(|it| it.dynamic != Dynamic::Yes) else {
                continue;
            };
            let queries = (!scheme.targets.is_empty()).then_some(TapPoint::Query);
            let points = queries.into_iter().chain([TapPoint::Key, TapPoint::Value]);
            all.extend(points.map(|point| (Tap::new(name, point), args)));
        }
        all
    }

    /// Prepares to observe.
    pub fn start(&mut self) {
        let fresh = |args: &QuantizationArgs| Observation { args: args.clone(), observer: None, values: Vec::new() };
        self.observers = self.observed().into_iter().map(|(tap, args)| (tap, fresh(args))).collect();
    }

    /// Takes a tapped value; taps that are not observed are passed over.
    ///
    /// # Errors
    /// Values of a type or shape without scales, observers outside the min-max family.
    pub fn observe(&mut self, tap: &Tap, sample: &Sample<'_>) -> Result<()> {
        let Some(observation) = self.observers.get_mut(tap) else { return Ok(()) };
        let at = |error: Error| error.at(Place::Module(tap.module.clone()));
        let rows = observation.observe(sample).map_err(at)?;
        if tap.point == TapPoint::Input {
            *self.n_tokens.entry(tap.module.clone()).or_default() += rows as u64;
        }
        Ok(())
    }

    /// Tokens whose inputs were observed in a module, once; none where inputs are not observed.
    pub fn take_tokens(&mut self, module: &str) -> Option<u64> {
        self.n_tokens.shift_remove(module)
    }

    /// Writes the scales of the activations that were observed in these modules, and forgets the statistics.
    ///
    /// # Errors
    /// A module that saw no batch, and a failed write.
    pub fn write_activations(&mut self, model: &mut dyn ModuleStore, modules: &HashSet<&str>) -> Result<()> {
        let done: Vec<Tap> = self.observers.keys().filter(|it| modules.contains(it.module.as_str())).cloned().collect();
        for tap in done {
            let Some(observation) = self.observers.shift_remove(&tap) else { continue };
            let base = match tap.point {
                TapPoint::Input => "input",
                TapPoint::Output => "output",
                TapPoint::Query => "q",
                TapPoint::Key => "k",
                TapPoint::Value => "v",
            };
            let Some(observer) = observation.observer else {
                return Err(Error::failed(format_args!("no batch has reached its {base}, so that it has no scale"))
                    .at(Place::Module(tap.module)));
            };
            let qparams = observer.qparams(&observation.args, None)?;
            write_qparams(
                model,
                &format!("{}.{base}", tap.module),
                &observation.args,
                &qparams,
                observer.scale_shape(),
            )?;
        }
        Ok(())
    }

    /// Reads the weights of the named modules that have a scheme for them, and finds their scales; fused weights share
    /// their global scale.
    ///
    /// # Errors
    /// A failed read, weights that are not finite, observers outside the min-max family.
    pub fn observe_weights(&self, model: &dyn ModuleStore, modules: &HashSet<&str>) -> Result<Vec<Observed>> {
        let mut observed = Vec::new();
        for (name, target) in self.modules.iter().filter(|it| modules.contains(it.0.as_str())) {
            let Some(args) = &target.scheme.weights else { continue };
            let at = |error: Error| error.at(Place::Module(name.clone()));
            // Nothing carries over between batches of a weight, so that all names of the family mean the same.
            Running::named(args.observer.as_deref().unwrap_or("memoryless_minmax"), args).map_err(|e| at(e.into()))?;
            let mut weight = vec![0.0; target.rows * target.cols];
            model.read_rows(&format!("{name}.weight"), 0..target.rows, &mut weight).map_err(at)?;
            if let Some(position) = weight.iter().position(|it| !it.is_finite()) {
                let message = format!("weight [{}, {}] is not finite", position / target.cols, position % target.cols);
                return Err(at(Error::failed(message)));
            }
            let ranges = target.weight_spec(args).ranges(&weight).map_err(|e| at(e.into()))?;
            observed.push(Observed { name: name.clone(), largest: amax(&ranges), weight, qparams: None });
        }
        let sets = fused_modules(&observed.iter().map(|it| it.name.as_str()).collect::<Vec<_>>());
        for idx in 0..observed.len() {
            let target = &self.modules[&observed[idx].name];
            let Some(args) = &target.scheme.weights else { continue };
            let set = sets.iter().find(|set| set.contains(&idx));
            let members = set.map_or_else(|| vec![idx], Clone::clone);
            let largest = members.into_iter().map(|it| observed[it].largest).fold(0.0, f32::max);
            let shared =
                (args.strategy == QuantizationStrategy::TensorGroup).then(|| global_scale(largest, target.float));
            let found = target.weight_spec(args).minmax(&observed[idx].weight, shared);
            observed[idx].qparams = Some(found.map_err(|e| Error::from(e.at(&observed[idx].name)))?);
        }
        Ok(observed)
    }

    /// Writes the scales of a weight.
    ///
    /// # Errors
    /// A failed write.
    pub fn write_weight(&self, model: &mut dyn ModuleStore, name: &str, qparams: &Qparams) -> Result<()> {
        let Some(target) = self.modules.get(name) else { return Ok(()) };
        let Some(args) = &target.scheme.weights else { return Ok(()) };
        let shape = ScaleMap::weight(args, &[target.rows, target.cols])?.scale_shape().to_vec();
        write_qparams(model, &format!("{name}.weight"), args, qparams, &shape)
    }
}

/// A weight and its scales before any change.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// Name of the module.
    pub name: String,
    /// The values.
    pub weight: Vec<f32>,
    /// Scales and zero points; present in what [`Targets::observe_weights`] gives.
    pub qparams: Option<Qparams>,
    largest: f32,
}

impl Observation {
    /// Adds a value and says how many rows it has.
    fn observe(&mut self, sample: &Sample<'_>) -> Result<usize> {
        let (shape, dtype) = (sample.value.shape(), sample.value.dtype());
        let elements: usize = shape.iter().product();
        if elements == 0 {
            return Ok(0);
        }
        let rows = elements / shape.last().copied().unwrap_or(1);
        self.values.resize(elements, 0.0);
        sample.value.read_rows(0..rows, &mut self.values)?;
        let float = Float::of(dtype, "activation")?;
        let map = match (self.args.strategy, shape) {
            // Heads of a token stand one after the other: (B, H, T, D) with one token each.
            (QuantizationStrategy::AttnHead, &[batch, tokens, heads, width]) => {
                ScaleMap::calibrated(&self.args, &[batch * tokens, heads, 1, width])?
            }
            _ => ScaleMap::calibrated(&self.args, shape)?,
        };
        let observer = match &mut self.observer {
            Some(observer) => observer,
            empty => {
                let running = Running::named(self.args.observer.as_deref().unwrap_or("minmax"), &self.args)?;
                empty.insert(MinMaxObserver::new(running, float))
            }
        };
        observer.observe(&self.values, &map)?;
        Ok(rows)
    }
}

/// A module with a matrix for its weight, where the scheme can be meant for it.
fn target(module: &ModuleFacts, scheme: &QuantizationScheme) -> Result<Option<Target>> {
    let Some(weight) = module.parameters.get("weight") else { return Ok(None) };
    let &[rows, cols] = weight.shape.as_slice() else { return Ok(None) };
    let float = Float::of(weight.dtype, "weight").map_err(|e| Error::from(e.at(&module.name)))?;
    let is_embedding = module.classes.iter().any(|it| it == "Embedding" || it.ends_with("Embedding"));
    Ok(Some(Target { scheme: scheme.clone(), float, rows, cols, is_embedding }))
}

fn group_size(target: &Target) -> Option<usize> {
    let args = target.scheme.weights.as_ref()?;
    let is_grouped = matches!(args.strategy, QuantizationStrategy::Group | QuantizationStrategy::TensorGroup);
    args.group_size.filter(|_| is_grouped).and_then(|it| usize::try_from(it).ok()).filter(|it| *it > 0)
}

/// Names of the modules that are attention with a cache.
fn attentions(model: &dyn ModuleStore) -> Vec<String> {
    let modules = model.modules();
    let is_attention = |module: &&ModuleFacts| {
        let children: Vec<&str> = modules
            .iter()
            .filter_map(|it| it.name.strip_prefix(&module.name)?.strip_prefix('.'))
            .filter(|it| !it.contains('.'))
            .collect();
        module.classes.iter().any(|class| is_cached_attention(class, &children))
    };
    modules.iter().filter(is_attention).map(|it| it.name.clone()).collect()
}

/// Whether targets mean an attention module itself, not what is around or below it.
fn means_attention(model: &dyn ModuleStore, targets: &[String], name: &str) -> Result<bool> {
    let classes: Vec<Vec<&str>> =
        model.modules().iter().map(|it| it.classes.iter().map(String::as_str).collect()).collect();
    let modules = model.modules().iter().zip(&classes).map(|(it, classes)| NamedModule { name: &it.name, classes });
    Ok(is_narrow_match(modules, &Patterns::compile(targets)?, name)?)
}

/// Adds `<base>_scale`, `<base>_zero_point` and `<base>_global_scale`, as far as the arguments have them.
fn write_qparams(
    model: &mut dyn ModuleStore,
    base: &str,
    args: &QuantizationArgs,
    qparams: &Qparams,
    shape: &[usize],
) -> Result<()> {
    let array = |dtype: DType, shape: &[usize], values: &[f32]| -> Result<Array> {
        let mut data = vec![0; dtype.byte_len(values.len()).unwrap_or_default()];
        write_f32(dtype, values, &mut data)?;
        Ok(Array { dtype, shape: shape.to_vec(), data })
    };
    if let Some(global) = qparams.global_scale {
        model.set_array(&format!("{base}_global_scale"), array(DType::F32, &[1], &[global])?)?;
    }
    if args.dynamic != Dynamic::No {
        return Ok(());
    }
    if let Some(position) = qparams.scales.iter().position(|it| !it.is_finite() || *it == 0.0) {
        return Err(Error::failed(format_args!(
            "{base}_scale {position} is {}, expected a finite number that is not 0",
            qparams.scales[position]
        )));
    }
    model.set_array(&format!("{base}_scale"), array(qparams.dtype.dtype(), shape, &qparams.scales)?)?;
    if let (false, Some(zero_points)) = (args.symmetric, &qparams.zero_points) {
        let dtype = Arithmetic::of(args)?.zp_dtype;
        model.set_array(&format!("{base}_zero_point"), array(dtype, shape, zero_points)?)?;
    }
    Ok(())
}
