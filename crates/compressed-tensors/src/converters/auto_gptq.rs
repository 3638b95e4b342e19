//! AutoGPTQ: checkpoints of 2, 3, 4 and 8 bits, read and written.

use serde_json::{Value, json};

use super::{
    Converter, TensorShapes,
    auto_awq::{packed_companions, single_scheme},
    modules::{
        bad_shape, check_lengths, check_shape, i32_array, invalid, join, left_over, linears, matrix, merged, names,
        shape, split, take, transposed, words,
    },
    packed_linear::{FLOATS, IntScheme, PackedLinear, scales_as_f16},
};
use crate::{
    DType, Error, ErrorKind, ModuleTensors, Result,
    config::QuantizationConfig,
    packing::{Layout, PackedDim, pack, transpose, unpack},
    target::{Matcher, NamedModule},
};

/// What AutoGPTQ names a linear's tensors.
const TENSORS: [&str; 4] = ["qweight", "qzeros", "scales", "g_idx"];

/// How zero points are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointFormat {
    /// `gptq`: one less than the zero point, in `bits` bits.
    V1,
    /// `gptq_v2`: the zero point.
    V2,
}

impl CheckpointFormat {
    /// Reads `gptq` or `gptq_v2`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`].
    pub fn from_json(value: &Value) -> Result<Self> {
        let all = [Self::V1, Self::V2];
        let found = all.into_iter().find(|it| value.as_str() == Some(it.name()));
        found.ok_or_else(|| invalid("checkpoint_format", value, "`gptq` or `gptq_v2`"))
    }

    /// Zero points are stored less this.
    fn offset(self) -> i32 {
        match self {
            Self::V1 => 1,
            Self::V2 => 0,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::V1 => "gptq",
            Self::V2 => "gptq_v2",
        }
    }
}

/// What to do with a linear whose columns are assigned to groups out of order (`desc_act`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActOrder {
    /// Refuse: the current format has no such assignment.
    #[default]
    Refuse,
    /// Keep it as `weight_g_idx`, which older versions wrote and the codec still reads, as a step on the
    /// way to dense weights.
    KeepGroupIndex,
}

/// Reads AutoGPTQ checkpoints.
///
/// `qweight` I32 (in * bits / 32, out), `qzeros` I32 (groups, out * bits / 32), `scales` (groups, out) and
/// `g_idx` I32 (in) become `pack-quantized` tensors. All three widths lie as one bit stream, so that a code
/// of 3 bits may straddle words. A `g_idx` in column order is dropped.
#[derive(Clone, Debug)]
pub struct AutoGptqConverter {
    scheme: IntScheme,
    format: CheckpointFormat,
    act_order: ActOrder,
    targets: Vec<String>,
    ignore: Vec<String>,
    matcher: Matcher,
}

