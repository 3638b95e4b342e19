//! FP8 in blocks, as DeepSeek writes it: e4m3 weights with a scale for each tile, to dense weights.

use serde_json::Value;

use super::{
    Converter, TensorShape, TensorShapes,
    modules::{bad_shape, check_dtype, check_lengths, containing, invalid, left_over, missing, names, split, take},
};
use crate::{
    Array, DType, ModuleTensors, Result,
    config::QuantizationConfig,
    numbers::{e4m3_to_f32, e8m0_to_f32, read_f32, write_f32},
    target::{Matcher, NamedModule},
};

/// What the name of a tensor's scales ends in.
const SUFFIX: &str = "_scale_inv";

/// Dequantizes FP8 checkpoints with block scales.
///
/// A tensor `X` of e4m3 codes and `X_scale_inv` become `X`, code times scale in f32, then cast. Scales are
/// f32, bf16, or e8m0 exponents (as such or as bytes). The last two dimensions are tiled; tiles at the edges
/// may be ragged. Dimensions before them (experts) have scales of their own.
#[derive(Clone, Debug)]
pub struct Fp8BlockDequantizer {
    block: [usize; 2],
    dtype: DType,
    matcher: Matcher,
}

impl Fp8BlockDequantizer {
    /// A dequantizer to `dtype` of the modules that `targets` name, of all if it is empty.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`](crate::ErrorKind::InvalidField) for an empty block or a dtype that is no
    /// dense float, [`ErrorKind::Pattern`](crate::ErrorKind::Pattern) for a target or an ignore.
    pub fn new(targets: &[String], ignore: &[String], block: [usize; 2], dtype: DType) -> Result<Self> {
        if block.contains(&0) {
            return Err(invalid("weight_block_size", format!("{block:?}"), "two positive numbers"));
        }
        check_output(dtype)?;
        Ok(Self { block, dtype, matcher: Matcher::compile(targets, ignore)? })
    }

    /// Reads the `quantization_config` of an FP8 checkpoint.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`](crate::ErrorKind::InvalidField) without `weight_block_size`.
    pub fn from_source_config(config: &Value, dtype: DType) -> Result<Self> {
        let block = config.get("weight_block_size").unwrap_or(&Value::Null);
        let sizes = block.as_array().map(|it| it.iter().map(|n| n.as_u64().map(|n| n as usize)).collect());
        let Some(Some(sizes)): Option<Option<Vec<usize>>> = sizes else {
            return Err(invalid("weight_block_size", block, "rows and columns of a block"));
        };
        let &[rows, cols] = sizes.as_slice() else {
            return Err(invalid("weight_block_size", block, "rows and columns of a block"));
        };
        let ignore = match config.get("modules_to_not_convert") {
            None | Some(Value::Null) => Vec::new(),
            Some(names) => {
                let names = crate::wire::strings("modules_to_not_convert", names)?;
                names.iter().map(|it| containing(it)).collect()
            }
        };
        let ignore = names(config, "ignore")?.unwrap_or(ignore);
        Self::new(&names(config, "targets")?.unwrap_or_default(), &ignore, [rows, cols], dtype)
    }

    fn is_target(&self, module: &str) -> Result<bool> {
        let named = NamedModule { name: module, classes: &["Linear"] };
        let wanted = self.matcher.targets.is_empty() || self.matcher.targets.matches_module(named)?;
        Ok(wanted && !self.matcher.ignore.matches_name(module)?)
    }

    /// Checks a tensor and its scales.
    fn check(&self, name: &str, codes: &TensorShape, scales: &TensorShape) -> Result<()> {
        check_dtype(name, codes.dtype, &[DType::F8E4M3])?;
        let scale_name = format!("{name}{SUFFIX}");
        check_dtype(&scale_name, scales.dtype, &[DType::F32, DType::BF16, DType::F8E8M0, DType::U8])?;
        let [leading @ .., rows, cols] = codes.shape.as_slice() else {
            return Err(bad_shape(name, &codes.shape, "two dimensions or more"));
        };
        let mut expected = leading.to_vec();
        expected.extend([rows.div_ceil(self.block[0]), cols.div_ceil(self.block[1])]);
        if scales.shape == expected {
            return Ok(());
        }
        let [block_rows, block_cols] = self.block;
        let expected = format!("{expected:?} for {:?} in blocks of {block_rows} x {block_cols}", codes.shape);
        Err(bad_shape(&scale_name, &scales.shape, expected))
    }

