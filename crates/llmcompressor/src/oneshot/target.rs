//! A module with a scheme: what it becomes, how it is written, and how it is read back.

use checkpoint::{TensorSpec, Writer};
use compressed_tensors::{
    DType,
    args::{Dynamic, QuantizationArgs, QuantizationStrategy},
    format::{CompressionFormat, module_format},
    kv_cache::{HeadCounts, attention_scale_shape},
    numbers::{Float, read_f32},
    scales::Arithmetic,
    scheme::QuantizationScheme,
    weight_compressor::{Given, SlabOutputs, WeightCompressor},
    weight_decompressor::{StoredRows, WeightDecompressor},
};
use indexmap::IndexMap;
use lifecycle::ModuleStore;
use pipelines::ModelStore;
use serde_json::Value;

use crate::error::{ErrorKind, InContext, Result};

/// The weight of a module, and what is stored in its place.
pub(super) struct CompressedWeight {
    /// The module's name in the model.
    path: String,
    /// The name that its tensors are written under.
    written: String,
    /// The layout of what is written.
    pub(super) format: CompressionFormat,
    /// Type of the weight.
    float: Float,
    /// O.
    pub(super) rows: usize,
    /// N.
    pub(super) cols: usize,
    compressor: WeightCompressor,
    decompressor: WeightDecompressor,
}

/// What a module is called.
#[derive(Clone, Copy)]
pub(super) struct WeightNames<'a> {
    /// In the model.
    pub(super) path: &'a str,
    /// On disk, once it is written.
    pub(super) written: &'a str,
    /// The class that decides its format.
    pub(super) class: &'a str,
}

impl CompressedWeight {
    /// Plans the tensors of a weight.
    ///
    /// # Errors
    /// `Format` with the module's name for shapes and types that the scheme cannot take.
    pub(super) fn new(
        names: WeightNames<'_>,
        scheme: &QuantizationScheme,
        dtype: DType,
        [rows, cols]: [usize; 2],
    ) -> Result<Self> {
        let WeightNames { path, written, class } = names;
        let context = || format!("module `{path}`");
        let float = Float::of(dtype, "weight").context(context())?;
        let format = module_format(class, scheme, None);
        let compressor = WeightCompressor::new(scheme, format, dtype, rows, cols).context(context())?;
        let decompressor =
            WeightDecompressor::new(scheme, format, compressor.outputs(), [rows, cols]).context(context())?;
        Ok(Self {
            path: path.to_owned(),
            written: written.to_owned(),
            format,
            float,
            rows,
            cols,
            compressor,
            decompressor,
        })
    }

    /// Bytes of the weight before.
    pub(super) fn dense_bytes(&self) -> u64 {
        (self.rows * self.cols * self.float.dtype().bits() / 8) as u64
    }

    /// What it becomes, under full names.
    pub(super) fn outputs(&self) -> impl Iterator<Item = TensorSpec> + '_ {
        self.compressor.outputs().iter().map(|it| TensorSpec {
            name: format!("{}.{}", self.written, it.name),
            dtype: it.dtype,
            shape: it.shape.clone(),
        })
    }

    /// Writes the weight that the store holds under the scales that were added to it.
    ///
    /// # Errors
    /// A module without scales, a write that fails.
    pub(super) fn write(&self, store: &ModelStore, writer: &Writer) -> Result<()> {
        let context = || format!("module `{}`", self.path);
        let added = |local: &str| -> Result<Option<Vec<f32>>> {
            let facts = store.module(&self.path)?;
            if !facts.parameters.contains_key(local) {
                return Ok(None);
            }
            let array = store.array(&format!("{}.{local}", self.path))?;
            let mut values = vec![0.0; array.elements()];
            read_f32(array.dtype, &array.data, &mut values).context(context())?;
            if !local.ends_with("zero_point") {
                check_scales(&self.path, local, &values)?;
            }
            Ok(Some(values))
        };
        let scales = added("weight_scale")?.ok_or_else(|| ErrorKind::NoScale { module: self.path.clone() })?;
        let zero_points = added("weight_zero_point")?;
        let global_scale = added("weight_global_scale")?.and_then(|it| it.first().copied());
        let given = Given { scales: &scales, zero_points: zero_points.as_deref() };
        let weight = store.row_bytes(&format!("{}.weight", self.path), 0..self.rows)?;
        let mut out = SlabOutputs::new();
        self.compressor.compress_rows_with(0, &weight, given, global_scale, &mut out).context(context())?;
        let rest = self.compressor.finish_with(given, global_scale).context(context())?;
        for (idx, spec) in self.outputs().enumerate() {
            if let Some(range) = self.compressor.output_range(idx, 0, self.rows) {
                writer.write_at(&spec.name, range.start as u64, out.bytes(idx))?;
            }
            if let Some((_, bytes)) = rest.iter().find(|it| it.0 == idx) {
                writer.write_at(&spec.name, 0, bytes)?;
            }
        }
        Ok(())
    }

    /// The weight as a loader will read it: bytes of its own type, from what was written.
    ///
    /// # Errors
    /// A read that fails.
    pub(super) fn read_back(&self, writer: &Writer) -> Result<Vec<u8>> {
        let mut stored: IndexMap<&str, Vec<u8>> = IndexMap::new();
        for (local, spec) in self.compressor.outputs().iter().zip(self.outputs()) {
            stored.insert(local.name.as_str(), read_planned(writer, &spec)?);
        }
        let of = |local: &str| stored.get(local).map(Vec::as_slice);
        let global_scale = of("weight_global_scale").and_then(|it| it.first_chunk::<4>().copied());
        let rows = StoredRows {
            codes: of("weight_packed").or_else(|| of("weight")).unwrap_or_default(),
            scale: of("weight_scale").unwrap_or_default(),
            zero_point: of("weight_zero_point"),
            global_scale: global_scale.map(f32::from_le_bytes),
            g_idx: None,
        };
        let mut dense = Vec::new();
        let decompressed = self.decompressor.decompress_rows(0, self.rows, &rows, self.float.dtype(), &mut dense);
        decompressed.context(format!("module `{}`", self.path))?;
        Ok(dense)
    }
}