impl AutoGptqConverter {
    /// Reads the `quantization_config` of an AutoGPTQ checkpoint; `targets` and `ignore`, which it lacks,
    /// may stand beside its fields.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] for fields that no such checkpoint has, [`ErrorKind::Unsupported`] for
    /// settings that differ between modules.
    pub fn from_source_config(config: &Value, act_order: ActOrder) -> Result<Self> {
        let bits = config.get("bits").unwrap_or(&Value::Null);
        let width = bits.as_u64().and_then(|it| u32::try_from(it).ok()).filter(|it| [2, 3, 4, 8].contains(it));
        let width = width.ok_or_else(|| invalid("bits", bits, "2, 3, 4 or 8"))?;
        let size = config.get("group_size").unwrap_or(&Value::Null);
        let size = size.as_i64().ok_or_else(|| invalid("group_size", size, "an integer"))?;
        let flag = |field: &str, default| match config.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(it) => it.as_bool().ok_or_else(|| invalid(field, it, "true or false")),
        };
        let format = match config.get("checkpoint_format") {
            None | Some(Value::Null) => CheckpointFormat::V1,
            Some(it) => CheckpointFormat::from_json(it)?,
        };
        let per_module = config.get("dynamic").and_then(Value::as_object).is_some_and(|it| !it.is_empty());
        if per_module {
            let what = "AutoGPTQ with settings per module (`dynamic`)".to_owned();
            return Err(Error::from(ErrorKind::Unsupported { what }));
        }
        let head = if flag("lm_head", false)? { Vec::new() } else { vec!["lm_head".to_owned()] };
        let ignore = names(config, "ignore")?.unwrap_or(head);
        let targets = names(config, "targets")?.unwrap_or_else(linears);
        let matcher = Matcher::compile(&targets, &ignore)?;
        let scheme = IntScheme::new(width, size, flag("sym", true)?)?;
        Ok(Self { scheme, format, act_order, targets, ignore, matcher })
    }

    /// The group of each column, or nothing where columns are in order.
    fn group_index(&self, g_idx: &[i32], n_groups: usize) -> Result<Option<Vec<i32>>> {
        let size = self.scheme.group_size.unwrap_or(g_idx.len()).max(1);
        if g_idx.iter().enumerate().all(|(column, group)| *group as usize == column / size) {
            return Ok(None);
        }
        let mut members = vec![0; n_groups];
        for (column, group) in g_idx.iter().enumerate() {
            let group = usize::try_from(*group).ok().and_then(|it| members.get_mut(it));
            *group.ok_or_else(|| {
                invalid("g_idx", format!("{} at column {column}", g_idx[column]), format!("a group below {n_groups}"))
            })? += 1;
        }
        if members.iter().any(|it| *it != size) {
            return Err(invalid("g_idx", "groups of unequal size", format!("{size} columns in each group")));
        }
        match self.act_order {
            ActOrder::KeepGroupIndex => Ok(Some(g_idx.to_vec())),
            ActOrder::Refuse => Err(Error::from(ErrorKind::Unsupported {
                what: "a column order (`desc_act`) in this format; dequantize the checkpoint and quantize it anew, it"
                    .to_owned(),
            })),
        }
    }
}

impl Converter for AutoGptqConverter {
    fn process_module(&self, module: &str, mut tensors: ModuleTensors) -> Result<ModuleTensors> {
        self.plan_module(module, &super::shapes_of(&tensors))?;
        if !tensors.contains_key("qweight") {
            return Ok(tensors);
        }
        check_lengths(&tensors)?;
        let bits = self.scheme.bits;
        let qweight = take(&mut tensors, "qweight")?;
        let n_out = qweight.shape[1];
        let n_in = qweight.shape[0] * 32 / bits as usize;
        let codes = unpack(&words(&qweight), n_in, n_out, bits, PackedDim::Rows, Layout::Dense)?;
        let codes = transpose(&codes, n_in, n_out);
        let scales = transposed(&take(&mut tensors, "scales")?);
        let n_groups = scales.shape[1];
        let qzeros = words(&take(&mut tensors, "qzeros")?);
        let mut zeros = unpack(&qzeros, n_groups, n_out, bits, PackedDim::Cols, Layout::Dense)?;
        let half = 1 << (bits - 1);
        for zero in &mut zeros {
            // In `bits` bits, so that a stored -1 is the zero point 0.
            let stored = i32::from(*zero) + half;
            *zero = (((stored + self.format.offset()) & (2 * half - 1)) - half) as i8;
        }
        let zero_points = match self.scheme.symmetric {
            false => Some(transpose(&zeros, n_groups, n_out)),
            true => match zeros.iter().position(|it| *it != 0) {
                None => None,
                Some(at) => {
                    let found =
                        format!("{} in group {}, column {}", i32::from(zeros[at]) + half, at / n_out, at % n_out);
                    return Err(invalid("qzeros", found, format!("{half}, as `sym` is true")));
                }
            },
        };
        let g_idx = tensors.shift_remove("g_idx").map(|it| self.group_index(&words(&it), n_groups)).transpose()?;
        tensors.extend(PackedLinear { n_out, n_in, n_groups, codes, scales, zero_points }.into_tensors(bits)?);
        if let Some(g_idx) = g_idx.flatten() {
            tensors.insert("weight_g_idx".to_owned(), i32_array(&[n_in], &g_idx));
        }
        Ok(tensors)
    }