    fn dequantize(&self, codes: &Array, scales: &Array) -> Result<Array> {
        let mut factors = vec![0.0; scales.elements()];
        if scales.dtype == DType::U8 {
            factors.iter_mut().zip(&scales.data).for_each(|(it, code)| *it = e8m0_to_f32(*code));
        } else {
            read_f32(scales.dtype, &scales.data, &mut factors)?;
        }
        let (rows, cols) = (codes.shape[codes.shape.len() - 2], codes.shape[codes.shape.len() - 1]);
        let tiles_across = cols.div_ceil(self.block[1]);
        let tiles_down = rows.div_ceil(self.block[0]);
        let width = self.dtype.bits() / 8;
        let mut data = vec![0; codes.data.len() * width];
        let mut values = vec![0.0; cols];
        let lines = codes.data.chunks(cols.max(1)).zip(data.chunks_mut((cols * width).max(1)));
        for (line, (codes, out)) in lines.enumerate() {
            let (matrix, row) = (line / rows, line % rows);
            let first = (matrix * tiles_down + row / self.block[0]) * tiles_across;
            for (col, (value, code)) in values.iter_mut().zip(codes).enumerate() {
                *value = e4m3_to_f32(*code) * factors[first + col / self.block[1]];
            }
            write_f32(self.dtype, &values, out)?;
        }
        Ok(Array { dtype: self.dtype, shape: codes.shape.clone(), data })
    }
}

/// Refuses types that no dense weight has.
pub(super) fn check_output(dtype: DType) -> Result<()> {
    match dtype {
        DType::BF16 | DType::F16 | DType::F32 => Ok(()),
        other => Err(invalid("dtype", other, "bfloat16, float16 or float32")),
    }
}

impl Converter for Fp8BlockDequantizer {
    fn process_module(&self, module: &str, mut tensors: ModuleTensors) -> Result<ModuleTensors> {
        let planned = self.plan_module(module, &super::shapes_of(&tensors))?;
        check_lengths(&tensors)?;
        if !self.is_target(module)? {
            return Ok(tensors);
        }
        let names: Vec<String> = planned.into_keys().collect();
        let mut converted = ModuleTensors::new();
        for name in names {
            let tensor = take(&mut tensors, &name)?;
            let tensor = match tensors.shift_remove(&format!("{name}{SUFFIX}")) {
                Some(scales) => self.dequantize(&tensor, &scales)?,
                None => tensor,
            };
            converted.insert(name, tensor);
        }
        Ok(converted)
    }

    fn plan_module(&self, module: &str, tensors: &TensorShapes) -> Result<TensorShapes> {
        let is_target = self.is_target(module)?;
        let is_ignored = self.matcher.ignore.matches_name(module)?;
        let mut planned = TensorShapes::new();
        for (name, it) in tensors {
            let mut it = it.clone();
            if let Some(owner) = name.strip_suffix(SUFFIX) {
                match tensors.contains_key(owner) {
                    _ if is_ignored => {}
                    true if is_target => continue,
                    true => return Err(left_over(name, "its module is neither target nor ignored")),
                    false => return Err(left_over(name, &format!("there is no `{owner}` beside it"))),
                }
            } else if is_target {
                match tensors.get(&format!("{name}{SUFFIX}")) {
                    Some(scales) => {
                        self.check(name, &it, scales)?;
                        it.dtype = self.dtype;
                    }
                    None if it.dtype == DType::F8E4M3 => return Err(missing(&format!("{name}{SUFFIX}"))),
                    None => {}
                }
            }
            planned.insert(name.clone(), it);
        }
        Ok(planned)
    }

    fn dependencies(&self, name: &str, exists: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        let scales = format!("{name}{SUFFIX}");
        let wanted = !name.ends_with(SUFFIX) && exists(&scales) && self.is_target(split(name).0)?;
        Ok(if wanted { vec![scales] } else { Vec::new() })
    }

    fn update_config(&self, _: Option<QuantizationConfig>) -> Result<Option<QuantizationConfig>> {
        Ok(None)
    }
}
