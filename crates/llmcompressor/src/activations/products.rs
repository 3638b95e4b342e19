//! Linear layers whose products are taken of codes: 8-bit integers of weights and of inputs.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use checkpoint::Source;
use compressed_tensors::{
    DType,
    args::{QuantizationArgs, QuantizationStrategy, QuantizationType},
    dynamic::dynamic_qparams,
    format::CompressionFormat,
    numbers::Float,
    quantize::{Division, ScaleMap, quantize},
    scales::Arithmetic,
};
use graph::ModuleId;
use models::{BoxedError, HookGuard, Hooks, Model, Tap};
use rayon::prelude::*;
use tensor::{CodedLinear, Engine, Scales, Tensor};

use super::{Quantizer, TASK_TOKENS, numbers};
use crate::{
    catalog::{Catalog, StoredModule},
    error::Result,
    eval::DenseWeights,
};

/// What linear layers multiply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Product {
    /// Numbers of the type computed in, those that codes stand for among them.
    #[default]
    Numbers,
    /// The same, those of bf16 in block floating point where the processor is faster by it (see [`tensor::Engine::exact`]).
    Blocks,
    /// Codes, where weights and inputs have 8-bit integers, and numbers elsewhere: exact sums, scaled at the end.
    Int8,
}

/// The linear layers of a model that multiply codes.
#[derive(Default)]
pub(crate) struct Integers {
    linears: HashMap<ModuleId, CodeLinear>,
    is_kept: Arc<AtomicBool>,
}

/// A linear layer by its codes.
#[derive(Clone)]
struct CodeLinear {
    /// Name of the module on disk.
    name: String,
    bias: Option<String>,
    input: Quantizer,
}

/// What is stored of a linear layer.
struct Codes {
    w: Vec<i8>,
    scales: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Integers {
    /// The layers whose weights are stored as 8-bit integers around zero with a scale per row or one for all, and whose inputs are
    /// 8-bit integers with a scale per token or one for all.
    ///
    /// Experts are not among them, since they run as one, and the output head is not, since it runs in tiles.
    ///
    /// # Errors
    /// `Format` for scales that are absent or of an unknown type.
    pub(crate) fn find(model: &Model, source: &Source, catalog: &Catalog) -> Result<Self> {
        let head = model.causal().map(|it| it.head);
        let mut linears = HashMap::new();
        for id in model.tree().ids() {
            let Some(linear) = model.linear(id).filter(|_| head != Some(id)) else { continue };
            if model.tree().path(id).split('.').any(|it| it == "experts") {
                continue;
            }
            let tensor = &model.store().info(linear.weight).name;
            let name = tensor.strip_suffix(".weight").unwrap_or(tensor);
            let Some(args) = catalog.get(name).and_then(|it| input_args(source, it)) else { continue };
            let input = Quantizer::read(args, source, &format!("{name}.input"))?;
            let bias = linear.bias.map(|it| model.store().info(it).name.clone());
            linears.insert(id, CodeLinear { name: name.to_owned(), bias, input });
        }
        Ok(Self { linears, is_kept: Arc::default() })
    }

    /// Number of layers.
    pub(crate) fn len(&self) -> usize {
        self.linears.len()
    }

    pub(super) fn has(&self, module: ModuleId) -> bool {
        self.linears.contains_key(&module)
    }

    /// Keeps codes in memory from now on, once they are read.
    pub(crate) fn keep(&self) {
        self.is_kept.store(true, Ordering::Relaxed);
    }

    /// Computes the layers while the guards live.
    pub(crate) fn compute(&self, hooks: &Hooks, engine: &Engine, weights: &Arc<DenseWeights>) -> Vec<HookGuard> {
        let add = |(&id, linear): (&ModuleId, &CodeLinear)| {
            let (engine, weights, linear) = (engine.clone(), Arc::clone(weights), linear.clone());
            let (is_kept, kept) = (Arc::clone(&self.is_kept), Mutex::<Option<Arc<Codes>>>::default());
            hooks.add(id, Tap::Instead, move |heard| {
                let Some(x) = heard.first() else { return Ok(None) };
                let lock = || kept.lock().unwrap_or_else(PoisonError::into_inner);
                let known = lock().clone();
                let codes = match known {
                    Some(codes) => codes,
                    None => Arc::new(linear.read(weights.source())?),
                };
                if is_kept.load(Ordering::Relaxed) {
                    *lock() = Some(Arc::clone(&codes));
                }
                linear.multiply(&engine, x, &codes).map(Some)
            })
        };
        self.linears.iter().map(add).collect()
    }
}

/// How inputs of a module are quantized whose products can be taken of codes.
fn input_args<'a>(source: &Source, module: &'a StoredModule) -> Option<&'a QuantizationArgs> {
    use QuantizationStrategy as S;
    let stored = module.scheme.as_ref().filter(|it| it.format == CompressionFormat::IntQuantized)?;
    let is_int8 = |it: &QuantizationArgs| it.num_bits == 8 && it.r#type == QuantizationType::Int;
    let weights = stored.scheme.weights.as_ref().filter(|it| is_int8(it) && it.symmetric)?;
    let input = stored.scheme.input_activations.as_ref().filter(|it| is_int8(it))?;
    let codes = source.get(&format!("{}.weight", module.name))?;
    let fits = matches!(weights.strategy, S::Channel | S::Tensor)
        && matches!(input.strategy, S::Token | S::Tensor)
        && codes.dtype == DType::I8;
    fits.then_some(input)
}

