//! compressed-tensors checkpoints of every format, also retired ones, to dense weights.

use indexmap::IndexMap;
use serde_json::Value;

use super::{
    Converter, TensorShapes,
    fp8_block_dequantizer::check_output,
    modules::{bad_shape, check_lengths, invalid, join, left_over, missing, split, take},
};
use crate::{
    Array, DType, Error, ErrorKind, ModuleTensors, Result,
    args::QuantizationStrategy,
    codec::codec,
    config::{CheckpointConfig, QuantizationConfig},
    format::{CompressionFormat, infer_module_format},
    numbers::{read_f32, write_f32},
    retired::{decompress_marlin_24, decompress_sparse_24_bitmask, decompress_sparse_bitmask},
    scheme::QuantizationScheme,
    target::{NamedModule, Patterns},
    weight_compressor::TensorSpec,
    weight_decompressor::stored_shape,
};

/// Tensors that say how a weight, an activation or a cache is quantized; none is left in a dense checkpoint.
const QPARAMS: &[&str] = &[
    "weight_packed",
    "weight_shape",
    "weight_scale",
    "weight_zero_point",
    "weight_global_scale",
    "weight_g_idx",
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "output_scale",
    "output_zero_point",
    "output_global_scale",
    "q_scale",
    "q_zero_point",
    "k_scale",
    "k_zero_point",
    "v_scale",
    "v_zero_point",
];

/// Tensors of a retired sparse format.
const SPARSE: &[&str] = &["compressed", "bitmask", "shape", "row_offsets"];

/// Tensors of `marlin-24`.
const MARLIN: &[&str] = &["weight_packed", "scale_packed", "meta"];

/// Dequantizes checkpoints of this format to weights of one dtype.
///
/// What a module's tensors are decides how it is read: a module without codes and scales stays as it is,
/// whether or not a target matches it. Scales of activations and caches are dropped.
#[derive(Clone, Debug)]
pub struct CompressedTensorsDequantizer {
    config: QuantizationConfig,
    /// Every target of the config, and the group that it belongs to.
    targets: Patterns,
    groups: IndexMap<String, usize>,
    unquantized: Patterns,
    ignore: Patterns,
    dtype: DType,
}

impl CompressedTensorsDequantizer {
    /// A dequantizer for a checkpoint with this config; modules that `ignore` matches stay as they are.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] for a dtype that is no dense float, [`ErrorKind::Pattern`] for a target or
    /// an ignore.
    pub fn new(config: QuantizationConfig, ignore: &[String], dtype: DType) -> Result<Self> {
        check_output(dtype)?;
        let mut groups = IndexMap::new();
        for (idx, scheme) in config.config_groups.values().enumerate() {
            groups.extend(scheme.targets.iter().map(|target| (target.clone(), idx)));
        }
        let targets: Vec<&String> = groups.keys().collect();
        Ok(Self {
            targets: Patterns::compile(&targets).map_err(|e| e.at("config_groups"))?,
            unquantized: Patterns::compile(&config.ignore).map_err(|e| e.at("ignore"))?,
            ignore: Patterns::compile(ignore)?,
            groups,
            config,
            dtype,
        })
    }

    /// Reads a whole `config.json`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] where nothing is quantized, [`ErrorKind::Unsupported`] where transforms run with the model, which dense weights cannot take up.
    pub fn from_model_config(config: &Value, ignore: &[String], dtype: DType) -> Result<Self> {
        let found = CheckpointConfig::from_model_config(config)?;
        let Some(found) = found else {
            return Err(invalid("quantization_config", "absent", "that of a compressed-tensors checkpoint"));
        };
        let online = |it: &crate::transforms::TransformScheme| it.apply.iter().any(|it| it.location.is_online());
        if found.transforms.is_some_and(|it| it.config_groups.values().any(online)) {
            let what = "dequantizing a model with transforms at run time".to_owned();
            return Err(Error::from(ErrorKind::Unsupported { what }).at("transform_config"));
        }
        Self::new(found.quantization.unwrap_or_default(), ignore, dtype)
    }

