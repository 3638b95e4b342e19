//! What modules are given and give, and what attention keeps, quantized as a compressed checkpoint's config says.

mod products;

use std::{
    borrow::Cow,
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use checkpoint::Source;
use compressed_tensors::{
    args::{Dynamic, QuantizationArgs, QuantizationStrategy},
    config::SchemeTable,
    dynamic::fake_quantize_dynamic,
    kv_cache::{check_attention_scheme, is_cached_attention},
    numbers::{Float, read_f32, write_f32},
    quantize::{Qparams, ScaleMap, fake_quantize},
    scales::Arithmetic,
    scheme::QuantizationScheme,
    target::{NamedModule, is_narrow_match},
};
use graph::ModuleId;
use models::{BoxedError, HookGuard, Hooks, Model, Tap};
use rayon::prelude::*;
use tensor::{Budget, Tensor};

use crate::{
    catalog::{Catalog, Method},
    error::{InContext, Result},
};

/// Tokens that a task quantizes.
const TASK_TOKENS: usize = 32;

/// How the value at a tap is quantized.
#[derive(Clone, Debug, PartialEq)]
struct Quantizer {
    args: QuantizationArgs,
    /// Scales that were calibrated; none where they are found on every call.
    calibrated: Option<Qparams>,
    /// The calibrated second scale of groups.
    global_scale: Option<f32>,
}

/// Values and what became of them: the projections of one layer are given the same one, and each thread has a layer of its own.
type Latest = Arc<Mutex<VecDeque<(Tensor, Quantizer, Tensor)>>>;

pub(crate) use products::Integers;
pub use products::Product;

/// Quantizes inputs and outputs of all modules of `model` that `catalog` says to, while the guards live; inputs of those that
/// `products` computes stay as they are.
///
/// # Errors
/// `Format` for scales that are absent or of an unknown type.
pub(crate) fn quantize_activations(
    hooks: &Hooks,
    budget: &Budget,
    model: &Model,
    (source, catalog): (&Source, &Catalog),
    products: &Integers,
) -> Result<Vec<HookGuard>> {
    let latest = Latest::default();
    let mut guards = Vec::new();
    for id in model.tree().ids() {
        let Some(linear) = model.linear(id) else { continue };
        let tensor = &model.store().info(linear.weight).name;
        let name = tensor.strip_suffix(".weight").unwrap_or(tensor);
        let Some(stored) = catalog.get(name).and_then(|it| it.scheme.as_ref()) else { continue };
        for (tap, args, local) in taps(&stored.scheme).filter(|it| it.0 != Tap::Input || !products.has(id)) {
            let quantizer = Quantizer::read(args, source, &format!("{name}.{local}"))?;
            guards.push(hook(hooks, budget, &latest, (id, tap), quantizer));
        }
    }
    Ok(guards)
}

/// Quantizes keys, values and queries of the attentions of `model` as `catalog` says of caches and of attention, while the
/// guards live.
///
/// # Errors
/// `Format` for a scale that is absent or of an unknown type, for static schemes of a strategy that attention has no scales
/// for, and for a scheme of attention with weights or outputs.
pub(crate) fn quantize_attentions(
    hooks: &Hooks,
    budget: &Budget,
    model: &Model,
    (source, catalog): (&Source, &Catalog),
) -> Result<Vec<HookGuard>> {
    let Method::CompressedTensors(config) = &catalog.method else { return Ok(Vec::new()) };
    let Some(config) = &config.quantization else { return Ok(Vec::new()) };
    if config.kv_cache_scheme.is_none() && config.config_groups.is_empty() {
        return Ok(Vec::new());
    }
    let (tree, table) = (model.tree(), SchemeTable::new(config).context("config.json")?);
    let classes: Vec<[&str; 1]> = tree.ids().map(|id| [tree.class(id)]).collect();
    let modules: Vec<NamedModule<'_>> =
        tree.ids().map(|id| NamedModule { name: tree.path(id), classes: &classes[id.index()] }).collect();
    let mut guards = Vec::new();
    for module in model.attentions()?.into_iter().collect::<BTreeSet<_>>() {
        let children: Vec<&str> = tree.children(module).map(|it| it.0).collect();
        if !is_cached_attention(tree.class(module), &children) {
            continue;
        }
        let assigned = table.assign(modules[module.index()]).context("config.json")?;
        let is_meant = || is_narrow_match(modules.iter().copied(), table.targets(), tree.path(module));
        let scheme = match assigned {
            Some(it) if is_meant().context("config.json")? => Some(it.scheme),
            _ => None,
        };
        scheme.map_or(Ok(()), check_attention_scheme).context("config.json")?;
        // A scheme of attention is one of its cache too.
        let (args, taps) = match (scheme.and_then(|it| it.input_activations.as_ref()), &config.kv_cache_scheme) {
            (Some(args), _) => (args, &[(Tap::Query, "q"), (Tap::Key, "k"), (Tap::Value, "v")][..]),
            (None, Some(args)) => (args, &[(Tap::Key, "k"), (Tap::Value, "v")][..]),
            (None, None) => continue,
        };
        check_static(args)?;
        for &(tap, local) in taps {
            let quantizer = Quantizer::read(args, source, &format!("{}.{local}", stored_name(model, module)))?;
            let budget = budget.clone();
            guards.push(
                hooks.add(module, tap, move |heard| {
                    heard.first().map(|value| quantizer.apply(&budget, value)).transpose()
                }),
            );
        }
    }
    Ok(guards)
}

/// Refuses arguments whose stored scales attention does not have.
fn check_static(args: &QuantizationArgs) -> Result<()> {
    let is_known = matches!(args.strategy, QuantizationStrategy::Tensor | QuantizationStrategy::AttnHead);
    if is_known || args.dynamic != Dynamic::No {
        return Ok(());
    }
    let what = format!(
        "static quantization of keys and values by strategy `{}`, expected `tensor` or `attn_head`, or `dynamic: true`",
        args.strategy.name()
    );
    Err(compressed_tensors::Error::from(compressed_tensors::ErrorKind::Unsupported { what })).context("config.json")
}

/// The name under which a module's own tensors are stored: that of a projection without its last part.
fn stored_name(model: &Model, module: ModuleId) -> &str {
    let stored = model.tree().children(module).find_map(|(name, child)| {
        let weight = &model.store().info(model.linear(child)?.weight).name;
        weight.strip_suffix(".weight")?.strip_suffix(name)?.strip_suffix('.')
    });
    stored.unwrap_or_else(|| model.tree().path(module))
}

fn taps(scheme: &QuantizationScheme) -> impl Iterator<Item = (Tap, &QuantizationArgs, &'static str)> {
    let input = scheme.input_activations.as_ref().map(|it| (Tap::Input, it, "input"));
    let output = scheme.output_activations.as_ref().map(|it| (Tap::Output, it, "output"));
    input.into_iter().chain(output)
}

fn hook(
    hooks: &Hooks,
    budget: &Budget,
    latest: &Latest,
    (module, tap): (ModuleId, Tap),
    quantizer: Quantizer,
) -> HookGuard {
    let (budget, latest) = (budget.clone(), Arc::clone(latest));
    hooks.add(module, tap, move |heard| {
        let Some(value) = heard.first() else { return Ok(None) };
        let lock = || latest.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().iter().find(|it| it.0.is_same(value) && it.1 == quantizer).map(|it| it.2.clone());
        if known.is_some() {
            return Ok(known);
        }
        // Not under the lock: a thread that waits for its share may take up another window, and come here again.
        let quantized = quantizer.apply(&budget, value)?;
        let mut latest = lock();
        latest.truncate(rayon::current_num_threads() - 1);
        latest.push_front((value.clone(), quantizer.clone(), quantized.clone()));
        Ok(Some(quantized))
    })
}

impl Quantizer {
    /// With the scales that are stored under `prefix`, as in `model.layers.0.mlp.down_proj.input`.
    fn read(args: &QuantizationArgs, source: &Source, prefix: &str) -> Result<Self> {
        let global_scale = match args.strategy {
            QuantizationStrategy::TensorGroup => numbers(source, &format!("{prefix}_global_scale"))?.first().copied(),
            _ => None,
        };
        let calibrated = match args.dynamic {
            Dynamic::No => {
                let name = format!("{prefix}_scale");
                let entry = source.require(&name)?;
                let dtype = Float::of(entry.dtype, &name).context("activation scales")?;
                let zero_point = format!("{prefix}_zero_point");
                let zero_points = source.get(&zero_point).map(|_| numbers(source, &zero_point)).transpose()?;
                Some(Qparams { scales: numbers(source, &name)?, dtype, zero_points, global_scale })
            }
            Dynamic::Yes | Dynamic::Local => None,
        };
        Ok(Self { args: args.clone(), calibrated, global_scale })
    }

    /// Whether tokens of a value of this shape share one dynamic range.
    fn is_one_range(&self, shape: &[usize]) -> bool {
        self.calibrated.is_none() && (self.args.strategy == QuantizationStrategy::Tensor || shape.len() < 3)
    }

    /// The value quantized and turned back, in its own type.
    fn apply(&self, budget: &Budget, value: &Tensor) -> Result<Tensor, BoxedError> {
        let (dtype, shape) = (value.dtype(), value.shape());
        let float = Float::of(dtype, "activation")?;
        let values: Cow<'_, [f32]> = value.to_f32()?;
        let columns = shape.last().copied().unwrap_or(1).max(1);
        let is_one_range = self.is_one_range(shape);
        let heads = if shape.len() == 4 { shape[2].max(1) } else { 1 };
        // A scale per token, per group or from calibration does not depend on the tokens beside.
        let task = if is_one_range { values.len().max(1) } else { TASK_TOKENS * heads * columns };
        let width = dtype.bits() / 8;
        let arithmetic = Arithmetic::of(&self.args)?;
        Tensor::build_bytes(budget, dtype, shape, |out| {
            out.par_chunks_mut(task * width).zip(values.par_chunks(task)).try_for_each(|(out, values)| {
                // A token is all heads of it; groups end within a head.
                let row = if self.args.strategy == QuantizationStrategy::Token { heads * columns } else { columns };
                let shape = if is_one_range { shape } else { &[1, values.len() / row, row] };
                let mut quantized = vec![0.0; values.len()];
                match &self.calibrated {
                    Some(qparams) => {
                        // A scale per head, the tokens' heads one after the other: (B, H, T, D) with one token each.
                        let by_head = [values.len() / columns / heads, heads, 1, columns];
                        let is_by_head = self.args.strategy == QuantizationStrategy::AttnHead;
                        let shape = if is_by_head { &by_head[..] } else { shape };
                        let map = ScaleMap::calibrated(&self.args, shape)?;
                        fake_quantize(&arithmetic, (values, float), &map, qparams, &mut quantized)?;
                    }
                    None => {
                        let given = (values, float);
                        fake_quantize_dynamic(&self.args, given, shape, self.global_scale, &mut quantized)?;
                    }
                }
                write_f32(dtype, &quantized, out)?;
                Ok(())
            })
        })
    }
}

fn numbers(source: &Source, name: &str) -> Result<Vec<f32>> {
    let entry = source.require(name)?;
    let mut values = vec![0.0; entry.shape.iter().product()];
    read_f32(entry.dtype, &source.read(entry)?, &mut values).context(format!("tensor `{name}`"))?;
    Ok(values)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use compressed_tensors::args::ArgsBuilder;
    use tensor::DType;

    use super::*;

    #[test]
    fn a_token_of_keys_has_one_range_over_all_its_heads() {
        let (tokens, heads, width) = (2 * TASK_TOKENS + 3, 2, 4);
        let values: Vec<f32> = (0..tokens * heads * width).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let args = ArgsBuilder::int(8).strategy(QuantizationStrategy::Token).dynamic(Dynamic::Yes).build().unwrap();
        let quantizer = Quantizer { args, calibrated: None, global_scale: None };
        let budget = Budget::unlimited();
        let given = budget.tensor::<f32>(values.clone(), &[1, tokens, heads, width]).unwrap();
        let found = quantizer.apply(&budget, &given).unwrap();
        assert_eq!((found.dtype(), found.shape()), (DType::F32, given.shape()));
        for (token, (found, values)) in
            found.to_f32().unwrap().chunks(heads * width).zip(values.chunks(heads * width)).enumerate()
        {
            let scale = values.iter().fold(0.0, |max: f32, it| max.max(it.abs())) / 127.5;
            for (found, value) in found.iter().zip(values) {
                let expected = (value / scale).round_ties_even().clamp(-128.0, 127.0) * scale;
                assert!((found - expected).abs() <= 1e-6 * scale, "token {token}: {found} {expected}");
            }
        }
    }
}