impl CodeLinear {
    fn read(&self, source: &Source) -> Result<Codes> {
        let codes = source.read(source.require(&format!("{}.weight", self.name))?)?;
        Ok(Codes {
            w: codes.into_iter().map(u8::cast_signed).collect(),
            scales: numbers(source, &format!("{}.weight_scale", self.name))?,
            bias: self.bias.as_ref().map(|it| numbers(source, it)).transpose()?,
        })
    }

    /// x (..., N) -> (..., O), in the type of x.
    fn multiply(&self, engine: &Engine, x: &Tensor, codes: &Codes) -> Result<Tensor, BoxedError> {
        let args = &self.input.args;
        let float = Float::of(x.dtype(), "activation")?;
        let (values, shape) = (x.to_f32()?, x.shape());
        let columns = shape.last().copied().unwrap_or(1).max(1);
        let tokens = values.len() / columns;
        let is_one_range = self.input.is_one_range(shape);
        let task = if is_one_range { tokens.max(1) } else { TASK_TOKENS };
        let arithmetic = Arithmetic::of(args)?;
        let mut found = vec![0i8; values.len()];
        let (mut scales, mut zero_points) = (vec![0.0f32; tokens], vec![0i8; tokens]);
        let tasks = found.par_chunks_mut(task * columns).zip(values.par_chunks(task * columns));
        let tasks = tasks.zip(scales.par_chunks_mut(task).zip(zero_points.par_chunks_mut(task)));
        tasks.try_for_each(|((found, values), (scales, zero_points))| -> Result<(), BoxedError> {
            let shape = if is_one_range { shape } else { &[1, values.len() / columns, columns] };
            let (map, qparams) = match &self.input.calibrated {
                Some(qparams) => (ScaleMap::calibrated(args, shape)?, qparams.clone()),
                None => dynamic_qparams(args, (values, float), shape, None)?,
            };
            let mut numbers = vec![0.0; values.len()];
            quantize(&arithmetic, (values, float), &map, &qparams, Division::Eager, &mut numbers)?;
            // Codes are integers from -128 to 127.
            found.iter_mut().zip(&numbers).for_each(|(to, code)| *to = *code as i8);
            for (token, (scale, zero_point)) in scales.iter_mut().zip(zero_points).enumerate() {
                let idx = map.index(token * columns);
                *scale = qparams.scales[idx];
                *zero_point = qparams.zero_points.as_ref().map_or(0, |it| it[idx] as i8);
            }
            Ok(())
        })?;
        let scales = Scales { x: &scales, w: &codes.scales, zero_points: (!args.symmetric).then_some(&zero_points) };
        let product = CodedLinear { x: &found, shape, w: &codes.w, scales, bias: codes.bias.as_deref() };
        Ok(product.forward(engine, x.dtype())?)
    }
}