    fn plan_module(&self, module: &str, tensors: &TensorShapes) -> Result<TensorShapes> {
        if !tensors.contains_key("qweight") {
            return match TENSORS.iter().find(|it| tensors.contains_key(**it)) {
                Some(name) => Err(left_over(name, "there is no `qweight` beside it")),
                None => Ok(tensors.clone()),
            };
        }
        if !self.matcher.matches(NamedModule { name: module, classes: &["Linear"] })? {
            return Err(left_over("qweight", "its module is ignored or no target, and yet quantized"));
        }
        let bits = self.scheme.bits as usize;
        let [n_words, n_out] = matrix(tensors, "qweight", &[DType::I32])?;
        let n_in_bits = n_words.checked_mul(32).filter(|it| it.is_multiple_of(bits));
        let n_in =
            n_in_bits.ok_or_else(|| bad_shape("qweight", &[n_words, n_out], "rows of words that codes fill"))? / bits;
        let n_groups = self.scheme.n_groups("qweight", n_in)?;
        matrix(tensors, "scales", FLOATS)?;
        check_shape(tensors, "scales", &[n_groups, n_out])?;
        matrix(tensors, "qzeros", &[DType::I32])?;
        check_shape(tensors, "qzeros", &[n_groups, Layout::Dense.words(n_out, self.scheme.bits)])?;
        if let Some(g_idx) = tensors.get("g_idx") {
            super::modules::check_dtype("g_idx", g_idx.dtype, &[DType::I32])?;
            check_shape(tensors, "g_idx", &[n_in])?;
        }
        let mut planned = tensors.clone();
        planned.retain(|name, _| !TENSORS.contains(&name.as_str()));
        planned.extend(self.scheme.packed_shapes(n_out, n_in, n_groups, tensors["scales"].dtype));
        Ok(planned)
    }

    fn dependencies(&self, name: &str, exists: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        let (module, local) = split(name);
        if local != "qweight" {
            return Ok(Vec::new());
        }
        let mut needed = vec![join(module, "qzeros"), join(module, "scales")];
        let g_idx = join(module, "g_idx");
        if exists(&g_idx) {
            needed.push(g_idx);
        }
        Ok(needed)
    }

    fn update_config(&self, config: Option<QuantizationConfig>) -> Result<Option<QuantizationConfig>> {
        merged(config, self.scheme.config(&self.targets, &self.ignore)?)
    }
}

/// Writes AutoGPTQ checkpoints of `pack-quantized` ones with weights of 2, 3, 4 or 8 bits.
#[derive(Clone, Debug)]
pub struct AutoGptqExporter {
    scheme: IntScheme,
    format: CheckpointFormat,
    converts_lm_head: bool,
}

impl AutoGptqExporter {
    /// An exporter for a checkpoint with this config.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for anything but one group of such integers without activations.
    pub fn new(config: &QuantizationConfig, format: CheckpointFormat) -> Result<Self> {
        let scheme = single_scheme(config)?;
        if ![2, 3, 4, 8].contains(&scheme.bits) {
            return Err(Error::from(ErrorKind::Unsupported { what: format!("AutoGPTQ with {} bits", scheme.bits) }));
        }
        let ignored = Matcher::compile(&["re:"], &config.ignore)?;
        Ok(Self { scheme, format, converts_lm_head: ignored.matches_name("lm_head")? })
    }
}

