//! ModelOpt: NVFP4 checkpoints, read.

use serde_json::Value;

use super::{
    Converter, TensorShapes,
    modules::{
        bad_shape, check_dtype, check_lengths, check_shape, invalid, join, left_over, linears, matrix, merged, names,
        split,
    },
};
use crate::{
    Array, DType, ModuleTensors, Result,
    args::{ArgsBuilder, QuantizationArgs},
    config::{QuantizationConfig, QuantizationStatus},
    format::CompressionFormat,
    numbers::{read_f32, write_f32},
    presets::preset,
    target::{Matcher, NamedModule},
};

/// Columns that share a local scale.
const GROUP_SIZE: usize = 16;

/// Reads NVFP4 checkpoints of ModelOpt.
///
/// `weight` U8 (out, in / 2) becomes `weight_packed`, `weight_scale` stays, `weight_scale_2` and
/// `input_scale` become the reciprocals `weight_global_scale` and `input_global_scale`. Scales of the
/// key-value cache are cast.
#[derive(Clone, Debug)]
pub struct ModelOptNvfp4Converter {
    targets: Vec<String>,
    ignore: Vec<String>,
    kv_cache_scheme: Option<QuantizationArgs>,
    matcher: Matcher,
}

impl ModelOptNvfp4Converter {
    /// A converter for the modules that `targets` name, all linears if it has `Linear`.
    ///
    /// # Errors
    /// [`ErrorKind::Pattern`](crate::ErrorKind::Pattern) for a target or an ignore.
    pub fn new(targets: Vec<String>, ignore: Vec<String>, kv_cache_scheme: Option<QuantizationArgs>) -> Result<Self> {
        let matcher = Matcher::compile(&targets, &ignore)?;
        Ok(Self { targets, ignore, kv_cache_scheme, matcher })
    }

    /// Reads the `quantization_config` of a ModelOpt checkpoint.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`](crate::ErrorKind::InvalidField) for another algorithm than NVFP4.
    pub fn from_source_config(config: &Value) -> Result<Self> {
        let algorithm = config.get("quant_algo").unwrap_or(&Value::Null);
        if algorithm.as_str() != Some("NVFP4") {
            return Err(invalid("quant_algo", algorithm, "`NVFP4`"));
        }
        let ignore = match config.get("ignore").or_else(|| config.get("exclude_modules")) {
            None | Some(Value::Null) => Vec::new(),
            Some(names) => crate::wire::strings("ignore", names)?.iter().map(|it| from_glob(it)).collect(),
        };
        let fp8_cache = config.get("kv_cache_quant_algo").and_then(Value::as_str) == Some("FP8")
            || config.get("kv_cache_scheme").is_some_and(Value::is_object);
        let kv_cache_scheme = fp8_cache.then(|| ArgsBuilder::float(8).build()).transpose()?;
        Self::new(names(config, "targets")?.unwrap_or_else(linears), ignore, kv_cache_scheme)
    }

    fn is_target(&self, module: &str) -> Result<bool> {
        self.matcher.matches(NamedModule { name: module, classes: &["Linear"] })
    }

    /// Type of the cache's scales.
    fn cache_dtype(&self) -> Option<DType> {
        self.kv_cache_scheme.as_ref().map(|it| it.scale_dtype.unwrap_or(DType::BF16))
    }
}

/// A name in which `*` stands for anything, as a target.
fn from_glob(glob: &str) -> String {
    if !glob.contains(['*', '?']) {
        return glob.to_owned();
    }
    let parts: Vec<String> = glob.split('*').map(|it| regex::escape(it).replace(r"\?", ".")).collect();
    format!("re:{}$", parts.join(".*"))
}

/// What becomes of a tensor of a converted module.
fn new_name(local: &str) -> &str {
    match local {
        "weight" => "weight_packed",
        "weight_scale_2" => "weight_global_scale",
        "input_scale" => "input_global_scale",
        other => other,
    }
}

impl Converter for ModelOptNvfp4Converter {
    fn process_module(&self, module: &str, tensors: ModuleTensors) -> Result<ModuleTensors> {
        self.plan_module(module, &super::shapes_of(&tensors))?;
        check_lengths(&tensors)?;
        let is_target = self.is_target(module)?;
        let is_packed = is_target && tensors.contains_key("weight_scale_2");
        let mut converted = ModuleTensors::new();
        for (local, tensor) in tensors {
            let tensor = match (local.as_str(), self.cache_dtype()) {
                ("weight_scale_2" | "input_scale", _) if is_packed => reciprocal(&local, &tensor)?,
                ("k_scale" | "v_scale", Some(dtype)) if is_target => cast(&tensor, dtype)?,
                _ => tensor,
            };
            let name = if is_packed { new_name(&local) } else { &local };
            converted.insert(name.to_owned(), tensor);
        }
        Ok(converted)
    }