    /// The scheme of a module, seen as a linear and then as an embedding.
    fn scheme(&self, module: &str) -> Result<&QuantizationScheme> {
        for class in ["Linear", "Embedding"] {
            let named = NamedModule { name: module, classes: &[class] };
            let found = self.targets.matching(named)?.first().and_then(|it| self.groups.get(*it)).copied();
            let scheme = found.and_then(|idx| self.config.config_groups.get_index(idx)).map(|(_, it)| it);
            if let Some(scheme) = scheme.filter(|it| it.weights.is_some())
                && !self.unquantized.matches_module(named)?
            {
                return Ok(scheme);
            }
        }
        Err(left_over("weight_scale", "no scheme of the config targets its module"))
    }

    fn format(&self, scheme: &QuantizationScheme) -> CompressionFormat {
        let of_model = CompressionFormat::from_name(&self.config.format).ok().filter(|it| codec(*it).is_ok());
        let of_model = of_model.filter(|it| *it != CompressionFormat::Dense);
        scheme.format.or(of_model).unwrap_or_else(|| infer_module_format("Linear", scheme))
    }

    fn is_kept(&self, module: &str) -> Result<bool> {
        self.ignore.matches_name(module)
    }

    fn cast(&self, weight: &Array) -> Result<Array> {
        if weight.dtype == self.dtype {
            return Ok(weight.clone());
        }
        let mut values = vec![0.0; weight.elements()];
        read_f32(weight.dtype, &weight.data, &mut values)?;
        let mut data = vec![0; values.len() * self.dtype.bits() / 8];
        write_f32(self.dtype, &values, &mut data)?;
        Ok(Array { dtype: self.dtype, shape: weight.shape.clone(), data })
    }
}

/// How a module is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stored {
    Dense,
    Codes,
    Marlin,
}

/// Judged by the tensors after sparse ones have been expanded.
fn stored(tensors: &TensorShapes) -> Stored {
    let is_float = |name| tensors.get(name).is_some_and(|it| it.dtype.is_dense_float());
    if tensors.contains_key("meta") && tensors.contains_key("scale_packed") {
        Stored::Marlin
    } else if tensors.contains_key("weight_packed") || (tensors.contains_key("weight_scale") && !is_float("weight")) {
        Stored::Codes
    } else {
        Stored::Dense
    }
}

fn is_sparse<T>(tensors: &IndexMap<String, T>) -> bool {
    tensors.contains_key("bitmask") && tensors.contains_key("compressed")
}

impl Converter for CompressedTensorsDequantizer {
    fn process_module(&self, module: &str, mut tensors: ModuleTensors) -> Result<ModuleTensors> {
        if self.is_kept(module)? {
            return Ok(tensors);
        }
        check_lengths(&tensors)?;
        if is_sparse(&tensors) {
            let dense = if tensors.contains_key("row_offsets") {
                decompress_sparse_bitmask(&tensors)?
            } else {
                decompress_sparse_24_bitmask(&tensors)?
            };
            tensors.retain(|name, _| !SPARSE.contains(&name.as_str()));
            tensors.insert("weight".to_owned(), dense);
        }
        let shapes = super::shapes_of(&tensors);
        self.plan_module(module, &shapes)?;
        match stored(&shapes) {
            Stored::Dense => {}
            Stored::Marlin => {
                let args = self.scheme(module)?.weights.as_ref().ok_or_else(|| missing("weight"))?;
                let weight = decompress_marlin_24(&tensors, args)?;
                tensors.retain(|name, _| !MARLIN.contains(&name.as_str()));
                tensors.insert("weight".to_owned(), self.cast(&weight)?);
            }
            Stored::Codes => {
                let scheme = self.scheme(module)?;
                tensors = codec(self.format(scheme))?.decompress(tensors, scheme)?;
                let weight = take(&mut tensors, "weight")?;
                tensors.insert("weight".to_owned(), self.cast(&weight)?);
            }
        }
        tensors.retain(|name, _| !QPARAMS.contains(&name.as_str()));
        Ok(tensors)
    }