impl Converter for AutoGptqExporter {
    fn process_module(&self, module: &str, mut tensors: ModuleTensors) -> Result<ModuleTensors> {
        let shapes = super::shapes_of(&tensors);
        self.plan_module(module, &shapes)?;
        if !tensors.contains_key("weight_packed") {
            return Ok(tensors);
        }
        check_lengths(&tensors)?;
        let extents = PackedLinear::check_tensors(&shapes, self.scheme)?;
        let linear = PackedLinear::take(&mut tensors, self.scheme, extents)?;
        let [n_out, n_in, n_groups] = extents;
        let bits = self.scheme.bits;
        let half = 1 << (bits - 1);
        let mut zeros =
            linear.zero_points.map_or_else(|| vec![0; n_out * n_groups], |it| transpose(&it, n_out, n_groups));
        for zero in &mut zeros {
            let stored = (i32::from(*zero) + half - self.format.offset()) & (2 * half - 1);
            *zero = (stored - half) as i8;
        }
        let qweight = pack(&transpose(&linear.codes, n_out, n_in), n_in, n_out, bits, PackedDim::Rows)?;
        let qzeros = pack(&zeros, n_groups, n_out, bits, PackedDim::Cols)?;
        let size = self.scheme.group_size.unwrap_or(n_in);
        let g_idx: Vec<i32> = (0..n_in).map(|column| (column / size) as i32).collect();
        let n_words = |n| Layout::Dense.words(n, bits);
        tensors.insert("qweight".to_owned(), i32_array(&[n_words(n_in), n_out], &qweight));
        tensors.insert("qzeros".to_owned(), i32_array(&[n_groups, n_words(n_out)], &qzeros));
        tensors.insert("scales".to_owned(), transposed(&scales_as_f16(&linear.scales)?));
        tensors.insert("g_idx".to_owned(), i32_array(&[n_in], &g_idx));
        Ok(tensors)
    }

    fn plan_module(&self, _: &str, tensors: &TensorShapes) -> Result<TensorShapes> {
        if !tensors.contains_key("weight_packed") {
            return Ok(tensors.clone());
        }
        let [n_out, n_in, n_groups] = PackedLinear::check_tensors(tensors, self.scheme)?;
        let bits = self.scheme.bits;
        for n in [n_out, n_in] {
            if n.checked_mul(bits as usize).is_none_or(|it| !it.is_multiple_of(32)) {
                return Err(bad_shape("weight_packed", &[n_out, n_in], "rows and columns whose codes fill words"));
            }
        }
        let words = |n| Layout::Dense.words(n, bits);
        let mut planned = tensors.clone();
        planned.retain(|name, _| !name.starts_with("weight_"));
        planned.insert("qweight".to_owned(), shape(DType::I32, &[words(n_in), n_out]));
        planned.insert("qzeros".to_owned(), shape(DType::I32, &[n_groups, words(n_out)]));
        planned.insert("scales".to_owned(), shape(DType::F16, &[n_groups, n_out]));
        planned.insert("g_idx".to_owned(), shape(DType::I32, &[n_in]));
        Ok(planned)
    }

    fn dependencies(&self, name: &str, _: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        Ok(packed_companions(name, self.scheme))
    }

    fn update_config(&self, _: Option<QuantizationConfig>) -> Result<Option<QuantizationConfig>> {
        Ok(None)
    }

    fn update_model_config(&self, config: &mut Value) -> Result<()> {
        let map = config.as_object_mut().ok_or_else(|| invalid("config.json", "no object", "an object"))?;
        let section = json!({
            "quant_method": "gptq",
            "bits": self.scheme.bits,
            "group_size": self.scheme.group_size_field(),
            "sym": self.scheme.symmetric,
            "desc_act": false,
            "lm_head": self.converts_lm_head,
            "checkpoint_format": self.format.name(),
        });
        map.insert("quantization_config".to_owned(), section);
        Ok(())
    }
}