    fn plan_module(&self, module: &str, tensors: &TensorShapes) -> Result<TensorShapes> {
        if self.matcher.ignore.matches_name(module)? {
            return Ok(tensors.clone());
        }
        let is_target = self.is_target(module)?;
        let is_packed = is_target && tensors.contains_key("weight_scale_2");
        if is_packed {
            let [n_out, n_bytes] = matrix(tensors, "weight", &[DType::U8])?;
            if !n_bytes.is_multiple_of(GROUP_SIZE / 2) {
                let expected = format!("columns in multiples of {}", GROUP_SIZE / 2);
                return Err(bad_shape("weight", &[n_out, n_bytes], expected));
            }
            matrix(tensors, "weight_scale", &[DType::F8E4M3])?;
            check_shape(tensors, "weight_scale", &[n_out, n_bytes / (GROUP_SIZE / 2)])?;
            for name in ["weight_scale_2", "input_scale"] {
                if let Some(it) = tensors.get(name) {
                    check_dtype(name, it.dtype, &[DType::F32])?;
                }
            }
        } else if let Some(name) =
            ["weight_scale", "weight_scale_2", "input_scale"].iter().find(|it| tensors.contains_key(**it))
        {
            return Err(left_over(name, "there is no NVFP4 weight of a targeted module beside it"));
        }
        let orphan = ["k_scale", "v_scale"].iter().find(|it| tensors.contains_key(**it));
        if let Some(name) = orphan.filter(|_| is_target && self.kv_cache_scheme.is_none()) {
            return Err(left_over(name, "no kv_cache_scheme was given"));
        }
        let mut planned = TensorShapes::new();
        for (local, it) in tensors {
            let mut it = it.clone();
            if let ("k_scale" | "v_scale", Some(dtype), true) = (local.as_str(), self.cache_dtype(), is_target) {
                it.dtype = dtype;
            }
            planned.insert(if is_packed { new_name(local) } else { local }.to_owned(), it);
        }
        Ok(planned)
    }

    fn dependencies(&self, name: &str, exists: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        let (module, local) = split(name);
        if local != "weight" || !exists(&join(module, "weight_scale_2")) || !self.is_target(module)? {
            return Ok(Vec::new());
        }
        let mut needed = vec![join(module, "weight_scale"), join(module, "weight_scale_2")];
        let input = join(module, "input_scale");
        if exists(&input) {
            needed.push(input);
        }
        Ok(needed)
    }

    fn update_config(&self, config: Option<QuantizationConfig>) -> Result<Option<QuantizationConfig>> {
        let format = CompressionFormat::Nvfp4PackQuantized;
        let mut scheme = preset("NVFP4", self.targets.clone())?;
        if let Some(weights) = &mut scheme.weights {
            // The weights are quantized already, so that nobody observes them.
            weights.observer = None;
        }
        scheme.format = Some(format);
        let new = QuantizationConfig {
            config_groups: [("config_group_0".to_owned(), scheme)].into_iter().collect(),
            kv_cache_scheme: self.kv_cache_scheme.clone(),
            format: format.name().to_owned(),
            quantization_status: QuantizationStatus::Compressed,
            ignore: self.ignore.clone(),
            ..QuantizationConfig::default()
        };
        merged(config, new)
    }
}

/// 1 / x in f32.
fn reciprocal(name: &str, scale: &Array) -> Result<Array> {
    let mut values = vec![0.0; scale.elements()];
    read_f32(scale.dtype, &scale.data, &mut values)?;
    for value in &mut values {
        let reciprocal = 1.0 / *value;
        if !(*value > 0.0 && reciprocal.is_finite() && reciprocal > 0.0) {
            return Err(invalid(name, *value, "a positive scale with a finite reciprocal"));
        }
        *value = reciprocal;
    }
    let mut data = vec![0; scale.data.len()];
    write_f32(scale.dtype, &values, &mut data)?;
    Ok(Array { data, ..scale.clone() })
}

fn cast(scale: &Array, dtype: DType) -> Result<Array> {
    let mut values = vec![0.0; scale.elements()];
    read_f32(scale.dtype, &scale.data, &mut values)?;
    let mut data = vec![0; dtype.byte_len(values.len()).unwrap_or_default()];
    write_f32(dtype, &values, &mut data)?;
    Ok(Array { dtype, shape: scale.shape.clone(), data })
}