    fn plan_module(&self, module: &str, tensors: &TensorShapes) -> Result<TensorShapes> {
        if self.is_kept(module)? {
            return Ok(tensors.clone());
        }
        let mut planned = tensors.clone();
        // Values decide the shape of a sparse weight and of a packed one, so that headers tell only its dtype.
        let weight = match stored(tensors) {
            _ if is_sparse(tensors) => {
                return Err(Error::from(ErrorKind::Unsupported {
                    what: "planning a retired sparse format, whose shapes are stored as values,".to_owned(),
                }));
            }
            Stored::Dense => tensors.get("weight").cloned(),
            Stored::Marlin => {
                let packed = tensors.get("weight_packed").ok_or_else(|| missing("weight_packed"))?;
                let args = self.scheme(module)?.weights.as_ref().ok_or_else(|| missing("weight"))?;
                let bits = crate::packing::check_bits(args.num_bits)? as usize;
                let &[tile_rows, words] = packed.shape.as_slice() else {
                    return Err(bad_shape("weight_packed", &packed.shape, "two dimensions"));
                };
                let n_out = words.checked_mul(32).map(|it| it / bits / 16);
                let (Some(n_out), Some(n_in)) = (n_out, tile_rows.checked_mul(32)) else {
                    return Err(bad_shape("weight_packed", &packed.shape, "a matrix that fits the address space"));
                };
                Some(super::modules::shape(self.dtype, &[n_out, n_in]))
            }
            Stored::Codes => {
                let scheme = self.scheme(module)?;
                let format = self.format(scheme);
                for name in codec(format)?.required(scheme) {
                    // What only activations need is dropped anyway, and only one strategy has a second scale.
                    let grouped =
                        scheme.weights.as_ref().is_some_and(|it| it.strategy == QuantizationStrategy::TensorGroup);
                    let is_needed = !name.starts_with("input_") && (grouped || name != "weight_global_scale");
                    if is_needed && !tensors.contains_key(name) {
                        return Err(missing(name));
                    }
                }
                Some(super::modules::shape(self.dtype, &dense_shape(format, scheme, tensors)?))
            }
        };
        planned.retain(|name, _| !QPARAMS.contains(&name.as_str()) && !MARLIN.contains(&name.as_str()));
        if let Some(weight) = weight {
            planned.insert("weight".to_owned(), weight);
        }
        Ok(planned)
    }

    fn dependencies(&self, name: &str, exists: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        let (module, local) = split(name);
        let has = |local: &str| exists(&join(module, local));
        let root = ["weight_packed", "compressed", "weight"].into_iter().find(|it| has(it));
        if root != Some(local) || self.is_kept(module)? {
            return Ok(Vec::new());
        }
        let others = QPARAMS.iter().chain(SPARSE).chain(MARLIN).filter(|it| **it != local && has(it));
        let mut needed: Vec<String> = others.map(|it| join(module, it)).collect();
        needed.sort();
        needed.dedup();
        Ok(needed)
    }

    fn update_config(&self, _: Option<QuantizationConfig>) -> Result<Option<QuantizationConfig>> {
        Ok(None)
    }
}

/// The shape of the weight, as far as headers tell: the columns of packed integers are those of their words
/// or, more exactly, of their groups; `weight_shape` alone tells those of a row that ends inside a word.
fn dense_shape(format: CompressionFormat, scheme: &QuantizationScheme, tensors: &TensorShapes) -> Result<Vec<usize>> {
    if format != CompressionFormat::PackQuantized {
        let spec = |(name, it): (&String, &super::TensorShape)| TensorSpec {
            name: name.clone(),
            dtype: it.dtype,
            shape: it.shape.clone(),
        };
        let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
        return Ok(stored_shape(format, &specs)?.to_vec());
    }
    let extents = |name: &str| match tensors.get(name).map(|it| it.shape.as_slice()) {
        Some(&[rows, cols]) => Ok([rows, cols]),
        Some(other) => Err(bad_shape(name, other, "two dimensions")),
        None => Err(missing(name)),
    };
    let [rows, words] = extents("weight_packed")?;
    let args = scheme.weights.as_ref().ok_or_else(|| missing("weight_packed"))?;
    let bits = crate::packing::check_bits(args.num_bits)? as usize;
    let by_groups = match args.group_size.and_then(|it| usize::try_from(it).ok()).filter(|it| *it > 0) {
        Some(size) => extents("weight_scale")?[1].checked_mul(size),
        None => words.checked_mul(32).map(|it| it / bits),
    };
    let cols =
        by_groups.ok_or_else(|| bad_shape("weight_packed", &[rows, words], "a matrix that fits the address space"))?;
    Ok(vec![rows, cols])
}