/// Refuses scales that no engine could divide by.
///
/// # Errors
/// `BadScale`, with the first.
pub(super) fn check_scales(module: &str, tensor: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|it| !it.is_finite() || *it == 0.0) {
        None => Ok(()),
        Some(position) => {
            let (module, tensor, value) = (module.to_owned(), tensor.to_owned(), values[position]);
            Err(ErrorKind::BadScale { module, tensor, position, value }.into())
        }
    }
}

/// A planned tensor as it was written.
pub(super) fn read_planned(writer: &Writer, spec: &TensorSpec) -> Result<Vec<u8>> {
    let mut bytes = vec![0; spec.n_bytes().and_then(|it| usize::try_from(it).ok()).unwrap_or(0)];
    writer.read_into(&spec.name, 0, &mut bytes)?;
    Ok(bytes)
}

/// The tensors that calibrated activations of a scheme add to a module, under local names.
///
/// `dtype` is the type that activations have.
///
/// # Errors
/// `Format` for a strategy whose scales depend on the data's shape.
pub(super) fn activation_outputs(scheme: &QuantizationScheme, dtype: DType) -> Result<Vec<TensorSpec>> {
    let mut outputs = Vec::new();
    let parts = [("input", &scheme.input_activations), ("output", &scheme.output_activations)];
    for (base, args) in parts {
        if let Some(args) = args {
            if args.dynamic == Dynamic::No && args.strategy != QuantizationStrategy::Tensor {
                let what = format!("a calibrated {base} with a scale per {}", args.strategy.name());
                return Err(ErrorKind::Unplanned { what }.into());
            }
            outputs.extend(scale_outputs(base, args, dtype, &[1])?);
        }
    }
    Ok(outputs)
}

/// The tensors that calibration adds to attention whose keys and values are quantized, and queries where the scheme has targets.
///
/// `dtype` is the type that activations have, `config` that of the model.
///
/// # Errors
/// `Format` for a config without the numbers of heads that scales per head take, `Unplanned` for another strategy.
pub(super) fn attention_outputs(
    args: &QuantizationArgs,
    queries: Queries,
    config: &Value,
    dtype: DType,
) -> Result<Vec<TensorSpec>> {
    if args.dynamic != Dynamic::No {
        return Ok(Vec::new());
    }
    let [q, kv] = match args.strategy {
        QuantizationStrategy::Tensor => [1, 1],
        QuantizationStrategy::AttnHead => {
            let text = config.get("text_config").unwrap_or(config);
            let heads = HeadCounts::from_config(text).context("config.json")?;
            [heads.n_heads, heads.n_kv_heads]
        }
        other => {
            let what = format!("calibrated keys and values with a scale per {}", other.name());
            return Err(ErrorKind::Unplanned { what }.into());
        }
    };
    let queries = (queries == Queries::Quantized).then_some(("q", q));
    let parts = queries.into_iter().chain([("k", kv), ("v", kv)]);
    let outputs = parts.map(|(base, heads)| scale_outputs(base, args, dtype, &attention_scale_shape(args, heads)));
    Ok(outputs.collect::<Result<Vec<_>>>()?.concat())
}

/// Whether attention quantizes its queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queries {
    /// It does.
    Quantized,
    /// Keys and values alone.
    Plain,
}

/// The tensors of the scale named `base`, of this shape.
fn scale_outputs(base: &str, args: &QuantizationArgs, dtype: DType, shape: &[usize]) -> Result<Vec<TensorSpec>> {
    let mut outputs = Vec::new();
    let mut push = |local: &str, dtype: DType, shape: &[usize]| {
        outputs.push(TensorSpec { name: format!("{base}_{local}"), dtype, shape: shape.to_vec() });
    };
    if args.dynamic != Dynamic::Yes && args.strategy == QuantizationStrategy::TensorGroup {
        push("global_scale", DType::F32, &[1]);
    }
    if args.dynamic != Dynamic::No {
        return Ok(outputs);
    }
    push("scale", dtype, shape);
    if !args.symmetric {
        push("zero_point", Arithmetic::of(args).context("zero point")?.zp_dtype, shape);
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_scale_that_is_zero_or_not_finite_is_refused_with_its_module_and_place() {
        check_scales("model.layers.0.mlp.up_proj", "weight_scale", &[0.5, -1.0]).unwrap();
        for value in [0.0, f32::NAN, f32::INFINITY] {
            let error = check_scales("model.layers.0.mlp.up_proj", "weight_scale", &[0.5, value]).unwrap_err();
            let ErrorKind::BadScale { module, tensor, position: 1, .. } = error.kind() else { panic!("{error}") };
            assert_eq!((module.as_str(), tensor.as_str()), ("model.layers.0.mlp.up_proj", "weight_scale"));
            assert_eq!(error.exit_code(), crate::ExitCode::BadInput);
        }
    }
}
